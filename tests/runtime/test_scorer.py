import io
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import mosrt
from mosrt import CropPlan, Score, Scorer
from tests.conftest import STANDINS, UTMOSV2_MEL, noise
from tests.runtime.mel.test_front_end import librosa_images

Waveform = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with mosrt.load(STANDINS / "tiny", threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def alone(scorer: Scorer, clips: list[Path]) -> list[Score]:
    """The score of each clip, by itself."""
    return [scorer.score_file(clip) for clip in clips]


@pytest.fixture(scope="module")
def random_plan(scorer: Scorer, clips: list[Path]) -> list[Score]:
    """The scores of the first four clips with the random crops of the reference."""
    return [scorer.score_file(clip, plan="reference:3") for clip in clips[:4]]


def same(a: Score, b: Score) -> bool:
    """Equal in everything but timings."""
    left, right = a.to_dict(), b.to_dict()
    del left["timings_ms"], right["timings_ms"]
    return json.dumps(left) == json.dumps(right)


def test_equals_a_derivation_from_the_parts(scorer: Scorer, tiny: Path, speech: Waveform) -> None:
    """The whole path against librosa images and ONNX Runtime called directly."""
    plan = CropPlan(
        np.array([1_000, 30_000]),
        np.array([[0, 40_000], [9_999, 70_000]]),
        np.array([[[5, 6, 7, 8], [9, 10, 11, 12]], [[50_000, 6, 7, 8], [9, 10, 11, 12]]]),
        np.linspace(0, 1, 16).reshape(2, 2, 4),
    )
    assert plan.mix_starts is not None
    assert plan.mix_lambdas is not None
    weights = torch_free_resize(701, 512)
    expected = []
    for view in range(2):
        crop = speech[plan.ssl_starts[view] :][:48_000].astype(np.float64)
        waveform = (crop - crop.mean()) / np.sqrt(crop.var() + 1e-7)
        images = []
        for c in range(2):
            own = librosa_images(speech[plan.spec_starts[view, c] :][:22_400], UTMOSV2_MEL)
            for w, window in enumerate(UTMOSV2_MEL.windows):
                other = speech[plan.mix_starts[view, c, w] :][:22_400]
                mixed = librosa_images(other, replace(UTMOSV2_MEL, windows=(window,)))[window]
                weight = plan.mix_lambdas[view, c, w]
                images.append((weight * own[window] + (1 - weight) * mixed) @ weights)
        feeds = {
            "waveform": waveform[None].astype(np.float32),
            "images": np.stack(images)[None].astype(np.float32),
        }
        for fold in range(2):
            session = onnxruntime.InferenceSession(tiny / f"model.fold{fold}.fp32.onnx")
            expected.append((fold, view, session.run(["mos"], feeds)[0][0, 1]))
    got = scorer.score(speech, 16_000, plan=plan)
    values = [value for _, _, value in sorted(expected)]
    # The networks are smooth, and images agree to 1e-5.
    np.testing.assert_allclose(got.views, values, atol=2e-5)
    assert got.mos == pytest.approx(np.mean(got.views), abs=1e-12)
    assert got.n_views == 4
    assert got.windows == ((0.0, 62_400 / 16_000), (9_999 / 16_000, 92_400 / 16_000))


def torch_free_resize(n_in: int, n_out: int) -> npt.NDArray[np.float64]:
    """Antialiased bilinear resize as a matrix, by scipy: triangles sampled at pixel centres."""
    from scipy.interpolate import BSpline

    scale = n_in / n_out
    triangle = BSpline.basis_element([-scale, 0, scale], extrapolate=False)
    distance = (np.arange(n_in)[:, None] + 0.5) - (np.arange(n_out) + 0.5) * scale
    kernel = np.nan_to_num(triangle(distance))
    weights: npt.NDArray[np.float64] = kernel / kernel.sum(axis=0)
    return weights


def test_files_and_arrays_score_alike(
    scorer: Scorer, clips: list[Path], alone: list[Score]
) -> None:
    for clip, by_file in zip(clips, alone, strict=True):
        waveform, rate_hz = soundfile.read(clip, dtype="float32", always_2d=True)
        assert same(by_file, scorer.score(waveform.T, rate_hz))
        assert same(by_file, scorer.score_file(clip.read_bytes()))
        assert by_file.flags == ()
        assert by_file.low < by_file.mos < by_file.high
        assert by_file.duration_s == pytest.approx(len(waveform) / rate_hz)
        assert set(by_file.timings_ms) == {"decode", "resample", "front_end", "model"}
        assert all(ms >= 0 for ms in by_file.timings_ms.values())


def test_integers_equal_floats(scorer: Scorer, speech: Waveform) -> None:
    integers = (speech * 32_767).astype(np.int16)
    floats = integers.astype(np.float64) / 32_768
    assert same(scorer.score(integers, 16_000), scorer.score(floats, 16_000))
    wide = integers.astype(np.int32) << 16
    assert same(scorer.score(integers, 16_000), scorer.score(wide, 16_000))


@settings(max_examples=4)
@given(
    order=st.permutations(range(4)),
    batch_size=st.integers(1, 8),
    plan=st.sampled_from(["grid", "reference:3"]),
)
def test_batches_and_orders_change_nothing(
    scorer: Scorer, clips: list[Path], alone: list[Score], random_plan: list[Score],
    order: list[int], batch_size: int, plan: str,
) -> None:  # fmt: skip
    expected = alone if plan == "grid" else random_plan
    scorer.batch_size = batch_size
    many = scorer.score_many([clips[i] for i in order], plan=plan)
    assert all(same(score, expected[i]) for score, i in zip(many, order, strict=True))


def test_many_threads_share_a_scorer(scorer: Scorer, clips: list[Path], alone: list[Score]) -> None:
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(scorer.score_many, [clip]) for clip in clips * 2]
        for future, expected in zip(futures, alone * 2, strict=True):
            assert same(future.result()[0], expected)


@pytest.mark.parametrize("threads", [1, 3, 5])
def test_thread_counts_agree(tiny: Path, scorer: Scorer, clips: list[Path], threads: int) -> None:
    with mosrt.load(tiny, threads=threads) as other:
        assert other.score_file(clips[0]).mos == pytest.approx(
            scorer.score_file(clips[0]).mos, abs=1e-5
        )


ONE_THREAD_SCRIPT = """
import time
import numpy as np
import mosrt

clip = np.random.default_rng(0).standard_normal(80_000) / 10
with mosrt.load({bundle!r}, threads=1) as scorer:
    scorer.score(clip, 16_000)
    process, thread = time.process_time(), time.thread_time()
    for _ in range(3):
        scorer.score(clip, 16_000)
    print(time.process_time() - process, time.thread_time() - thread)
"""


def test_one_thread_means_one(tiny: Path) -> None:
    """With threads=1, front end and model together spend all their time in the caller's thread."""
    script = ONE_THREAD_SCRIPT.format(bundle=str(tiny))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    process_s, thread_s = map(float, run.stdout.split())
    assert process_s <= 1.05 * thread_s


def test_domains(scorer: Scorer, speech: Waveform) -> None:
    south = scorer.score(speech, 16_000)
    assert tuple(south.domains) == scorer.domains == ("north", "south", "east")
    for name, mos in south.domains.items():
        score = scorer.score(speech, 16_000, domain=name)
        assert (score.domain, score.mos, score.domains) == (name, mos, south.domains)
    assert same(south, scorer.score(speech, 16_000, domain="south"))
    assert len(set(south.domains.values())) == 3
    with pytest.raises(mosrt.DomainError, match="'west'; known: north, south, east"):
        scorer.score(speech, 16_000, domain="west")
    with pytest.raises(mosrt.DomainError, match="'all'"):
        scorer.iter_scores([(speech, 16_000)], domain="all")


def test_views(scorer: Scorer, speech: Waveform) -> None:
    item = (speech, 16_000)
    five = scorer.score(*item, views=5)
    assert five.n_views == 10  # of two networks
    assert same(five, scorer.score(*item, plan=CropPlan.grid(len(speech), 5)))
    assert same(five, scorer.score(*item, views=5, plan="grid"))
    assert same(five, scorer.score_many([item], views=5)[0])
    assert same(five, next(scorer.iter_scores([item], views=5)))
    for plan in ("paper", "reference:1", CropPlan.grid(len(speech)), mosrt.PlanRule(views=2)):
        with pytest.raises(mosrt.PlanError, match="plan 'grid'"):
            scorer.score(*item, views=5, plan=plan)
    with pytest.raises(mosrt.PlanError, match="from 1 to 10000"):
        scorer.score(*item, views=0)


def test_binary_file_objects(scorer: Scorer, clips: list[Path], alone: list[Score]) -> None:
    with clips[0].open("rb") as stream:
        assert same(scorer.score_file(stream), alone[0])
    behind = io.BytesIO(b"other bytes" + clips[1].read_bytes())
    behind.seek(len(b"other bytes"))
    assert same(scorer.score_many([behind])[0], alone[1])
    with pytest.raises(TypeError, match="binary mode"), clips[0].open() as text:
        scorer.score_file(text)  # type: ignore[arg-type]


def test_a_broken_file_object_is_unreadable(scorer: Scorer) -> None:
    class Broken(io.BytesIO):
        def read(self, _: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    assert scorer.score_file(Broken()).flags == ("unreadable",)
    assert scorer.score_file(io.BytesIO()).flags == ("unreadable",)


def test_iter_scores_is_lazy(tiny: Path, clips: list[Path], alone: list[Score]) -> None:
    taken = []

    def items() -> Iterator[Path]:
        for clip in clips * 3:
            taken.append(clip)
            yield clip

    with mosrt.load(tiny, threads=2, batch_size=2) as scorer:
        scores = scorer.iter_scores(items())
        assert taken == []
        for i in range(4):
            assert same(next(scores), alone[i])
            assert len(taken) <= i + 2
        with pytest.raises(mosrt.DomainError):  # at once, not at the first score
            scorer.iter_scores([], domain="west")


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 48_000])
@pytest.mark.parametrize("duration_s", [0.3, 1.4, 2.0, 3.0, 5.3])
def test_windows_lie_in_the_recording(scorer: Scorer, rate_hz: int, duration_s: float) -> None:
    """Short clips are repeated until a crop is full; windows say what of them was read."""
    score = scorer.score(noise(round(duration_s * rate_hz)), rate_hz, plan="reference:2")
    ((first, last),) = score.windows
    assert 0 <= first < last <= score.duration_s
    if duration_s <= 3.0:  # the waveform crop takes three seconds, so all of it
        assert first == 0
        assert last == pytest.approx(score.duration_s, abs=1 / 16_000)
    else:
        assert last - first >= 3.0


def test_features(scorer: Scorer, speech: Waveform) -> None:
    plan = CropPlan.grid(len(speech), 3)
    features = scorer.features(speech, 16_000, plan=plan)
    assert {name: array.shape for name, array in features.items()} == {
        "mos": (2, 3, 3), "ssl_features": (2, 3, 6), "spec_features": (2, 3, 6),
    }  # fmt: skip
    score = scorer.score(speech, 16_000, plan=plan)
    np.testing.assert_array_equal(score.views, features["mos"][:, :, 1].ravel())


def test_plans_are_checked(scorer: Scorer, speech: Waveform) -> None:
    with pytest.raises(mosrt.PlanError, match="at the latest"):
        scorer.score(speech[:50_000], 16_000, plan=CropPlan.grid(len(speech)))
    with pytest.raises(mosrt.PlanError, match="unknown plan"):
        scorer.score(speech, 16_000, plan="spiral")


@settings(max_examples=80)
@given(
    waveform=st.one_of(
        st.lists(st.floats(width=32), max_size=50).map(lambda v: np.array(v, np.float32)),
        st.integers(0, 70_000).map(np.zeros),
        st.tuples(st.integers(0, 3), st.integers(0, 20_000)).map(lambda s: np.ones(s, np.int16)),
        st.integers(0, 2**32 - 1).map(
            lambda s: np.random.default_rng(s).uniform(-1, 1, s % 20_000)
        ),
        st.just(np.array(["a"])),
    ),
    rate_hz=st.one_of(st.integers(-10, 400_000), st.floats(), st.sampled_from([8_000, 16_000])),
)
def test_nothing_else_crashes(
    scorer: Scorer, waveform: npt.NDArray[np.float32], rate_hz: float
) -> None:
    score = scorer.score(waveform, rate_hz)
    assert math.isfinite(score.mos) == bool(score.n_views)
    assert score.flags or math.isfinite(score.mos)


def test_policies(tiny: Path, speech: Waveform, caplog: pytest.LogCaptureFixture) -> None:
    clipped = np.clip(speech * 100, -1, 1)
    empty = speech[:0]
    with mosrt.load(tiny, on_bad_audio="warn") as warn, caplog.at_level(logging.WARNING):
        flagged, failed = warn.score_many([(clipped, 16_000), (empty, 16_000)])
        assert flagged.flags == ("clipped",)
        assert math.isfinite(flagged.mos)
        assert failed.flags == ("empty",)
        assert math.isnan(failed.mos)
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    caplog.clear()
    with mosrt.load(tiny, on_bad_audio="nan") as nan:
        scores = nan.score_many([(clipped, 16_000), (empty, 16_000), (speech, 16_000)])
        assert [math.isnan(score.mos) for score in scores] == [True, True, False]
        assert [score.flags for score in scores] == [("clipped",), ("empty",), ()]
        assert not caplog.records
    with mosrt.load(tiny, on_bad_audio="error") as error:
        with pytest.raises(mosrt.AudioError, match="full scale") as caught:
            error.score(clipped, 16_000)
        assert caught.value.flags == ("clipped",)
        with pytest.raises(mosrt.AudioError, match="no samples"):
            error.score(empty, 16_000)


def test_silence_removal(tiny: Path, speech: Waveform) -> None:
    gap = np.concatenate([speech, np.zeros(16_000, np.float32), speech])
    with mosrt.load(tiny, remove_silence=True) as removing, mosrt.load(tiny) as keeping:
        assert removing.score(gap, 16_000).windows[-1][1] < 12.1
        assert keeping.score(gap, 16_000).windows[-1][1] == 13.0
        assert removing.score(speech / 100, 16_000).flags == ("quiet",)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threads": 0}, ValueError, "threads must be from 1 to 1024"),
        ({"batch_size": 0}, ValueError, "batch_size must be from 1 to 4096"),
        ({"on_bad_audio": "shrug"}, ValueError, "'warn', 'nan' or 'error'"),
        ({"provider": "abacus"}, mosrt.ProviderError, "known: auto, cpu, cuda"),
    ],
)
def test_options_are_checked(
    tiny: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mosrt.load(tiny, **options)  # type: ignore[arg-type]


def test_a_missing_provider_is_an_error(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(mosrt.ProviderError, match="'cuda' is not in the installed onnxruntime"):
        mosrt.load(tiny, provider="cuda")


def test_a_silent_fallback_is_an_error(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime replaces a provider that cannot start by the CPU without a word."""
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    session = onnxruntime.InferenceSession

    def falls_back(
        path: os.PathLike[str], options: object, providers: list[Any], **_: object
    ) -> object:
        names = [entry if isinstance(entry, str) else entry[0] for entry in providers]
        assert names == both[:1] or names == both[1:]
        return session(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    with pytest.raises(mosrt.ProviderError, match="'cuda' could not start"):
        mosrt.load(tiny, provider="cuda")
    with mosrt.load(tiny, provider="auto") as scorer:
        assert scorer.provider == "cpu"
