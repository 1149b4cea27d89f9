"""GPU providers of ONNX Runtime: what is asked of it, and binding, which the CPU has as well."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import mosrt
from mosrt.backends.ort import BoundSession, load_cuda_libraries

NANO = Path(mosrt.__file__).parent / "models" / "nano" / "model.fp32.onnx"
CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


@pytest.fixture(scope="module")
def session() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(NANO, options, providers=[CPU])


def test_binding_gives_what_a_plain_run_gives(session: Any) -> None:
    bound = BoundSession(session, "cpu")
    rng = np.random.default_rng(0)
    kept = []
    for n in (1, 1, 2, 1):  # the same shape again, another, and back
        images = rng.random((n, 2, 120, 501), np.float32)
        before = images.copy()
        names = ["spec_features", "mos"]
        found = bound.run(names, {"images": images})
        for one, other in zip(found, session.run(names, {"images": images}), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(images, before)
        kept.append((found[1], found[1].copy()))
    for result, copy in kept:  # later runs did not write into earlier results
        np.testing.assert_array_equal(result, copy)


def test_threads_do_not_share_a_binding(session: Any) -> None:
    bound = BoundSession(session, "cpu")
    images = np.random.default_rng(0).random((6, 1, 2, 120, 501), np.float32)
    wanted = [session.run(["mos"], {"images": each})[0] for each in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: bound.run(["mos"], {"images": images[i % 6]}), range(18)))
    for i, each in enumerate(found):
        np.testing.assert_array_equal(each[0], wanted[i % 6])


@pytest.mark.parametrize("provider", ["cuda", "tensorrt-ep"])
def test_options_that_keep_scores_the_same(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, provider: str
) -> None:
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    asked: list[Any] = []
    plain = onnxruntime.InferenceSession

    def remembers(
        path: os.PathLike[str], options: object, providers: list[Any], **_: object
    ) -> object:
        asked.append(providers)
        return plain(path, options, providers=[CPU])

    monkeypatch.setattr(onnxruntime, "InferenceSession", remembers)
    looked: list[str] = []
    monkeypatch.setattr(mosrt.backends.ort, "load_cuda_libraries", lambda: looked.append(provider))
    with pytest.raises(mosrt.ProviderError, match="could not start.*needs an NVIDIA GPU"):
        mosrt.load(tiny, provider=provider)
    assert looked == [provider]
    (chain,) = asked
    names = [name for name, _ in chain]
    assert names == ([CUDA] if provider == "cuda" else [TENSORRT, CUDA])
    # TF32 would round a float32 graph, and a race of algorithms may end differently next time.
    assert dict(chain)[CUDA] == {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    if provider == "tensorrt-ep":
        kept = dict(chain)[TENSORRT]
        assert kept["trt_engine_cache_enable"] == kept["trt_timing_cache_enable"] == "1"
        directory = Path(kept["trt_engine_cache_path"])
        assert directory.is_dir()
        assert directory.is_relative_to(tmp_path / "tensorrt-ep")


def test_missing_providers_are_errors(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    for provider in ("cuda", "tensorrt-ep"):
        with pytest.raises(mosrt.ProviderError, match=f"{provider!r} is not in the installed"):
            mosrt.load(tiny, provider=provider)


def test_cuda_in_python_packages_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system's loader does not look there; ONNX Runtime looks beside itself only."""
    for name in ("one/nvidia/cu13/lib", "two/nvidia/cudnn/lib", "two/nvidia/cudnn/include"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr("sys.path", [str(tmp_path / "one"), str(tmp_path / "two")])
    looked: list[str | None] = []

    def preload(*, directory: str | None = None) -> None:
        looked.append(directory and Path(directory).relative_to(tmp_path).as_posix())
        sys.stdout.write("Failed to load libcublas")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    load_cuda_libraries()
    assert looked == ["one/nvidia/cu13/lib", "two/nvidia/cudnn/lib", None]
    assert capsys.readouterr().out == ""  # where scores go
    monkeypatch.delattr(onnxruntime, "preload_dlls")  # as before version 1.21
    load_cuda_libraries()
