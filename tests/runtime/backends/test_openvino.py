import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import mosrt
from mosrt.host.cpu import CpuFeatures
from tests.conftest import STANDINS
from tests.standins.resealed import resealed
from tests.standins.variants import with_int8

Waveform = npt.NDArray[np.float32]
UNCERTAIN = STANDINS / "tiny_wav2vec"


def test_without_the_package(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(mosrt.ProviderError, match=r"pip install 'mosrt\[openvino\]'"):
        mosrt.load(tiny, provider="openvino")


def test_bf16_needs_a_cpu_that_has_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = CpuFeatures(architecture="x86_64", flags=frozenset({"avx2"}))
    monkeypatch.setattr(CpuFeatures, "read", lambda: old)
    with pytest.raises(mosrt.ProviderError, match="no bfloat16 .* 'openvino-fp32'"):
        mosrt.load(tiny, provider="openvino-bf16")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, where OpenVINO is installed."""
    pytest.importorskip("openvino", reason="openvino is not installed: mosrt[openvino]")
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


needs_openvino = pytest.mark.usefixtures("kept")


@pytest.fixture(params=["openvino-fp32", "openvino-bf16"])
def provider(request: pytest.FixtureRequest, kept: Path) -> str:
    assert not kept.exists()
    if request.param == "openvino-bf16" and CpuFeatures.read().bf16 is None:
        pytest.skip("this CPU has no bfloat16 instructions")
    return str(request.param)


def test_scores_are_those_of_onnx_runtime(
    provider: str, tiny: Path, speech: Waveform, kept: Path
) -> None:
    with (
        mosrt.load(tiny, provider="cpu", threads=1) as reference,
        mosrt.load(tiny, provider=provider, threads=1) as scorer,
    ):
        score = scorer.score(speech, 16_000)
        assert scorer.provider == score.provider == provider
        # float32 differs by the order of its sums; bfloat16 has 8 bits of significand, and the
        # scores are between 3 and 4.
        tolerance = 1e-5 if provider == "openvino-fp32" else 4 * 2.0**-8
        np.testing.assert_allclose(
            score.views, reference.score(speech, 16_000).views, rtol=0, atol=tolerance
        )
        exact = scorer.features(speech, 16_000)
        assert {name: array.dtype for name, array in exact.items()} == dict.fromkeys(
            ("mos", "ssl_features", "spec_features"), np.dtype(np.float32)
        )
    assert kept.exists()


@needs_openvino
def test_the_shorter_name_is_one_of_the_longer(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = CpuFeatures.read()
    with mosrt.load(tiny, provider="openvino", threads=1) as scorer:
        assert scorer.provider == ("openvino-bf16" if found.bf16 else "openvino-fp32")
    old = CpuFeatures(architecture="x86_64", flags=frozenset({"avx2"}))
    monkeypatch.setattr(CpuFeatures, "read", lambda: old)
    with mosrt.load(tiny, provider="openvino", threads=1) as scorer:
        assert scorer.provider == "openvino-fp32"


def test_the_same_every_time(provider: str, tiny: Path, clips: list[Path], kept: Path) -> None:
    """Alone or in a batch, from many threads, after a restart, with and without the cache."""
    options = {"provider": provider, "threads": 1}
    with mosrt.load(tiny, cache=False, **options) as scorer:  # type: ignore[arg-type]
        alone = [scorer.score_file(clip).views for clip in clips[:2]]
        scorer.batch_size = 2
        many = scorer.score_many([clips[i] for i in (1, 0)])
        assert [score.views for score in many] == [alone[1], alone[0]]
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(scorer.score_file, clip) for clip in clips[:2] * 2]
            assert [future.result().views for future in futures] == alone * 2
    assert not kept.exists()
    for _ in ("made", "read"):
        with mosrt.load(tiny, **options) as scorer:  # type: ignore[arg-type]
            assert [scorer.score_file(clip).views for clip in clips[:2]] == alone
    assert len(list(kept.iterdir())) == 2  # networks


def test_results_belong_to_the_caller(provider: str, tiny: Path, speech: Waveform) -> None:
    with mosrt.load(tiny, provider=provider, threads=1) as scorer:
        first = scorer.features(speech, 16_000)
        copies = {name: array.copy() for name, array in first.items()}
        scorer.features(speech[::-1].copy(), 16_000)
        for name, array in first.items():
            np.testing.assert_array_equal(array, copies[name])


def test_a_damaged_blob_is_made_again(tiny: Path, speech: Waveform, kept: Path) -> None:
    def views() -> tuple[float, ...]:
        with mosrt.load(tiny, provider="openvino-fp32", threads=1) as scorer:
            return scorer.score(speech, 16_000).views

    good = views()
    for blob in kept.rglob("compiled.blob"):
        blob.write_bytes(blob.read_bytes()[:1000])
    assert views() == good
    assert all(blob.stat().st_size > 1000 for blob in kept.rglob("compiled.blob"))


def test_int8_graphs(provider: str, tiny: Path, tmp_path: Path, speech: Waveform) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: it makes the int8 graph")
    bundle = with_int8(tiny, tmp_path / "bundle")
    with mosrt.load(bundle, provider="cpu", threads=1) as exact:
        reference = exact.score(speech, 16_000).mos
    with mosrt.load(bundle, variant="int8-cpu", provider=provider, threads=1) as scorer:
        scores = [scorer.score(speech, 16_000) for _ in range(2)]
    assert scores[0].views == scores[1].views
    assert (scores[0].variant, scores[0].provider) == ("int8-cpu", provider)
    # 8 bits of a range of about 4 are steps of 0.016, and some quantised layers follow each other.
    assert scores[0].mos == pytest.approx(reference, abs=0.1)


@needs_openvino
def test_models_of_any_length(speech: Waveform) -> None:
    """Graphs of an uncertainty model take chunks of any length."""
    with (
        mosrt.load(UNCERTAIN, provider="cpu", threads=1) as reference,
        mosrt.load(UNCERTAIN, provider="openvino-fp32", threads=1) as scorer,
    ):
        for length in (8_000, 20_001, 8_000):
            exact = reference.score(speech[:length], 16_000).measures
            found = scorer.score(speech[:length], 16_000).measures
            assert list(found) == list(exact)
            # Means over rows of logits of float32 sums in another order.
            np.testing.assert_allclose(
                list(found.values()), list(exact.values()), rtol=1e-4, atol=1e-5
            )


@needs_openvino
def test_a_damaged_graph_is_named(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    model = copy / "model.fold0.fp32.onnx"
    model.write_bytes(bytes(model.stat().st_size))
    with pytest.raises(mosrt.BundleError, match="fold0.fp32.onnx: OpenVINO .* cannot load it"):
        mosrt.load(resealed(copy), provider="openvino-fp32")
