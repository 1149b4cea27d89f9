import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import mosrt

HEAVY = (
    "torch", "transformers", "timm", "onnx", "tensorrt", "openvino", "librosa", "scipy",
    "starlette", "uvicorn", "prometheus_client",
)  # fmt: skip


def test_import_is_light() -> None:
    code = f"import sys, mosrt, mosrt.cli.main; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert run.stdout == "[]\n"
    assert run.stderr == ""


def test_a_start_imports_no_engine_that_it_does_not_run() -> None:
    code = "import sys, mosrt; mosrt.load().close(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert "mosrt.mos.scorer" in loaded
    others = ("mosrt.backends.openvino", "mosrt.backends.trt", "mosrt.uncertainty.scorer")
    assert not set(others) & set(loaded)


def test_public_names_exist_and_are_documented() -> None:
    assert len(set(mosrt.__all__)) == len(mosrt.__all__)
    for name in mosrt.__all__:
        value = getattr(mosrt, name)
        assert name == "__version__" or value.__doc__, name
    public = {
        name
        for name in dir(mosrt)
        if not name.startswith("_") and not inspect.ismodule(getattr(mosrt, name))
    }
    assert public == set(mosrt.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mosrt.nothing


def test_the_command_starts_before_what_takes_long_is_imported() -> None:
    """So that an interruption meanwhile ends as any other does."""
    code = (
        "import sys, mosrt.cli.main; print({'numpy', 'onnxruntime', 'soundfile'} & {*sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_every_module_says_what_it_exports() -> None:
    for module in pkgutil.walk_packages(mosrt.__path__, "mosrt."):
        loaded = importlib.import_module(module.name)
        assert loaded.__doc__, module.name
        for name in getattr(loaded, "__all__", ()):
            assert hasattr(loaded, name), (module.name, name)
