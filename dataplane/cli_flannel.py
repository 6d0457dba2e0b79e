"""Options of `dataplane run` for the flannel front door, and the door they ask for."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from logging import Logger

    from dataplane.daemon import Daemon
    from dataplane.model import Flannel as Section

Command = Callable[..., Any]

ACCESS = {  # flanneld's options of these names, and what they are of `Access`
    "--etcd-password": ("password", "Of that user; better in the environment."),
    "--etcd-username": ("username", "The user of etcd that this node is."),
    "--etcd-keyfile": ("key", "The key of that certificate."),
    "--etcd-certfile": ("cert", "This node's certificate, in PEM."),
    "--etcd-cafile": ("ca", "Whom a server's certificate has to be of, for https; in PEM."),
}


def access(command: Command) -> Command:
    """As whom etcd is asked: options of flanneld."""
    for name, (argument, told) in ACCESS.items():
        place = name.upper().replace("-", "_").lstrip("_")
        option = click.option(name, f"etcd_{argument}", envvar=f"FLANNELD_{place}", help=told)
        command = option(command)
    return command


def options(command: Command) -> Command:
    """Their values are the arguments of `doors`."""
    command = access(command)
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
    """Of the overlay that the options name; else of the one that the node's document names, if it
    does."""
    if flannel_urls is None and flannel_endpoints:
        raise click.UsageError("--flannel-endpoint needs --flannel")
    if not flannel_prefix.startswith("/"):
        raise click.UsageError("--flannel-prefix begins with a slash, as in /coreos.com/network")
    given = {name.removeprefix("etcd_"): value for name, value in access.items() if value}

    def door(daemon: "Daemon") -> AbstractContextManager[object]:
        from dataplane.flannel.access import Access
        from dataplane.flannel.door import Flannel, Options
        from dataplane.model import Endpoint, Tap

        def endpoint(text: str) -> Endpoint:
            name, _, netns = text.partition("@")
            return Endpoint(name=name, tap=Tap(name=name, netns=netns or None))

        urls, prefix, names, env = flannel_urls, flannel_prefix, flannel_endpoints, flannel_env
        own = dict(given)
        if urls is None:
            asked = daemon.committed.own.flannel
            daemon.on_commit.append(_Reminder(daemon, asked))
            if asked is None:
                _forget(daemon)
                return nullcontext()
            urls, prefix, names, env = (
                ",".join(asked.etcd),
                asked.prefix,
                asked.endpoints,
                asked.env,
            )
            own |= {k: v for k in ("ca", "cert", "key", "username") if (v := getattr(asked, k))}
        chosen = Options(
            tuple(url.strip() for url in urls.split(",")),
            prefix.rstrip("/"),
            tuple(map(endpoint, names)),
            Path(env) if env else None,
            access=Access(**own),
        )
        return Flannel(daemon, chosen)

    return [door]


def _forget(daemon: "Daemon") -> None:
    """Of an overlay that nobody names any more, nothing stays."""
    from dataplane.flannel.door import ORIGIN
    from dataplane.shares import Share

    if daemon.share(ORIGIN) != Share():
        daemon.contribute(ORIGIN, Share())
        _log().info("flannel: no overlay is named: what the node had of one is gone")


class _Reminder:
    """Says once that a changed section needs the node to begin anew. Called after each commit."""

    def __init__(self, daemon: "Daemon", asked: "Section | None") -> None:
        self._daemon, self._told = daemon, asked

    def __call__(self, _: object) -> None:
        asked = self._daemon.committed.own.flannel
        if asked != self._told:
            self._told = asked
            _log().warning(
                "flannel: the document names another overlay: `dataplane restart` takes it"
            )


def _log() -> "Logger":
    import logging  # other commands than `run` start without

    return logging.getLogger("dataplane")
