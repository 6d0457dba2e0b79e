"""The command line. Each command imports what it needs when it runs: `--help` must be quick."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from dataplane import cli_cni, cli_flannel, cli_kubernetes, cli_node, cli_policy
from dataplane.cli_options import call
from dataplane.errors import (
    BusyError,
    DataplaneError,
    MissingError,
    NoNodeError,
    PortError,
    StaleError,
)

OK, PROBLEM, BAD_INPUT, NO_NODE = 0, 1, 2, 3
EXIT_CODES = """\b
Exit codes:
  0  ok
  1  found a problem: an expectation unmet, a difference, a port that cannot be opened
  2  bad input: a document, a packet or an option that cannot be used
  3  no node answers on its control socket
"""


class Commands(click.Group):
    """Turns our errors into lines on stderr and an exit code."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(*args, **extra)  # writes --help, too
        except OSError as error:
            sys.exit(output_lost(error))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DataplaneError as error:
            click.echo(f"{error}", err=True)
            ctx.exit(_code_of(error))
        except OSError as error:
            ctx.exit(output_lost(error))


def _code_of(error: DataplaneError) -> int:
    if isinstance(error, NoNodeError):
        return NO_NODE
    problems = PortError, BusyError, StaleError, MissingError
    return PROBLEM if isinstance(error, problems) else BAD_INPUT


def output_lost(error: OSError) -> int:
    """The exit code where stdout, or a file, takes no more. What is still buffered goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return OK  # whoever read us has seen enough
    with contextlib.suppress(OSError):
        click.echo(f"{error.filename or 'output'}: {error.strerror}", err=True)
    return PROBLEM


def hold_streams() -> None:
    """What the caller closed of stdin, stdout and stderr leads nowhere: no file of ours may get
    its descriptor."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


Command = Callable[..., None]
FILE = click.Path(dir_okay=False)
output = click.option(
    "-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", show_default=True
)
node_option = click.option("--node", "-n", metavar="N", help="Which node of the document.")


def limit(name: str, most: int, help_text: str) -> Callable[[Command], Command]:
    kind = click.IntRange(1, most)
    return click.option(name, type=kind, default=1 << 16, show_default=True, help=help_text)


@click.group(
    cls=Commands,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def cli() -> None:
    """A userspace VXLAN dataplane: forwards, checks and explains under one policy document."""


@cli.command(epilog=EXIT_CODES)
@click.argument("file", type=FILE, required=False)
@node_option
@click.option("--state", metavar="DIRECTORY", help="Where what is committed outlives a restart.")
@click.option(
    "--from-file", is_flag=True, help="Begin with FILE in place of the policy that --state has."
)
@click.option(
    "--control",
    type=FILE,
    metavar="SOCKET",
    help="Where the control API is served.  [default: NODE.sock of the run directory]",
)
@click.option("--no-control", is_flag=True, help="Serve none.")
@click.option(
    "--read-control",
    type=FILE,
    metavar="SOCKET",
    help="Serve it there, too, for reading only (mode 0660; no captures).",
)
@click.option("--stats", "stats_file", type=FILE, help="Write counters there, as JSON.")
@click.option("--pid-file", type=FILE, help="Write the process id there while running.")
@click.option(
    "--offload/--no-offload",
    default=True,
    envvar="DATAPLANE_OFFLOAD",
    help="Whether kernels cut, join and sum packets for us.  [default: as the policy says]",
)
@click.option(
    "--xdp",
    metavar="INTERFACE",
    envvar="DATAPLANE_XDP",
    help="AF_XDP beside the sockets, there.  [default: as the policy says]",
)
@click.option(
    "--busy-poll",
    type=click.IntRange(0, 1_000_000),
    default=0,
    metavar="MICROSECONDS",
    help="Look for frames so long before sleeping.  [default: 100 where they come one by one,"
    " each within that time; else 0]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    envvar="DATAPLANE_WORKERS",
    help="Threads that forward, each with a queue of each port.",
)
@click.option(
    "--log",
    "log_form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="DATAPLANE_LOG",
    help="Form of the log on stderr: lines, or a JSON object each.",
)
@click.option(
    "--sandbox/--no-sandbox",
    "confined",
    default=True,
    show_default=True,
    help="Give up capabilities and system calls that no node needs.",
)
@click.option("--successor", type=int, hidden=True)  # of handover.py
@cli_flannel.options
@cli_kubernetes.options
@cli_policy.options
@limit("--max-flows", 1 << 28, "Most flows at a time; a full table refuses new ones.")
@limit("--max-bindings", 1 << 28, "Most NAT bindings at a time.")
@limit("--max-rules", 1 << 28, "Most ACL and NAT rules.")
def run(
    file: str | None,
    node: str | None,
    state: str | None,
    from_file: bool,
    control: str | None,
    no_control: bool,
    read_control: str | None,
    stats_file: str | None,
    pid_file: str | None,
    offload: bool,
    xdp: str | None,
    log_form: str,
    confined: bool,
    busy_poll: int,
    workers: int,
    successor: int | None,
    max_flows: int,
    max_bindings: int,
    max_rules: int,
    **chosen: Any,
) -> None:
    """Forward frames between the TAPs and the underlay of one node.

    FILE tells its policy; with --state it is needed once, and what is committed last holds. What
    cannot change while it runs (underlay, UDP checksums, settings of an open TAP) does with
    --from-file: generations, addresses given and what front doors have are kept.

    \b
    SIGHUP           reads FILE again; a bad one changes nothing
    SIGUSR1          counters to stderr, or to the --stats file
    SIGUSR2          a new process takes over: ports, flows, NAT bindings, policy
    SIGINT, SIGTERM  end it, remove what it made, and tell the final counters
    """
    from dataplane import logs
    from dataplane import run as runner
    from dataplane.daemon import Tuning
    from dataplane.engine import Limits

    logs.begin(log_form)
    places = runner.Places(
        file, state, from_file, control, not no_control, read_control, stats_file, pid_file
    )
    limits = Limits(max_flows=max_flows, max_bindings=max_bindings, max_rules=max_rules)
    tuning = Tuning(offload, busy_poll, workers, xdp)
    kube = {name: chosen.pop(name) for name in [*chosen] if name.startswith("kube_")}
    common = {name: chosen.pop(name) for name in [*chosen] if name.startswith("policy_")}
    common |= {name: value for name, value in chosen.items() if name.startswith("etcd_")}
    doors = [
        *cli_flannel.doors(**chosen),
        *cli_kubernetes.doors(**kube),
        *cli_policy.doors(**common),
    ]
    runner.run(places, node, limits, tuning, successor, doors, confined)


@cli.command(epilog=EXIT_CODES)
@click.argument("files", type=FILE, nargs=-1, required=True)
@output
def check(files: tuple[str, ...], form: str) -> None:
    """Prove what documents expect of their packets. Needs no root."""
    from dataplane import commands

    sys.exit(commands.check(files, form))


@cli.command(epilog=EXIT_CODES)
@click.argument("file_a", type=FILE, required=False)
@click.argument("file_b", type=FILE, required=False)
@click.option("-f", "--file", metavar="FILE", help="Against the running node; - reads stdin.")
@click.option("--prune", is_flag=True, help="With -f: what it does not name would go.")
@click.option("--socket", metavar="PATH", help="With -f: the node's control socket.")
@node_option
@output
def diff(
    file_a: str | None,
    file_b: str | None,
    file: str | None,
    prune: bool,
    socket: str | None,
    node: str | None,
    form: str,
) -> None:
    """Show what would change from FILE_A to FILE_B, or from nothing to FILE_A; with -f, what
    `apply` would change on the running node.

    Exit code 0 if nothing would, 1 if something would.
    """
    if (file is None) == (file_a is None):
        raise click.UsageError("give FILE_A, or -f FILE")
    if file is not None:
        call("change.diff", node, socket, file, prune=prune, form=form)
    from dataplane import commands

    sys.exit(commands.diff(str(file_a), file_b, node, form))


@cli.command(epilog=EXIT_CODES)
@click.argument("packet", nargs=-1)
@click.option("-f", "--file", type=FILE, help="A policy document, instead of the running node.")
@click.option("--socket", metavar="PATH", help="Without -f: the node's control socket.")
@node_option
@click.option("--in", "entry", metavar="PORT", help="[[NODE/]NETWORK/]ENDPOINT, underlay or host.")
@click.option("--vni", type=int, help="With --in underlay: the VNI, if addresses do not tell it.")
@click.option("--pcap", type=FILE, help="Take the frame out of a capture.")
@click.option(
    "--frame",
    type=click.IntRange(1, 1 << 32),
    default=1,
    show_default=True,
    metavar="K",
    help="Which frame of it.",
)
@click.option("--live", is_flag=True, help="Packets that begin flows on the running node.")
@click.option("--drops", is_flag=True, help="Packets that the running node drops.")
@click.option(
    "-c", "--count", type=click.IntRange(0), default=0, help="Of --live: end after so many."
)
@click.option(
    "--filter", "filters", multiple=True, metavar="FIELD=VALUE", help="Of --live: as of `flows`."
)
@click.option("--mermaid", is_flag=True, help="A flow chart instead of text.")
@output
def trace(packet: tuple[str, ...], form: str, socket: str | None, **options: Any) -> None:
    """Tell what would become of a packet, and why: each layer, group and rule tried.

    \b
    dataplane trace -f policy.yaml --in web 'tcp 10.1.1.2:40000 > 10.1.2.2:80'

    Without -f the running node is asked: its policy, its flows, its bindings. In a document of
    several nodes the packet is followed to the next. Exit code 1 if it is dropped.
    """
    live = {name: options.pop(name) for name in ("live", "drops", "count", "filters")}
    if live["live"] or live["drops"]:
        asked = {"drops": live["drops"], "count": live["count"], "mermaid": options["mermaid"]}
        filters = live["filters"]
        call("follow.trace_live", options["node"], socket, filters, form=form, **asked)
    if options["file"] is None:
        if options.pop("pcap") is not None:
            raise click.UsageError("--pcap needs -f FILE")
        asked = {name: options[name] for name in ("entry", "vni", "mermaid")}
        call("look.trace", options["node"], socket, " ".join(packet), form=form, **asked)
    from dataplane import commands

    sys.exit(commands.trace(" ".join(packet), form=form, **options))


@cli.command(epilog=EXIT_CODES)
@click.option("-f", "--file", type=FILE, help="A policy document, instead of the running node.")
@click.option("--socket", metavar="PATH", help="Without -f: the node's control socket.")
@node_option
@click.option("--mermaid", "form", flag_value="mermaid", default="mermaid", help="The default.")
@click.option("--dot", "form", flag_value="dot", help="For Graphviz.")
@click.option("--svg", "form", flag_value="svg", help="A picture.")
@click.option("--json", "form", flag_value="json", help="Values.")
def graph(file: str | None, socket: str | None, node: str | None, form: str) -> None:
    """Draw nodes, networks, endpoints and where they send to; of a running node, silent peers red.

    \b
    dataplane graph -f policies/two-hosts.yaml --svg > graph.svg
    """
    if file is None:
        call("look.graph", node, socket, form)
    from dataplane import commands

    sys.exit(commands.graph(file, node, form))


@cli.command(epilog=EXIT_CODES)
def schema() -> None:
    """Print the JSON Schema of documents."""
    from dataplane import schema as document_schema

    click.echo(document_schema.text(), nl=False)


@cli.command(context_settings={"ignore_unknown_options": True}, epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="Results as JSON on stdout.")
@click.option("--quick", is_flag=True, help="Less of it.")
def bench(as_json: bool, quick: bool) -> None:
    """Measure the engine on this machine."""
    from dataplane import bench as benchmarks

    sys.exit(benchmarks.main(as_json, quick))


@cli.command(epilog=EXIT_CODES)
@click.option("--policy", type=FILE, help="Instead of policies/demo.yaml.")
@click.option("--lab", is_flag=True, help="In memory, even where namespaces are permitted.")
def demo(policy: str | None, lab: bool) -> None:
    """Let two hosts and a kernel VXLAN peer exchange real traffic in network namespaces."""
    from dataplane import demo as show

    sys.exit(show.main(policy, lab))


@cli.command(epilog=EXIT_CODES)
@output
def version(form: str) -> None:
    """Print versions."""
    from dataplane import commands

    click.echo(commands.version(form))


@cli.command("man", epilog=EXIT_CODES)
def man() -> None:
    """Print the manual page: `dataplane man | man -l -`."""
    from dataplane import manual

    click.echo(manual.page(cli, EXIT_CODES), nl=False)


@cli.command(epilog=EXIT_CODES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what completes commands in a shell: `eval "$(dataplane completion bash)"`."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "dataplane", "_DATAPLANE_COMPLETE").source())


cli_node.register(cli, EXIT_CODES)
cli_cni.register(cli, EXIT_CODES)
cli_policy.register(cli, EXIT_CODES)


def main() -> None:
    code: Any = OK
    hold_streams()
    try:
        cli(prog_name="dataplane")
    except SystemExit as end:
        code = end.code
    try:
        sys.stdout.flush()
    except OSError as error:
        code = output_lost(error) or code
    sys.exit(code)
