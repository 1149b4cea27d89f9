"""Puts the repository's README files, raw results and the help of the commands into the site."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mosrt.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
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
    "benchmarks/RESULTS.md",
    "benchmarks/mosrt_bench/REPORT.md",
)
COMMAND_LINE = "reference/cli.md"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds files at their path in the repository, so that links between them hold."""
    folder = ROOT / "benchmarks" / "results"
    results = sorted([*folder.glob("*.json"), *folder.glob("*.svg")])
    for path in (*PAGES, *(str(result.relative_to(ROOT)) for result in results)):
        options: dict[str, Any] = {"abs_src_path": str(ROOT / path)}
        files.append(File.generated(config, path, **options))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Appends the help of every command to the page of the command line."""
    if page.file.src_uri != COMMAND_LINE:
        return markdown
    return "\n".join(
        (markdown, *_help(main, click.Context(main, info_name="mosrt", **main.context_settings)))
    )


def _help(command: click.Command, context: click.Context) -> Iterator[str]:
    """A section for a command, and for each command below it that is not hidden."""
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from _help(found, click.Context(found, parent=context, info_name=name))
