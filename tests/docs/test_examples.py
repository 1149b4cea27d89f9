"""Runs the examples of the documents, and checks the options of every command they show.

A `python` block is run; if a block without a language follows, it is the output. Each line of a
`console` block that starts with `$ ` is run, and the lines below it are its output. Commands in
`sh` blocks are parsed, not run: they may need a GPU, torch or files that are not here.
"""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from mosrt.cli.main import main
from tests.conftest import DATA

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "runtime/README.md",
    "runtime/JETSON.md",
    "export/README.md",
    "calibration/README.md",
    "benchmarks/README.md",
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$\n*(?:^```\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    document: str
    line: int
    language: str
    text: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            language, body, output = match.groups()
            if language in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(Block(document, line, language, body, output))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that examples read."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(DATA / "flite_slt_16k_mono.wav", folder / "speech.wav")
    (folder / "clips").mkdir()
    shutil.copy(DATA / "espeak_en_22k_mono.flac", folder / "clips" / "a.flac")
    shutil.copy(DATA / "flite_kal_8k_mono.wav", folder / "clips" / "b.wav")
    return folder


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python(block: Block, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    if block.output is not None:
        assert done.stdout == block.output


@pytest.mark.parametrize("block", blocks("console"), ids=str)
def test_console(block: Block, folder: Path) -> None:
    for command in filter(None, re.split(r"^\$ ", block.text, flags=re.MULTILINE)):
        line, _, output = command.partition("\n")
        program, *arguments = shlex.split(line)
        assert program == "mosrt"
        done = subprocess.run(
            [sys.executable, "-c", "from mosrt.cli.main import main; main()", *arguments],
            capture_output=True,
            text=True,
            cwd=folder,
        )
        assert done.returncode == 0, done.stderr
        if output:
            assert done.stdout == output


def commands() -> list[str]:
    """Every `mosrt …` command line that a document shows, in blocks and in running text."""
    found = set()
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8").replace(" \\\n", " ")
        shown = re.findall(r"^(?:\$ |Exec\w+=/\S+/)?(mosrt [a-z].*)$", text, re.MULTILINE)
        shown += re.findall(r"`(mosrt [a-z-]+ [^`]*)`", text)
        found |= {re.sub(r"\s+#.*", "", command).strip() for command in shown}
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_options_exist(command: str) -> None:
    """No document shows a command or an option that does not exist."""
    _, *arguments = shlex.split(command)
    group: click.Command = main
    context = click.Context(main, info_name="mosrt")
    while isinstance(group, click.Group):
        found = group.get_command(context, arguments.pop(0))
        assert found is not None, command
        group, context = found, click.Context(found, parent=context, info_name=found.name)
    options = {name for p in group.params if isinstance(p, click.Option) for name in p.opts}
    options |= {name for p in group.params for name in p.secondary_opts} | {"--help"}
    used = {word for word in arguments if re.match(r"-", word) and word != "-"}
    assert used <= options, f"{command}: {sorted(used - options)}"


def test_commands_are_found() -> None:
    assert len(commands()) > 20
    assert len(blocks("python")) >= 4
    assert len(blocks("console")) >= 2
