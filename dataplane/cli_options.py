"""Options that commands of a running node share; `call` runs what they stand for."""

import contextlib
import importlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

Command = Callable[..., Any]


def node_options(command: Command) -> Command:
    """Which node, and what the answer looks like."""
    for option in (
        click.option("--socket", metavar="PATH", help="Its control socket."),
        click.option("--node", "-n", metavar="N", help="Which node of this host, if several run."),
    ):
        command = option(command)
    return command


def output(*forms: str) -> Callable[[Command], Command]:
    kind = click.Choice(["text", *forms])
    return click.option("-o", "--output", "form", type=kind, default="text", show_default=True)


def call(function: str, node: str | None, socket: str | None, *args: Any, **extra: Any) -> NoReturn:
    """Ends with the exit code of "module.function" of dataplane.verbs."""
    from dataplane.verbs.base import connect

    module, _, verb = function.partition(".")
    run = getattr(importlib.import_module(f"dataplane.verbs.{module}"), verb)
    with contextlib.closing(connect(node, socket)) as client:
        sys.exit(run(client, *args, **extra))


SHORT = (
    "vni",
    "proto",
    "ip",
    "src",
    "dst",
    "port",
    "sport",
    "dport",
    "endpoint",
    "peer",
    "state",
)


def filters(command: Command) -> Command:
    """One option for each field, and one for those that must not be."""
    for name in reversed(SHORT):
        command = click.option(f"--{name}", metavar=name.upper())(command)
    return click.option(
        "--not", "nots", multiple=True, metavar="FIELD=VALUE", help="What must not be so."
    )(command)


COUNT = click.option(
    "-c", "--count", type=click.IntRange(0), default=0, help="End after so many.  [default: never]"
)


def conditions(options: dict[str, Any]) -> list[str]:
    nots = [text.replace("=", "!=", 1) for text in options.pop("nots")]
    return nots + [f"{name}={options.pop(name)}" for name in SHORT if options[name] is not None]
