"""Promises that the repository makes about itself."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("runtime", "export", "calibration", "benchmarks")
PACKAGES = ("mosrt", "mosrt_export", "mosrt_calibration", "mosrt_bench", "mosrt_studies")


def modules() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def package_of(path: Path) -> str:
    """The import package that a module belongs to; "tests" for tests."""
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] in FOLDERS else parts[0]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    last = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert last.startswith("python3 -m venv")
    assert f"\n{last}\n" in (ROOT / "README.md").read_text()


def test_only_packages_live_under_the_fixed_folders() -> None:
    for folder in FOLDERS:
        assert not list((ROOT / folder).glob("*.py")), folder


def test_a_module_and_a_folder_fit_in_one_reading() -> None:
    long = {path.name: n for path in modules() if (n := len(path.read_text().splitlines())) > 420}
    assert not long
    full = Counter(path.parent for path in modules() if path.name != "__init__.py")
    assert {str(folder): n for folder, n in full.items() if n > 14} == {}
    assert not [path for path in modules() if path.stem == "utils"]


def test_the_readme_fits_in_one_reading() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Modules of this project that a file imports from, with each name it takes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.level or node.module is None:
            continue
        if node.module.partition(".")[0] in PACKAGES:
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("folder", [*FOLDERS, "tests"])
def test_no_private_name_crosses_a_package(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {module}.{name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for module, name in imported(path)
        if module.partition(".")[0] != package_of(path)
        and any(re.match(r"_(?!_|arrays$)", part) for part in [*module.split("."), name])
    ]
    assert not found
