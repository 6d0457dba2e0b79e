"""The manual page agrees with the commands, and every command answers as scripts want it."""

import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dataplane import manual
from dataplane.cli import EXIT_CODES, cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "dataplane.1"
# These print what is no table: a document, a page, a packet file, or nothing at all.
NO_JSON = {
    *("run", "demo", "schema", "man", "completion"),
    *("capture", "bundle", "ui", "graph", "bench", "hns export", "cni install"),
}


def commands(group: click.Group = cli, above: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} ")
        else:
            yield above + name, command


def test_the_page_is_of_these_commands() -> None:
    assert PAGE.read_text() == manual.page(cli, EXIT_CODES), "dataplane man > docs/dataplane.1"
    assert CliRunner().invoke(cli, ["man"]).output == PAGE.read_text()


def test_the_page_has_every_command_and_option() -> None:
    text = PAGE.read_text().replace("\\-", "-")
    for name, command in commands():
        assert f".SS dataplane {name}" in text and command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert all(word in text for word in parameter.opts)


def test_groff_has_nothing_to_complain_of() -> None:
    if not shutil.which("groff"):
        pytest.skip("groff is not installed")
    words = ["groff", "-man", "-Tutf8", "-ww", "-z", str(PAGE)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stderr == ""


@pytest.mark.parametrize("name", sorted({name for name, _ in commands()} - NO_JSON))
def test_every_command_can_answer_in_json(name: str) -> None:
    options = {option for p in dict(commands())[name].params for option in p.opts}
    assert "-o" in options


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0 and "_DATAPLANE_COMPLETE" in done.output


def test_every_command_of_a_node_has_its_function() -> None:
    """They are named in text, so that `--help` imports none of them."""
    package = PAGE.parent.parent / "dataplane"
    text = "".join(file.read_text() for file in package.glob("cli*.py"))
    named = set(re.findall(r'\b(?:call\(|_vfp\("[\w-]+",)\s*"(\w+)\.(\w+)"', text))
    assert len(named) > 20
    for module, function in named:
        assert callable(getattr(importlib.import_module(f"dataplane.verbs.{module}"), function))
