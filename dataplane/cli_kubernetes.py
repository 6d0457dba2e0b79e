"""Options of `dataplane run` for the Kubernetes front door, and the door they ask for."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dataplane.daemon import Daemon

Command = Callable[..., Any]


def options(command: Command) -> Command:
    """Their values are the arguments of `doors`."""
    for option in (
        click.option(
            "--kubernetes-config",
            "kube_config",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            default="/etc/kube-flannel/net-conf.json",
            show_default=True,
            help="The overlay's config, as flannel has it.",
        ),
        click.option(
            "--node-name",
            "kube_node",
            envvar="NODE_NAME",
            metavar="NAME",
            help="What Kubernetes calls this node; default: the policy's name of it.",
        ),
        click.option(
            "--kubeconfig",
            "kube_file",
            metavar="FILE",
            help="Where the API server is; default: as a pod of the cluster is told.",
        ),
        click.option(
            "--kubernetes",
            "kube_wanted",
            is_flag=True,
            help="Be a node of a Kubernetes cluster: its overlay, services and policies.",
        ),
    ):
        command = option(command)
    return command


def doors(
    kube_wanted: bool, kube_file: str | None, kube_node: str | None, kube_config: str
) -> "list[Callable[[Daemon], AbstractContextManager[object]]]":
    """None where no cluster is asked for."""
    if not kube_wanted:
        if kube_file:
            raise click.UsageError("--kubeconfig needs --kubernetes")
        return []
    from pathlib import Path

    from dataplane.kubernetes import access
    from dataplane.kubernetes.door import Kubernetes, Options

    found = access.kubeconfig(kube_file) if kube_file else access.in_cluster()

    def door(daemon: "Daemon") -> AbstractContextManager[object]:
        chosen = Options(found, kube_node or daemon.policy.name, Path(kube_config))
        return Kubernetes(daemon, chosen)

    return [door]
