"""Promises that the repository makes about itself."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    last = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert last.startswith("python3 -m venv")
    assert f"\n{last}\n" in (ROOT / "README.md").read_text()


def test_only_packages_live_under_the_fixed_folders() -> None:
    for folder in ("runtime", "export", "calibration", "benchmarks"):
        assert not list((ROOT / folder).glob("*.py")), folder
