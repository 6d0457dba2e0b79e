"""A policy for all nodes, in etcd: options of `run`, the door they ask for, and `push`."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from dataplane import cli_flannel
from dataplane.cli_options import output

if TYPE_CHECKING:
    from dataplane.daemon import Daemon
    from dataplane.flannel.access import Access

Command = Callable[..., Any]
_ROOT = "/dataplane"


def options(command: Command) -> Command:
    """Their values, and those of `cli_flannel.access`, are the arguments of `doors`."""
    for option in (
        click.option(
            "--etcd-policy-prefix",
            "policy_root",
            default=_ROOT,
            show_default=True,
            metavar="KEY",
            help="Where its keys are.",
        ),
        click.option(
            "--etcd-policy",
            "policy_urls",
            metavar="URL[,URL]",
            help="Have what all nodes have in common of these etcd servers; see push.",
        ),
    ):
        command = option(command)
    return command


def doors(
    policy_urls: str | None, policy_root: str, **access: str | None
) -> "list[Callable[[Daemon], AbstractContextManager[object]]]":
    """None where no server is named."""
    root = _root(policy_root)
    if policy_urls is None:
        return []

    def door(daemon: "Daemon") -> AbstractContextManager[object]:
        from dataplane.etcd_policy.door import EtcdPolicy, Options

        return EtcdPolicy(daemon, Options(_urls(policy_urls), root, _access(access)))

    return [door]


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--etcd", "urls", required=True, metavar="URL[,URL]", help="Servers of one cluster.")
@click.option("--prefix", default=_ROOT, show_default=True, metavar="KEY", help="Of its keys.")
@click.option("--wait", type=click.FloatRange(0), default=5.0, show_default=True, metavar="S")
@cli_flannel.access
@output("json")
def push(file: str, urls: str, prefix: str, wait: float, form: str, **access: str | None) -> None:
    """Give all nodes that `run --etcd-policy` what FILE says; - reads stdin.

    FILE has networks, and parts: objects in networks that the nodes have. Nodes say within --wait
    seconds what became of it.
    """
    from dataplane.verbs.push import push as work

    sys.exit(work(file, _urls(urls), _root(prefix), _access(access), wait, form))


def _root(text: str) -> str:
    if not text.startswith("/"):
        raise click.UsageError(f"a prefix begins with a slash, as in {_ROOT}")
    return text.rstrip("/")


def _urls(text: str) -> tuple[str, ...]:
    return tuple(url.strip() for url in text.split(","))


def _access(given: dict[str, str | None]) -> "Access":
    from dataplane.flannel.access import Access

    return Access(**{name.removeprefix("etcd_"): value for name, value in given.items() if value})


def register(cli: click.Group, epilog: str) -> None:
    push.epilog = epilog
    cli.add_command(push)
