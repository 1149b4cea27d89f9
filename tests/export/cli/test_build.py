"""`mosrt build`, with TensorRT-RTX, which needs no GPU to build."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mosrt.backends.engine_file import EngineFiles
from mosrt.backends.trt_module import TensorRt
from mosrt_export.cli.build import build

pytestmark = pytest.mark.usefixtures("engine_cache")


def run(*args: str) -> Result:
    return CliRunner().invoke(build, args, catch_exceptions=False)


def test_an_ensemble_builds(rtx: TensorRt, tiny: Path, tmp_path: Path) -> None:
    """Of family "fusion", with two inputs, from a zip."""
    path = shutil.make_archive(str(tmp_path / "bundle"), "zip", tiny)
    result = run(path, "--level", "0", "--opt-batch", "1")
    assert result.exit_code == 0, result.output
    assert result.output.count("building ") == 2
    assert run(path, "--level", "0", "--opt-batch", "1", "--no-build").exit_code == 0
    assert rtx.name in result.output


def test_the_command_builds_once(rtx: TensorRt, engine_cache: Path, tmp_path: Path) -> None:
    quick = ["nano", "--level", "0", "--opt-batch", "2"]
    refused = run(*quick, "--no-build")
    assert refused.exit_code == 1
    assert "no usable engine of nano" in refused.output
    assert "it is missing" in refused.output
    first = run(*quick, "--output", str(tmp_path / "out"))
    assert first.exit_code == 0
    assert "building nano with TensorRT-RTX" in first.output
    (engine,) = (engine_cache / "engines").glob("*.engine")
    content = engine.read_bytes()
    # The plain engine is the file without the two lines in front.
    plain = (tmp_path / "out" / "model.fp32.engine").read_bytes()
    assert content.endswith(plain)
    header = json.loads(content.splitlines()[1])
    assert header["engine_bytes"] == len(plain)
    assert header["profile"]["images"] == [[n, 2, 120, 501] for n in (1, 2, 2)]
    assert header["module"] == rtx.name
    again = run(*quick)
    assert again.exit_code == 0
    assert "building" not in again.output
    assert engine.read_bytes() == content
    # A damaged one is refused, and then built anew.
    engine.write_bytes(content[:-1])
    assert "bytes" in run(*quick, "--no-build").output
    assert "building" in run(*quick).output
    assert run(*quick, "--no-build").exit_code == 0
    # So is one that was built elsewhere and has come by this one's name,
    files = EngineFiles()
    with files.opened(engine) as (found, _):
        other = dataclasses.replace(found.key.target, compute_capability="8.6")
        foreign = dataclasses.replace(found.key, target=other)
    files.write(foreign, b"an engine", {"level": 0}).replace(engine)
    assert "it was built for" in run(*quick, "--no-build").output
    assert "building" in run(*quick).output
    assert run(*quick, "--no-build").exit_code == 0
    # and one that was built with other settings.
    harder = run("nano", "--level", "1", "--opt-batch", "2", "--no-build")
    assert harder.exit_code == 1
    assert "it was built with {'level': 0" in harder.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nowhere"], "no such bundle"),
        (["nano", "--variant", "fp8"], "no variant 'fp8'; it has: fp32"),
        (["nano", "--max-seconds", "3"], "leave --max-seconds out"),
        (["nano", "--min-batch", "3", "--max-batch", "2"], "do not ascend"),
        (["nano-uncertainty", "--opt-batch", "2"], "one recording at a time"),
    ],
)
def test_options_that_do_not_fit(options: list[str], words: str) -> None:
    result = run(*options)
    assert result.exit_code == 3
    assert words in result.output


def test_without_tensorrt_the_command_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run("nano")
    assert result.exit_code == 3
    assert "JetPack" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_building_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnx_ir')))\n"
        "from mosrt_export.cli.build import build\n"
        "build(['nano', '--no-build'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode in (1, 3)
    assert "no usable engine of nano" in found.stderr or "TensorRT is missing" in found.stderr
