"""Options of `dataplane run` for the flannel front door, and the door they ask for."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dataplane.daemon import Daemon

Command = Callable[..., Any]


ACCESS = {  # flanneld's options of these names, and what they are of `Access`
    "--etcd-password": ("password", "Of that user; better in the environment."),
    "--etcd-username": ("username", "The user of etcd that this node is."),
    "--etcd-keyfile": ("key", "The key of that certificate."),
    "--etcd-certfile": ("cert", "This node's certificate, in PEM."),
    "--etcd-cafile": ("ca", "Whom a server's certificate has to be of, for https; in PEM."),
}


def options(command: Command) -> Command:
    """Their values are the arguments of `doors`."""
    for name, (argument, told) in ACCESS.items():
        place = name.upper().replace("-", "_").lstrip("_")
        option = click.option(name, f"etcd_{argument}", envvar=f"FLANNELD_{place}", help=told)
        command = option(command)
    for option in (
        click.option(
            "--flannel-env",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            default="/run/flannel/subnet.env",
            show_default=True,
            help="Where flannel's CNI plugin looks for this node's subnet; empty: nowhere.",
        ),
        click.option(
            "--flannel-endpoint",
            "flannel_endpoints",
            multiple=True,
            metavar="NAME[@NETNS]",
            help="A TAP with an address of the lease, in that network namespace.",
        ),
        click.option(
            "--flannel-prefix",
            default="/coreos.com/network",
            show_default=True,
            metavar="KEY",
            help="Where the overlay's keys are.",
        ),
        click.option(
            "--flannel",
            "flannel_urls",
            metavar="URL[,URL]",
            help="Be a node of the flannel overlay that these etcd servers know.",
        ),
    ):
        command = option(command)
    return command


def doors(
    flannel_urls: str | None,
    flannel_prefix: str,
    flannel_endpoints: tuple[str, ...],
    flannel_env: str,
    **access: str | None,
) -> "list[Callable[[Daemon], AbstractContextManager[object]]]":
    """None where no overlay is named."""
    if flannel_urls is None:
        if flannel_endpoints:
            raise click.UsageError("--flannel-endpoint needs --flannel")
        return []
    from pathlib import Path

    from dataplane.flannel.access import Access
    from dataplane.flannel.door import Flannel, Options
    from dataplane.model import Endpoint, Tap

    def endpoint(text: str) -> Endpoint:
        name, _, netns = text.partition("@")
        return Endpoint(name=name, tap=Tap(name=name, netns=netns or None))

    if not flannel_prefix.startswith("/"):
        raise click.UsageError("--flannel-prefix begins with a slash, as in /coreos.com/network")
    chosen = Options(
        tuple(url.strip() for url in flannel_urls.split(",")),
        flannel_prefix.rstrip("/"),
        tuple(map(endpoint, flannel_endpoints)),
        Path(flannel_env) if flannel_env else None,
        access=Access(**{k.removeprefix("etcd_"): v for k, v in access.items() if v}),
    )
    return [lambda daemon: Flannel(daemon, chosen)]
