"""The manual page, made of the commands' own help: `dataplane man`."""

from collections.abc import Iterator

import click

WIDTH = 78
EXAMPLES = (
    ("prove what documents expect, without root", "dataplane check policies/*.yaml"),
    (
        "forward as node a of a document",
        "dataplane run two-hosts.yaml --node a --state /var/lib/dp",
    ),
    ("change its policy while it forwards", "dataplane apply -f policy.yaml"),
    ("ask why a packet is dropped", "dataplane trace 'tcp 10.1.1.2:40000 > 10.1.2.2:22 syn'"),
    ("look at what is dropped, reasons and all", "dataplane capture --point drop | tshark -r -"),
    ("find out what is wrong", "dataplane doctor"),
)
FILES = (
    ("/run/dataplane/NODE.sock", "control API of a node, HTTP and JSON, mode 0600"),
    ("DIRECTORY/policy.json", "what a node run with --state DIRECTORY has committed last"),
    ("/dev/net/tun", "where TAPs come from"),
)
ENVIRONMENT = (
    ("DATAPLANE_OFFLOAD, DATAPLANE_XDP, DATAPLANE_WORKERS, DATAPLANE_LOG", "options of run"),
    ("DATAPLANE_SOCKET", "control socket that commands ask, instead of --socket"),
    ("NO_COLOR", "no colours on the screen"),
)


def page(group: click.Group, exit_codes: str) -> str:
    """In roff, as man(1) reads it."""
    return "\n".join(_lines(group, exit_codes)) + "\n"


def _lines(group: click.Group, exit_codes: str) -> Iterator[str]:
    with click.Context(group, info_name="dataplane", terminal_width=WIDTH) as context:
        yield '.TH DATAPLANE 1 "" "dataplane" "User commands"'
        yield from (".SH NAME", f"dataplane \\- {_escaped(_first_line(group))}")
        yield from (".SH SYNOPSIS", ".B dataplane", "[\\-h] COMMAND [OPTIONS] [ARGUMENTS]")
        yield ".SH COMMANDS"
        yield from _commands(group, context)
    yield ".SH EXAMPLES"
    for means, words in EXAMPLES:
        yield from (".TP", _escaped(means), f".B {_escaped(words)}")
    for title, entries in (("FILES", FILES), ("ENVIRONMENT", ENVIRONMENT)):
        yield f".SH {title}"
        for name, means in entries:
            yield from _entry(name, means)
    yield ".SH EXIT STATUS"
    for line in exit_codes.splitlines():
        number, _, means = line.strip().partition(" ")
        if number.isdecimal():
            yield from _entry(number, means.strip())


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        with click.Context(command, context, name, terminal_width=WIDTH) as inner:
            if isinstance(command, click.Group):
                yield from _commands(command, inner)
                continue
            words = " ".join(command.collect_usage_pieces(inner))
            yield f".SS {_escaped(f'{inner.command_path} {words}')}"
            yield from _paragraphs(command.help or "")
            for parameter in command.params:
                record = parameter.get_help_record(inner)
                if record is not None:
                    yield from _entry(*record)


def _entry(name: str, means: str) -> Iterator[str]:
    yield from (".TP", f".B {_escaped(name)}", _escaped(means) or "\\&")


def _paragraphs(text: str) -> Iterator[str]:
    """What click is told not to wrap is left as it is."""
    for paragraph in text.strip().split("\n\n"):
        lines = [line.strip("\b") for line in paragraph.splitlines()]
        if paragraph.lstrip().startswith("\b"):
            yield from (".PP", ".nf", *map(_escaped, filter(None, lines)), ".fi")
        else:
            yield from (".PP", _escaped(" ".join(line.strip() for line in lines)))


def _first_line(group: click.Group) -> str:
    return (group.help or "").strip().splitlines()[0].rstrip(".")


def _escaped(text: str) -> str:
    escaped = " ".join(text.split()) if "\n" in text else text
    escaped = escaped.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
