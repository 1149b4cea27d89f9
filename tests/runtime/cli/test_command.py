"""What all commands share: exit statuses, missing extras, options."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import mosrt
from mosrt.cli import main as cli_main
from mosrt.cli.command import (
    EXTRAS,
    CommandError,
    ExitStatus,
    exit_on_error,
    exit_statuses,
    model_option,
    output_option,
    require_extra,
)

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (mosrt.BundleError("gone"), 3),
        (mosrt.ProviderError("gone"), 3),
        (mosrt.AudioError("gone", flags=("empty",)), 3),
        (mosrt.PlanError("gone"), 2),
        (mosrt.MeasureError("gone"), 2),
        (mosrt.DomainError("gone", ("here",)), 2),
        (mosrt.CalibrationError("gone"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_have_a_status_and_one_line(error: BaseException, status: int) -> None:
    @click.command()
    @exit_on_error()
    def command() -> None:
        raise error

    result = CliRunner().invoke(command, [])
    assert result.exit_code == status
    assert len(result.stderr.splitlines()) == 1
    assert ("gone" in result.stderr) == isinstance(error, mosrt.MosrtError)


def test_other_errors_are_bugs_and_pass() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_error():
        raise ZeroDivisionError


@pytest.mark.parametrize(("signal", "status"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_a_signal_while_a_compiled_module_is_imported(signal: BaseException, status: int) -> None:
    @click.command()
    @exit_on_error()
    def command() -> None:
        try:
            raise ImportError("initialization failed") from signal
        except ImportError as exc:
            raise ImportError("numpy says what to install") from exc

    assert CliRunner().invoke(command, []).exit_code == status


def test_a_missing_module_names_its_extra() -> None:
    for extras, module, advice in (
        (("bench", "export"), "scipy.stats", "mosrt[bench]"),
        (("bench", "export"), "torch", "mosrt[export]"),
        (("train",), "torch", "mosrt[train]"),
    ):
        with pytest.raises(CommandError) as caught, require_extra(*extras):
            raise ImportError("no module", name=module)
        assert f"pip install '{advice}'" in caught.value.message
        assert caught.value.exit_code == ExitStatus.UNUSABLE
    with pytest.raises(ImportError, match="of our own"), require_extra("bench"):
        raise ImportError("of our own", name="mosrt_bench.nothing")


def test_extras_are_those_of_the_package() -> None:
    text = PYPROJECT.read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    lists = dict(
        re.findall(r"^(\w+) = \[(.*?)\](?: *#[^\n]*)?$", section, re.MULTILINE | re.DOTALL)
    )
    other_names = {"setuptools": "pkg_resources"}
    for extra, modules in EXTRAS.items():
        packages = re.findall(r'"([\w-]+)>=|"([\w-]+)<', lists[extra])
        names = {(a or b).replace("-", "_") for a, b in packages}
        if extra == "calibrate":
            names -= {"onnxruntime"}  # needs it newer; mosrt itself brings it
        inherited = EXTRAS["export"] if "mosrt[export]" in lists[extra] else frozenset()
        assert {other_names.get(name, name) for name in names} | inherited == modules, extra


def test_options() -> None:
    @click.command(epilog=exit_statuses("it is worse"))
    @model_option("What to score")
    @output_option("Where to write.", required=True)
    def command(model: str | None, output: Path) -> None:
        click.echo(f"{model} {output!r}")

    help_text = " ".join(CliRunner().invoke(command, ["--help"]).stdout.split())
    assert "What to score: the name of one that comes with mosrt" in help_text
    assert "1 it is worse, 2 wrong usage" in help_text
    given = CliRunner().invoke(command, ["-m", "x", "-o", "y"], env={"MOSRT_MODEL": "z"})
    assert given.stdout == f"x {Path('y')!r}\n"
    default = CliRunner().invoke(command, ["-o", "y"], env={"MOSRT_MODEL": "z"})
    assert default.stdout.startswith("z ")
    assert CliRunner().invoke(command, []).exit_code == 2


def test_help_lists_commands_whose_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_main, "find_spec", lambda _: None)
    lines = " ".join(CliRunner().invoke(cli_main.main, ["--help"]).stdout.split())
    for extra in ("bench", "export", "calibrate"):
        assert f"pip install 'mosrt[{extra}]'" in lines


def test_old_names_still_work_and_are_not_listed() -> None:
    listed = CliRunner().invoke(cli_main.main, ["--help"]).stdout.partition("Commands:")[2]
    for old, new in (("calibrate", "quantize"), ("calibrate-mos", "fit-mos")):
        assert CliRunner().invoke(cli_main.main, [old, "--help"]).exit_code == 0
        assert f"  {old} " not in listed
        assert f"  {new} " in listed
