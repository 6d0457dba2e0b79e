"""Commands for a running node. `register` adds them to the command line."""

import sys
from typing import Any

import click

from dataplane import cli_words
from dataplane.cli_options import COUNT, SHORT, call, conditions, filters, node_options, output
from dataplane.cli_windows import hns, vfp

FILE = click.option(
    "-f", "--file", required=True, metavar="FILE", help="A policy document; - reads stdin."
)


@click.command()
@FILE
@click.option("--prune", is_flag=True, help="What it does not name goes.")
@click.option("--dry-run", is_flag=True, help="Tell what would change, and change nothing.")
@click.option("--if-generation", "base", type=click.IntRange(0), help="Only if that one holds.")
@node_options
@output("json", "yaml")
def apply(node: str | None, socket: str | None, **options: Any) -> None:
    """Commit a policy document, all or nothing, while frames pass.

    What it does not name stays, unless --prune: networks, their endpoints, subnets, ACLs and load
    balancers, and settings of the node and of networks that it leaves out or gives their default.
    An endpoint, subnet, ACL or load balancer that it names is replaced whole.
    Exit code 2 where it cannot be used: nothing is applied then.
    """
    call("change.apply", node, socket, options.pop("file"), **options)


@click.command()
@node_options
@output("json")
def export(node: str | None, socket: str | None, form: str) -> None:
    """Print the committed policy: a document that `apply` takes."""
    call("change.export", node, socket, form)


@click.command()
@click.argument("kind", shell_complete=cli_words.kinds)
@click.option("-w", "--watch", is_flag=True, help="Again whenever something changes.")
@node_options
@output("wide", "json", "yaml", "name")
def get(kind: str, watch: bool, node: str | None, socket: str | None, form: str) -> None:
    """List networks, endpoints, remote-subnets, direct-subnets, peers, routes, acls, nats,
    load-balancers, layers, drops, ports, fdb or neigh."""
    if watch:
        call("look.watch", node, socket, kind, form, 1.0)
    call("look.get", node, socket, kind, form)


@click.command()
@click.argument("kind", shell_complete=cli_words.kinds)
@click.argument("name", shell_complete=cli_words.names)
@node_options
@output("json", "yaml")
def describe(kind: str, name: str, node: str | None, socket: str | None, form: str) -> None:
    """Tell everything of one object."""
    call("look.describe", node, socket, kind, name, form)


@click.command()
@click.argument("kind", shell_complete=cli_words.removable)
@click.argument("name", shell_complete=cli_words.removable_names)
@node_options
@output("json", "yaml")
def delete(kind: str, name: str, node: str | None, socket: str | None, form: str) -> None:
    """Remove a network, or NETWORK/NAME of an endpoint, a subnet, ACL or load balancer."""
    call("change.delete", node, socket, kind, name, form)


@click.command()
@filters
@click.option("--top", type=click.IntRange(1, 100_000), default=100, help="How many at most.")
@click.option("--by", type=click.Choice(cli_words.SUMS), help="Sums by it, instead.")
@node_options
@output("wide", "json", "yaml")
def flows(node: str | None, socket: str | None, **options: Any) -> None:
    """List the unified flow table, most packets first.

    Conditions are AND-ed; a value may be several, parted by commas. IP and PORT look at both sides.
    """
    asked = conditions(options)
    rest = {name: value for name, value in options.items() if name not in SHORT}
    call("look.flows", node, socket, asked, **rest)


@click.command()
@click.argument(
    "what", required=False, type=click.Choice(["ports", "layers", "drops", "peers", "io", "totals"])
)
@click.option(
    "--rate",
    type=click.FloatRange(0.01, 3600),
    metavar="SECONDS",
    help="Rates over so long.",
)
@node_options
@output("json", "yaml")
def stats(
    what: str | None, rate: float | None, node: str | None, socket: str | None, form: str
) -> None:
    """Print counters: of ports, drops by reason, totals."""
    call("counters.stats", node, socket, what, rate, form)


@click.command()
@filters
@click.option("--plain", is_flag=True, help="Lines instead of a screen; so it is into a pipe.")
@click.option(
    "--every",
    "seconds",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between readings.",
)
@COUNT
@node_options
@output("json")
def top(node: str | None, socket: str | None, plain: bool, count: int, **options: Any) -> None:
    """Show rates, drops by reason, the busiest flows and the peers, as they change.

    On the screen q quits, p pauses, / filters the flows. -o json prints one object a line.
    """
    asked = conditions(options)
    plain = plain or bool(count) or not sys.stdout.isatty()
    rest = {name: options[name] for name in ("seconds", "form")}
    call("follow.top", node, socket, asked, plain=plain, count=count, **rest)


@click.command()
@click.option(
    "--listen", default="127.0.0.1:0", metavar="ADDRESS:PORT", help="Of a loopback; 0: any port."
)
@click.option("--snapshot", metavar="FILE", help="Write the page with what the node says now.")
@node_options
def ui(node: str | None, socket: str | None, listen: str, snapshot: str | None) -> None:
    """Show the node in a browser of this host: topology, layers, drops, flows, rates.

    Prints an address with a token; who has it may look, not change. Ends with an interrupt.
    """
    call("page.ui", node, socket, listen, snapshot)


@click.command()
@click.argument("peer", required=False, shell_complete=cli_words.peers)
@node_options
@output("json", "yaml")
def mtu(peer: str | None, node: str | None, socket: str | None, form: str) -> None:
    """Tell how large packets may be on the way to a peer (a provider address), or to all.

    LARGEST inner packet; the network's MTU, what VXLAN adds, the underlay's MTU, and what the
    kernel (ROUTE) and the engine have learned of the way, the latter FOR so long.
    Exit code 1 if a network's packets may be larger than the way carries.
    """
    call("reach.mtu", node, socket, peer, form)


@click.command("ping-peer")
@click.argument("peer", shell_complete=cli_words.peers)
@click.option("--from", "entry", metavar="NETWORK/ENDPOINT", help="Who pings.  [default: any]")
@click.option("--to", metavar="ADDRESS", help="Behind the peer.  [default: who talks with us]")
@click.option(
    "-s", "--size", type=click.IntRange(0, 65000), default=56, show_default=True, help="Of data."
)
@click.option(
    "-c", "--count", type=click.IntRange(0), default=4, show_default=True, help="0: without end."
)
@click.option(
    "-i",
    "--every",
    "seconds",
    type=click.FloatRange(0.01, 3600),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="Time between requests.",
)
@node_options
@output("json")
def ping_peer(
    peer: str, entry: str | None, node: str | None, socket: str | None, **rest: Any
) -> None:
    """Ping through the overlay what is behind a peer (a provider address).

    The echo request leaves an endpoint's own network namespace, passes its TAP, the layers and
    VXLAN, and is never fragmented. -o json prints one object a line. Exit code 1 if no answer came.
    """
    call("reach.ping_peer", node, socket, peer, **{"from": entry}, **rest)


@click.command()
@node_options
@output("json", "yaml")
def status(node: str | None, socket: str | None, form: str) -> None:
    """Tell the node at one look. Exit code 1 if it is not ready."""
    call("health.status", node, socket, form)


@click.command()
@node_options
@output("json", "yaml")
def doctor(node: str | None, socket: str | None, form: str) -> None:
    """Find out what is wrong, and what mends it. Exit code 1 if anything is."""
    call("health.doctor", node, socket, form)


@click.command()
@node_options
@output("json", "yaml")
def restart(node: str | None, socket: str | None, form: str) -> None:
    """Have a new process of the node take over, of the version that is installed now.

    It gets policy, ports, flows and NAT bindings; frames wait in their devices meanwhile. If it
    cannot begin, the old one goes on.
    """
    call("change.restart", node, socket, form)


@click.command()
@click.argument("kinds", nargs=-1, type=click.Choice(["drop", "new", "end", "config", "peers"]))
@filters
@COUNT
@node_options
@output("json")
def monitor(kinds: tuple[str, ...], node: str | None, socket: str | None, **options: Any) -> None:
    """Tell what happens: packets dropped, flows that begin and end, commits, peers.

    -o json prints one object a line. Whoever reads too slowly is told how much was lost.
    """
    asked = conditions(options)
    call("follow.monitor", node, socket, kinds, asked, count=options["count"], form=options["form"])


@click.command()
@click.option(
    "--point",
    "points",
    multiple=True,
    type=click.Choice(["rx", "tx", "drop", "encap", "decap"]),
    help="Where; may be given again.  [default: rx tx]",
)
@click.option("-w", "--write", "file", default="-", metavar="FILE", help="Not to stdout.")
@click.option("-s", "--snap", type=click.IntRange(0, 1 << 18), help="Bytes kept of each frame.")
@filters
@COUNT
@node_options
def capture(
    points: tuple[str, ...],
    file: str,
    snap: int | None,
    node: str | None,
    socket: str | None,
    **options: Any,
) -> None:
    """Write frames as they pass in the pcapng format, each with its port, and drops with reason.

    Whoever reads too slowly loses the oldest: the next packet's comment has lost=N, and the last
    line on stderr the sums.

    \b
    dataplane capture --point drop | tshark -r -
    """
    if file == "-" and sys.stdout.isatty():
        raise click.UsageError("a capture is no text: -w FILE, or pipe it into tshark -r -")
    asked = conditions(options)
    count = options["count"]
    wanted = points or ("rx", "tx")
    call("follow.capture", node, socket, wanted, asked, count=count, snap=snap, file=file)


@click.command()
@click.option("-w", "--write", "file", default="dataplane-bundle.tar.gz", show_default=True)
@node_options
def bundle(file: str, node: str | None, socket: str | None) -> None:
    """Gather status, findings, policy, counters and flows for a report, in one tar file.

    It holds no packets, and no secrets: passwords, tokens, keys, and what URLs have before a host.
    """
    call("health.bundle", node, socket, file)


def register(group: click.Group, epilog: str) -> None:
    """Adds the commands, each with the exit codes below its help."""
    for command in (
        apply,
        export,
        get,
        describe,
        delete,
        flows,
        monitor,
        capture,
        stats,
        top,
        ui,
        mtu,
        ping_peer,
        status,
        restart,
        doctor,
        bundle,
        vfp,
        hns,
    ):
        command.epilog = epilog
        group.add_command(command)
