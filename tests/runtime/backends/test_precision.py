"""Providers that compute float32 with fewer bits: said, and refused where scores would be wrong."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

import mosrt
from mosrt.backends.precision import exact_provider

TENSORRT, CPU = "TensorrtExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def taking_audio(tiny: Path, tmp_path: Path) -> Path:
    """A bundle whose manifest says that the front end is in the graph."""
    bundle = tmp_path / "audio"
    shutil.copytree(tiny, bundle)
    facts = json.loads((bundle / "manifest.json").read_text())
    facts["front_end"] = "graph"
    facts["mel"]["tensor"] = "crops"
    facts["inputs"][1] = {"name": "crops", "dtype": "float32", "shape": ["batch", 2, 22_400]}
    (bundle / "manifest.json").write_text(json.dumps(facts))
    return bundle


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the folders that ONNX Runtime is told to keep TensorRT's engines in."""
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CPU])
    plain = onnxruntime.InferenceSession
    found: list[str] = []

    def on_the_cpu(
        path: os.PathLike[str], options: object, providers: list[Any], **_: object
    ) -> object:
        found.append(Path(providers[0][1]["trt_engine_cache_path"]).name)
        return plain(path, options, providers=[CPU])

    monkeypatch.setattr(onnxruntime, "InferenceSession", on_the_cpu)
    return found


def test_tf32_is_told_of(
    tiny: Path,
    folders: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And an engine that was built with it is not used where it is off."""
    for value, told in (("1", True), ("0", False)):
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(mosrt.ProviderError, match="not start"),
        ):
            mosrt.load(tiny, provider="tensorrt-ep")
        assert ("NVIDIA_TF32_OVERRIDE=0 before Python starts" in caplog.text) == told
    coarse, exact = folders
    assert coarse == f"{exact}-tf32"


def test_a_front_end_in_the_graph_needs_all_bits(
    taking_audio: Path, folders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        mosrt.ProviderError, match=r"TF32.*OVERRIDE=0.*or a model .* --frontend numpy"
    ):
        mosrt.load(taking_audio, provider="tensorrt-ep")
    with pytest.raises(mosrt.ProviderError, match=r"bfloat16.*'openvino-fp32', or a model"):
        mosrt.load(taking_audio, provider="openvino-bf16")
    assert folders == []
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with pytest.raises(mosrt.ProviderError, match="could not start"):  # it comes as far as that
        mosrt.load(taking_audio, provider="tensorrt-ep")
    assert len(folders) == 1


@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt", "openvino-fp32"])
def test_exact_providers_stay(provider: str) -> None:
    assert exact_provider("graph", provider) == exact_provider("numpy", provider) == provider


def test_openvino_is_exact_where_it_must_be() -> None:
    """By itself it takes bfloat16 where the CPU is fast at it."""
    assert exact_provider("graph", "openvino") == "openvino-fp32"
    assert exact_provider("numpy", "openvino") == "openvino"
    assert exact_provider("numpy", "openvino-bf16") == "openvino-bf16"
