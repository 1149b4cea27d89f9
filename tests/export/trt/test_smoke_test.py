"""A GPU that TensorRT does not support is reported before engines are built."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mosrt.backends.cuda import Cuda
from mosrt.backends.trt_module import TensorRt
from mosrt_export.errors import EngineError
from mosrt_export.trt.builder import check_gpu
from tests.export.cli.test_build import run
from tests.fakes.cudart import FakeCudart

Answer = Callable[[], Any]


@pytest.fixture
def loading(rtx: TensorRt, monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """What TensorRT answers when it is to load an engine, after it was really built."""
    answers: list[Answer] = []
    # Else it would be built for a GPU of this machine, which may have none.
    monkeypatch.delattr(rtx.module, "ComputeCapability")

    def load(engine: memoryview) -> Any:
        assert len(engine) > 1000
        return answers.pop()()

    monkeypatch.setattr(
        rtx.module,
        "Runtime",
        lambda _: types.SimpleNamespace(deserialize_cuda_engine=load),
    )
    return answers


def fails() -> None:
    raise RuntimeError("no kernel image")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: None, "it logged no reason"),
        (lambda: types.SimpleNamespace(create_execution_context=lambda: None), "does not support"),
        (fails, "no kernel image"),
    ],
)
def test_what_does_not_load(
    rtx: TensorRt, loading: list[Answer], answer: Answer, words: str
) -> None:
    loading.append(answer)
    with pytest.raises(EngineError, match=rf"(?s)compute capability 9\.0; .*{words}"):
        check_gpu(rtx, "9.0")


def test_the_command_asks_first(
    rtx: TensorRt, loading: list[Answer], engine_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudart = FakeCudart(capability=(9, 0))
    monkeypatch.setattr(Cuda, "open", lambda: Cuda(cudart))
    arguments = ("nano", "--level", "0", "--opt-batch", "1")
    loading.append(lambda: None)
    refused = run(*arguments)
    assert refused.exit_code == 3
    assert f"{rtx} cannot run an engine on this GPU of compute capability 9.0" in refused.output
    assert "building" not in refused.output
    assert not (engine_cache / "engines").exists()
    loading.append(lambda: types.SimpleNamespace(create_execution_context=lambda: "a context"))
    assert run(*arguments).exit_code == 0
    assert run(*arguments, "--no-build").exit_code == 0  # and then not again


def test_the_real_library_answers(rtx: TensorRt) -> None:
    """Without a GPU in its own words, instead of with a crash."""
    try:
        check_gpu(rtx, "none")
    except EngineError as exc:
        assert "CUDA driver" in str(exc)
