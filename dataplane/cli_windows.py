"""The commands `vfp` and `hns`: words and documents of Windows."""

from typing import Any

import click

from dataplane.cli_options import call, node_options, output


@click.group()
def vfp() -> None:
    """The words of vfpctrl, for people from Windows."""


def _vfp(name: str, function: str, *args: Any, help_text: str, **extra: Any) -> None:
    """`vfp NAME` as another command's function."""

    @vfp.command(name, help=help_text)
    @node_options
    @output("json", "yaml")
    def run(node: str | None, socket: str | None, form: str) -> None:
        call(function, node, socket, *args, form=form, **extra)


_vfp("list-layer", "look.get", "layers", help_text="get layers")
_vfp("list-rule", "look.get", "acls", help_text="get acls: rules in their order, with their hits")
_vfp("list-vmswitch-port", "look.get", "endpoints", help_text="get endpoints")
_vfp("list-nat-range", "look.get", "nats", help_text="get nats")
_vfp("list-space", "look.get", "networks", help_text="get networks")
_vfp("get-port-flow-stats", "counters.stats", "ports", None, help_text="stats ports")
_vfp("list-unified-flow", "look.flows", [], top=1000, by=None, help_text="flows")


@vfp.command("process-tuples")
@click.argument("packet", nargs=-1, required=True)
@click.option("--port", "entry", metavar="PORT", help="Where it comes in.")
@node_options
@output("json")
def process_tuples(
    packet: tuple[str, ...], entry: str | None, node: str | None, socket: str | None, form: str
) -> None:
    """trace"""
    words = " ".join(packet)
    call("look.trace", node, socket, words, entry=entry, vni=None, mermaid=False, form=form)


@click.group()
def hns() -> None:
    """Documents of HNS (HCN v2, and v1), for people and programs from Windows."""


@hns.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@node_options
@output("json")
def hns_import(files: tuple[str, ...], node: str | None, socket: str | None, form: str) -> None:
    """Commit JSON documents and calls {Method, Path, Body}, all or nothing; - reads stdin."""
    call("windows.hns_import", node, socket, files, form)


@hns.command("export")
@node_options
def hns_export(node: str | None, socket: str | None) -> None:
    """Print the whole policy as calls of HNS, which `import` takes."""
    call("windows.hns_export", node, socket)


@hns.command("list")
@click.argument("kind", required=False)
@node_options
@output("json")
def hns_list(kind: str | None, node: str | None, socket: str | None, form: str) -> None:
    """List networks, endpoints, loadbalancers, routes and namespaces."""
    call("windows.hns_list", node, socket, kind, form)
