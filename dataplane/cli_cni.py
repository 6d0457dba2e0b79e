"""The command `cni`: its plugin, where container runtimes look for it."""

import click


@click.group()
def cni() -> None:
    """The CNI plugin, by which container runtimes ask a running node for interfaces."""


@cni.command()
@click.argument("directory", type=click.Path(), default="/opt/cni/bin")
def install(directory: str) -> None:
    """Put the plugin, as `dataplane`, into DIRECTORY (default: /opt/cni/bin)."""
    from dataplane.cni.install import install as put

    click.echo(put(directory))


def register(cli: click.Group, epilog: str) -> None:
    for command in (cni, install):
        command.epilog = epilog
    cli.add_command(cni)
