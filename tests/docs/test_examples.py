"""Runs the examples of the documents, and checks the commands and paths they show.

A `python` block is run; if a block without a language follows, it is the output. Each line of a
`console` block that starts with `$ ` is run, and the lines below it are the output. Commands in
`sh` blocks and in running text are parsed, not run: they may need a GPU, torch or other files.
"""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import mosrt
from mosrt.cli.main import main
from mosrt_export.nano.cli import nano
from tests.conftest import DATA

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "runtime/README.md",
    "runtime/MODELS.md",
    "runtime/JETSON.md",
    "runtime/HTTP.md",
    "runtime/MONITORING.md",
    "runtime/SERVING.md",
    "export/README.md",
    "export/DISTILL.md",
    "export/mosrt_export/nano/README.md",
    "calibration/README.md",
    "benchmarks/README.md",
    "benchmarks/ADAPT.md",
)
REFERENCE = ROOT / "runtime" / "docs" / "reference"
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


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    found = []
    for document in DOCUMENTS:
        text = read(document)
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


def shown() -> Iterator[str]:
    """Every line of code in the documents, of blocks and of running text, without comments."""
    for document in DOCUMENTS:
        text = re.sub(r" *\\\n *", " ", read(document))
        fenced = BLOCK.findall(text)
        indented = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
        inline = re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
        for line in (
            *(line for _, body, _ in fenced for line in body.splitlines()),
            *indented,
            *inline,
        ):
            yield re.sub(r"^(?:\$ |Exec\w+=/\S+/)|\s+#.*$", "", line).strip()


def commands() -> list[str]:
    """Every command line of mosrt that a document shows."""
    pattern = re.compile(r"mosrt [a-z][^.]|python -m mosrt_export\.nano ")
    return sorted({line for line in shown() if pattern.match(line) and "…" not in line})


def parse(command: click.Command, arguments: list[str], line: str) -> None:
    """Fails unless `command` takes `arguments`; files need not exist."""
    context = click.Context(command, info_name="mosrt")
    while isinstance(command, click.Group):
        if not arguments:  # `mosrt bench` in running text names a group
            return
        found = command.get_command(context, arguments.pop(0))
        assert found is not None, line
        command, context = found, click.Context(found, parent=context, info_name=found.name)
    if not arguments:  # the name of a command in running text
        return
    values, extra, _ = command.make_parser(context).parse_args(list(arguments))
    taken = [p for p in command.params if isinstance(p, click.Argument)]
    assert not extra or any(p.nargs == -1 for p in taken), f"{line}: unexpected {extra}"
    for parameter in command.params:
        value = values.get(parameter.name)
        if parameter.required:
            assert value not in (None, ()), f"{line}: {parameter.name} is missing"
        if isinstance(parameter.type, click.Choice) and isinstance(value, str | list):
            for item in [value] if isinstance(value, str) else value:
                parameter.type.convert(item, parameter, context)


@pytest.mark.parametrize("line", commands(), ids=str)
def test_command_lines_are_valid(line: str) -> None:
    """No document shows a command or an option that does not exist."""
    program, *arguments = shlex.split(line)
    if program == "python":
        parse(nano, arguments[2:], line)
    else:
        parse(main, arguments, line)


def test_modules_exist() -> None:
    """Each `python -m MODULE` names a module."""
    names = {match for line in shown() for match in re.findall(r"python -m (mosrt[\w.]*)", line)}
    assert names
    for name in names:
        assert importlib.util.find_spec(name) is not None, name


def test_paths_of_the_contributors_guide_exist() -> None:
    """Each path in CONTRIBUTING.md that names no placeholder is there."""
    paths = re.findall(
        r"`((?:runtime|export|calibration|benchmarks|tests)/[^`]*)`", read("CONTRIBUTING.md")
    )
    assert len(paths) > 20
    missing = [
        path for path in paths if not re.search("[A-Z]{3}", path) and not (ROOT / path).exists()
    ]
    assert not missing


def test_every_public_name_has_its_place_in_the_reference() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    documented = set(re.findall(r"^::: mosrt\.(\w+)$", pages, re.MULTILINE))
    assert documented == {name for name in mosrt.__all__ if name != "__version__"}


def test_examples_are_found() -> None:
    assert len(commands()) > 20
    assert len(blocks("python")) >= 4
    assert len(blocks("console")) >= 2
