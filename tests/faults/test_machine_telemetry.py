"""mosrt never calls home, and neither do the engines that it imports."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANG_S

from .machines import CLIP

CLI = "import sys; from mosrt.cli.main import main; main(sys.argv[1:])"
SCORE = f"mosrt.load(cache=False).score_file({str(CLIP)!r})"

ENTRIES = {
    "library": f"import mosrt; {SCORE}",
    "command": f"import sys; sys.argv[1:] = ['score', {str(CLIP)!r}]; {CLI}",
    "worker": "import mosrt_bench.worker.mosrt_runner",
    "calibration": "import mosrt_calibration.ranges.collector",
    "recipe": "import mosrt_export.distill.teachers",
    "study": "import mosrt_studies.accuracy.scorers",
    "openvino": "import mosrt; mosrt.load(provider='openvino-fp32', cache=False)",
}


def run(code: str, home: Path, *before: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    environment = {
        **kept,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "MOSRT_CACHE": str(home / "mosrt"),
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }
    command = [*before, sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)


def traces(*arguments: str) -> bool:
    """Whether strace is here and may trace."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", *arguments, "true"], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "entry",
    [pytest.param(entry, marks=[pytest.mark.full] * (entry == "study")) for entry in ENTRIES],
)
def test_no_file_appears(entry: str, tmp_path: Path) -> None:
    module = {
        "calibration": "onnx",
        "openvino": "openvino",
        "worker": "psutil",
        "recipe": "torch",
        "study": "torch",
    }.get(entry)
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}")
    done = run(ENTRIES[entry], tmp_path)
    assert done.returncode == 0, done.stderr
    assert [str(path) for path in tmp_path.rglob("*")] == []


@pytest.mark.skipif(not traces("-f", "-e", "trace=network"), reason="needs strace")
@pytest.mark.parametrize("entry", ["command", "openvino"])
def test_no_name_is_looked_up_and_nothing_is_connected_to(entry: str, tmp_path: Path) -> None:
    if entry == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("needs openvino")
    log = tmp_path / "log"
    home = tmp_path / "home"
    home.mkdir()
    strace = ("strace", "-f", "-e", "trace=network,openat", "-o", str(log))
    done = run(ENTRIES[entry], home, *strace)
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert any(str(CLIP) in call for call in calls) or entry == "openvino"
    net = ("socket(", "connect(", "sendto(", "sendmsg(", "resolv.conf", "/etc/hosts")
    assert [call for call in calls if any(mark in call for mark in net)] == []


def test_a_program_that_imported_onnxruntime_first_gets_its_switch_turned() -> None:
    code = (
        "import onnxruntime; calls = []\n"
        "onnxruntime.disable_telemetry_events = lambda: calls.append(1)\n"
        "import mosrt; print(calls)"
    )
    for value, expected in (("1", "[1]\n"), ("0", "[]\n")):
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": value}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.stdout == expected, done.stderr


def test_nothing_else_is_set_at_import(tmp_path: Path) -> None:
    """No variable of threads, and no choice of the user's is changed."""
    code = (
        "import os; before = dict(os.environ); import mosrt, mosrt.cli.main, mosrt_bench, "
        "mosrt_export, mosrt_calibration; after = dict(os.environ); "
        "print({k: v for k, v in after.items() if before.get(k) != v})"
    )
    assert run(code, tmp_path).stdout == "{'ORT_DISABLE_TELEMETRY': '1'}\n"
    assert run(code, tmp_path, ORT_DISABLE_TELEMETRY="0").stdout == "{}\n"


def test_telemetry_of_openvino_is_hidden_from_its_import_only(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = (
        "import sys, mosrt; mosrt.load(provider='openvino-fp32', cache=False); "
        "print('openvino_telemetry' in sys.modules)"
    )
    assert run(code, tmp_path).stdout == "False\n"
