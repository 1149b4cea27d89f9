"""ONNX Runtime's optimised graphs in the cache, with the tiny model as a large one."""

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import mosrt
from mosrt.backends import ort
from mosrt.host.cache import Cache
from mosrt.host.files import sha256_of
from tests.standins.resealed import resealed
from tests.standins.variants import with_int8


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, and no model too small for it."""
    monkeypatch.setattr(ort, "WORTH_CACHING_BYTES", 0)
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def views(bundle: Path, speech: npt.NDArray[np.float32], **options: object) -> tuple[float, ...]:
    with mosrt.load(bundle, provider="cpu", threads=1, **options) as scorer:  # type: ignore[arg-type]
        return scorer.score(speech, 16_000).views


def files(kept: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in kept.rglob("*.onnx*")}


def test_scores_are_those_without_a_cache(
    tiny: Path, speech: npt.NDArray[np.float32], kept: Path
) -> None:
    alone = views(tiny, speech, cache=False)
    assert not kept.exists()
    first = views(tiny, speech)
    made = files(kept)
    assert len(list(kept.iterdir())) == 2  # networks
    second = views(tiny, speech)
    assert alone == first == second
    assert files(kept) == made


def test_int8_scores_are_those_without_a_cache(
    tiny: Path, tmp_path: Path, speech: npt.NDArray[np.float32], kept: Path
) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: it makes the int8 graph")
    bundle = with_int8(tiny, tmp_path / "bundle")
    alone = views(bundle, speech, variant="int8-cpu", cache=False)
    assert alone == views(bundle, speech, variant="int8-cpu")
    assert alone == views(bundle, speech, variant="int8-cpu")
    assert alone != views(bundle, speech)  # it is int8
    assert len(list(kept.iterdir())) == 4


def test_small_models_need_none(
    tiny: Path, speech: npt.NDArray[np.float32], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("MOSRT_CACHE", str(kept))
    views(tiny, speech)
    assert not kept.exists()


def test_a_graph_that_ort_refuses_is_made_again(
    tiny: Path, speech: npt.NDArray[np.float32], kept: Path
) -> None:
    good = views(tiny, speech)
    for graph in kept.rglob("*.onnx"):
        (entry,) = graph.parent.glob("entry.json")
        before = sha256_of(graph)
        graph.write_bytes(b"\0" * graph.stat().st_size)
        text = entry.read_text().replace(before, sha256_of(graph))
        entry.write_text(text)  # as if it had been written like this
    assert views(tiny, speech) == good
    assert all(graph.read_bytes().strip(b"\0") for graph in kept.rglob("*.onnx"))


def test_another_onnxruntime_makes_its_own(
    tiny: Path, speech: npt.NDArray[np.float32], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = views(tiny, speech)
    made = files(kept)
    monkeypatch.setattr("onnxruntime.__version__", "0.0.1")
    assert views(tiny, speech) == good
    assert set(files(kept)) == set(made)
    assert all(files(kept)[path] != made[path] for path in made)


def test_a_damaged_bundle_is_still_named(tiny: Path, tmp_path: Path, kept: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    model = copy / "model.fold0.fp32.onnx"
    model.write_bytes(bytes(model.stat().st_size))
    with pytest.raises(mosrt.BundleError, match="fold0.fp32.onnx: ONNX Runtime .* cannot load it"):
        mosrt.load(resealed(copy), provider="cpu")
    assert list(kept.iterdir()) == []


def test_a_gpu_has_no_use_for_it(tiny: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs optimised for the CPU would keep a GPU from its own."""
    used: list[object] = []
    monkeypatch.setattr(Cache, "get", lambda *_, **__: used.append(1))
    monkeypatch.setattr(
        "onnxruntime.get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    with pytest.raises(mosrt.ProviderError, match="'cuda'"):
        mosrt.load(tiny, provider="cuda")
    assert not used
    assert not kept.exists()
