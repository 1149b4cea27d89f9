"""Puts the repository's README files and raw results into the documentation site."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "runtime/README.md",
    "runtime/JETSON.md",
    "export/README.md",
    "export/mosrt_export/nano/README.md",
    "calibration/README.md",
    "benchmarks/README.md",
    "benchmarks/RESULTS.md",
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds files at their path in the repository, so that links between them hold."""
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    for path in (*PAGES, *(str(result.relative_to(ROOT)) for result in results)):
        options: dict[str, Any] = {"abs_src_path": str(ROOT / path)}
        files.append(File.generated(config, path, **options))
    return files
