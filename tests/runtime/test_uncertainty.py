"""Models that score by their uncertainty: draws, pieces, short and long recordings, options."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
import scipy.stats
import soundfile
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import mosrt
from mosrt.audio import ArraySource
from mosrt.cli import main
from mosrt.draws import Draws
from mosrt.manifest import Manifest
from mosrt.measures import MEASURES, row_measures
from mosrt.recording import Recording
from mosrt.stretches import stretches

Waveform = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def bundle() -> Path:
    return Path(__file__).parents[1] / "data" / "tiny_wav2vec"


@pytest.fixture(scope="module")
def scorer(bundle: Path) -> Iterator[mosrt.Scorer]:
    with mosrt.load(bundle, threads=2) as loaded:
        yield loaded


def noise(n_samples: int) -> Waveform:
    return np.random.default_rng(n_samples).normal(0, 0.1, n_samples).astype(np.float32)


@given(st.integers(1, 30), st.integers(2, 40), st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_measures_equal_scipy(rows: int, columns: int, seed: int, scale: float) -> None:
    matrix = np.random.default_rng(seed).normal(0, scale, (rows, columns)).astype(np.float32)
    mean, std, largest, entropy = row_measures(matrix)
    wide = matrix.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=1), atol=1e-12 * scale)
    np.testing.assert_allclose(std, wide.std(axis=1, ddof=1), rtol=1e-9, atol=1e-12 * scale)
    np.testing.assert_array_equal(largest, wide.max(axis=1))
    expected = scipy.stats.entropy(scipy.special.softmax(wide, axis=1), axis=1)
    np.testing.assert_allclose(entropy, expected, rtol=1e-9, atol=1e-9)


def test_minus_infinity_counts_as_the_smallest_finite_logit() -> None:
    matrix = np.array([[0.0, -np.inf, 1.0], [2.0, -3.0, 5.0]])
    replaced = np.array([[0.0, -3.0, 1.0], [2.0, -3.0, 5.0]])
    np.testing.assert_array_equal(row_measures(matrix), row_measures(replaced))


def test_draws_are_pinned() -> None:
    """Raw PCG64 words, whose stream NumPy promises never to change."""
    words = np.random.PCG64(np.random.SeedSequence([7, 2])).random_raw(3)
    halves = [part for word in words.tolist() for part in (word & 0xFFFFFFFF, word >> 32)]
    assert Draws(7, 2).integers(1000, (6,)).tolist() == [half * 1000 >> 32 for half in halves]
    assert Draws(7, 3).integers(1000, (6,)).tolist() != Draws(7, 2).integers(1000, (6,)).tolist()
    assert Draws(7, 2).integers(9, (4, 5)).shape == (4, 5)


@given(st.integers(1, 12), st.integers(4, 300), st.integers(0, 99))
def test_negatives_as_the_published_model_draws_them(n: int, n_frames: int, seed: int) -> None:
    """Its rule again as a loop: own index by flat position // n, whatever copy it is."""
    drawn = Draws(seed, 0).integers(n_frames - 1, (n * n_frames,))
    expected = [i + 1 if i >= position // n else i for position, i in enumerate(drawn.tolist())]
    found = Draws(seed, 0).negatives(n, n_frames)
    assert found.ravel().tolist() == expected
    assert 0 <= found.min() <= found.max() < n_frames


@pytest.mark.parametrize("probability", [0.0, 0.42, 0.74, 1.0])
def test_dropout_keeps_what_it_says(probability: float) -> None:
    keep = Draws(0, 0).keep(probability, (50, 100, 20))
    assert keep.dtype == np.float32
    share = np.count_nonzero(keep == 0) / keep.size
    # Four standard deviations of a share of 100 000 draws.
    assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / keep.size)
    if probability < 1:
        np.testing.assert_allclose(keep[keep > 0], 1 / (1 - probability), rtol=1e-6)


@given(st.floats(0.01, 1), st.integers(1, 12), st.integers(3, 200), st.integers(0, 9))
def test_spans(probability: float, length: int, n_frames: int, seed: int) -> None:
    spans = Draws(seed, 0).spans(probability, length, n_frames)
    assert set(np.unique(spans).tolist()) == {0.0, 1.0}
    count = max(1, round(probability * n_frames / length))
    assert 1 <= spans.sum() <= count * length


@given(st.integers(465, 3_000_000), st.sampled_from([20_000, 320_000]), st.sampled_from([160, 320]))
def test_pieces_tile_the_frames(n_samples: int, window: int, hop: int) -> None:
    receptive = 465
    pieces = stretches(
        n_samples, window_samples=window, hop_samples=hop, receptive_samples=receptive
    )
    if n_samples <= window:
        assert pieces == [(0, n_samples)]
        return
    starts = [
        frame * hop
        for first, last in pieces
        for frame in range(first // hop, (last - receptive) // hop + 1)
    ]
    assert starts == list(range(0, n_samples - receptive + 1, hop))
    lengths = [last - first for first, last in pieces]
    assert max(lengths) <= window
    assert max(lengths) - min(lengths) <= hop
    # As few as can be: with one less, some piece would be longer than the window.
    frames = (n_samples - receptive) // hop + 1
    fewer = len(pieces) - 1
    assert not fewer or math.ceil(frames / fewer) > (window - receptive) // hop + 1


@settings(max_examples=20, deadline=None)
@given(st.integers(4_000, 60_000), st.booleans(), st.sampled_from([16_000, 22_050]))
def test_pieces_read_in_one_pass_equal_the_whole(
    n_samples: int, remove_silence: bool, rate_hz: int
) -> None:
    samples = noise(n_samples) * 4
    samples[1_000 : min(n_samples, 20_000) - 500] = 0.0
    whole = Recording(ArraySource(samples, rate_hz), 16_000, remove_silence=remove_silence)
    streamed = Recording(
        ArraySource(samples, rate_hz), 16_000, remove_silence=remove_silence, kept_s=0.0
    )
    bounds = stretches(
        whole.n_samples, window_samples=5_000, hop_samples=160, receptive_samples=465
    )
    for a, b in zip(whole.pieces(bounds), streamed.pieces(bounds), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("n_samples", "flags", "n_frames"),
    [(473, ("padded",), 1), (749, ("padded",), 2), (945, (), 4), (1_599, (), 8)],
)
def test_short_recordings(
    scorer: mosrt.Scorer, n_samples: int, flags: tuple[str, ...], n_frames: int
) -> None:
    """Under 750 samples as many zeros come first; the curve is that of the recording alone."""
    samples = noise(n_samples)
    score = scorer.score(samples, 16_000, frames=True)
    assert score.flags == flags
    assert len(score.frames) == n_frames
    heard = np.concatenate([np.zeros(n_samples, np.float32), samples]) if flags else samples
    assert score.measures == scorer.score(heard, 16_000).measures


@pytest.mark.parametrize("n_samples", [0, 472, 750, 944])
def test_too_short(bundle: Path, n_samples: int) -> None:
    with mosrt.load(bundle, on_bad_audio="nan") as scorer:
        score = scorer.score(noise(n_samples), 16_000)
        assert score.flags == (("too-short",) if n_samples else ("empty",))
        assert score.mos is None
        assert all(map(math.isnan, score.measures.values()))
    with mosrt.load(bundle, on_bad_audio="error") as strict:
        message = rf"it has {n_samples} samples at 16000 Hz.*needs 945" if n_samples else "no sam"
        with pytest.raises(mosrt.AudioError, match=message):
            strict.score(noise(n_samples), 16_000)


def test_a_long_recording_is_the_mean_of_its_pieces(scorer: mosrt.Scorer) -> None:
    samples = noise(47 * 16_000 + 123)
    score = scorer.score(samples, 16_000, frames=True)
    assert score.n_views == len(score.windows) == 3
    assert score.windows[0][0] == 0.0
    total, rows = np.zeros(4), 0
    curve: list[float] = []
    for start_s, end_s in score.windows:
        piece = samples[round(start_s * 16_000) : round(end_s * 16_000)]
        part = scorer.score(piece, 16_000, frames=True)
        assert part.n_views == 1
        n_frames = len(part.frames)
        n_rows = sum(n_frames - horizon for horizon in range(3, 15))
        total += n_rows * np.array([part.measures[f"dense.{name}"] for name in MEASURES])
        rows += n_rows
        curve += part.frames
    assert len(curve) == (len(samples) - 465) // 160 + 1
    np.testing.assert_allclose(np.array(score.frames), curve, rtol=1e-12)
    found = [score.measures[f"dense.{name}"] for name in MEASURES]
    np.testing.assert_allclose(found, total / rows, rtol=1e-12)


def test_horizons(scorer: mosrt.Scorer) -> None:
    score = scorer.score(noise(30_000), 16_000, horizons=True)
    n_frames = (30_000 - 465) // 160 + 1
    weights = [n_frames - horizon for horizon in range(3, 15)]
    for name in scorer.measures[1:]:
        parts = [score.measures[f"{name}@{horizon}"] for horizon in range(3, 15)]
        assert score.measures[name] == pytest.approx(np.average(parts, weights=weights), rel=1e-9)
    assert f"{name}@15" not in score.measures


def test_features(scorer: mosrt.Scorer) -> None:
    features = scorer.features(noise(16_000), 16_000)
    assert {name: values.shape for name, values in features.items()} == {"features": (98, 8)}
    with pytest.raises(mosrt.MeasureError, match="too long to be heard in one piece"):
        scorer.features(noise(21 * 16_000), 16_000)


def test_what_does_not_go_together(scorer: mosrt.Scorer, tiny: Path) -> None:
    with pytest.raises(mosrt.PlanError, match="hears all of every recording"):
        scorer.score(noise(16_000), 16_000, plan="reference:1")
    with mosrt.load(tiny) as fusion, pytest.raises(mosrt.MeasureError, match="predicts MOS"):
        fusion.score(noise(16_000), 16_000, frames=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure": "dense.mode"}, "'dense.mode' is none of paper.mean"),
        ({"sign": 0}, "must be 1 or -1"),
        ({"layouts": ["paper", "ctc"], "measure": "paper.mean"}, "must be some of paper"),
        ({"layouts": ["paper"], "measure": "paper.mean"}, "must have the graphs encoder, contrast"),
        ({"contrast": None}, "does not fit family 'wav2vec'"),
        ({"window_samples": 2_000}, "at most a quarter"),
        ({"seed": -1}, "must not be negative"),
    ],
)
def test_contradictions_in_a_manifest(
    bundle: Path, change: dict[str, object], message: str
) -> None:
    value = json.loads((bundle / "manifest.json").read_text())
    assert Manifest.from_dict(value).to_dict()["uncertainty"]["measure"] == "dense.entropy"
    value["uncertainty"] |= change
    with pytest.raises(mosrt.BundleError, match=message):
        Manifest.from_dict(value)


def test_command_line(bundle: Path, clips: list[Path], tmp_path: Path) -> None:
    command = ["score", *map(str, clips[:2]), "--model", str(bundle)]
    table = CliRunner().invoke(main, command)
    assert table.exit_code == 0
    with mosrt.load(bundle) as scorer:
        expected = [scorer.score_file(clip, frames=True) for clip in clips[:2]]
    lines = table.stdout.splitlines()
    assert "uncertainty" in lines[0]
    for line, score in zip(lines[1:], expected, strict=True):
        assert line.split()[2:5] == ["-", "-", f"{score.measures['uncertainty']:.3f}"]
    rows = CliRunner().invoke(main, [*command, "--format", "csv"]).stdout.splitlines()
    assert rows[0].endswith("provider,uncertainty," + ",".join(list(expected[0].measures)[1:]))
    assert float(rows[1].split(",")[-1]) == expected[0].measures["dense.entropy"]
    lines = (
        CliRunner()
        .invoke(main, [*command, "--format", "jsonl", "--frames", "--horizons"])
        .stdout.splitlines()
    )
    found = json.loads(lines[1])
    assert found["mos"] is None
    assert found["frames"][3:] == list(expected[1].frames[3:])
    assert "dense.entropy@14" in found["measures"]
    facts = CliRunner().invoke(main, ["info", str(bundle)]).stdout
    assert "dense.entropy; layouts paper, contrastive, dense; seed 0" in facts
    refused = CliRunner().invoke(main, [*command, "--plot", str(tmp_path / "both.png")])
    assert refused.exit_code == 2


def test_plot(bundle: Path, clips: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "clip.png"
    command = ["score", str(clips[0]), "--model", str(bundle), "--plot", str(target)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert target.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [target]


def test_calibration(bundle: Path, tmp_path: Path) -> None:
    """Rated noise of rising level: MOS afterwards, from Python and the command line alike."""
    model = tmp_path / "model"
    model.mkdir()
    for file in bundle.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    with mosrt.load(bundle) as scorer:
        found = []
        for i in range(9):
            soundfile.write(tmp_path / f"{i}.wav", noise(16_000 + 500 * i), 16_000)
            found.append(scorer.score_file(tmp_path / f"{i}.wav").measures["uncertainty"])
    order = np.argsort(np.argsort(found))
    lines = [f"{i}.wav,{4.5 - 0.4 * order[i]}" for i in range(9)]
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("\n".join(["path,mos", *lines, "missing.wav,3"]))
    command = ["calibrate-mos", str(ratings), "--model", str(model), "--description", "noise"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "missing.wav cannot be scored" in result.output
    assert "from 9 recordings; leave-one-out error 0." in result.output
    with mosrt.load(model) as scorer:
        for i in range(9):
            score = scorer.score_file(tmp_path / f"{i}.wav")
            assert score.mos == pytest.approx(4.5 - 0.4 * order[i])
        stored = scorer.manifest.uncertainty
    assert stored is not None
    assert stored.mos_map is not None
    assert stored.mos_map.description == "noise"
    again = CliRunner().invoke(main, [*command, "--kind", "linear"])
    assert again.exit_code == 0
    ratings.write_text("file,score\n")
    assert CliRunner().invoke(main, command).exit_code == 2
    tiny = bundle.parent / "tiny"
    ratings.write_text("\n".join(["path,mos", *lines]))
    refused = CliRunner().invoke(main, ["calibrate-mos", str(ratings), "--model", str(tiny)])
    assert refused.exit_code == 3


# VmHWM is this process's own peak; ru_maxrss starts at that of the process it was forked from
LONG_SCRIPT = """
import sys
import numpy as np, soundfile
import mosrt
def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
path, bundle, minutes = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = np.random.default_rng(0)
with soundfile.SoundFile(path, "w", 16_000, 1, subtype="PCM_16") as file:
    for _ in range(minutes):
        file.write(rng.normal(0, 0.1, 60 * 16_000))
with mosrt.load(bundle, threads=1) as scorer:
    scorer.score(np.ones(320_000) * rng.normal(0, 0.1, 320_000), 16_000)
    before = peak_bytes()
    score = scorer.score_file(path)
    after = peak_bytes()
print(score.n_views, before, after)
"""


def run_long(path: Path, bundle: Path, minutes: int) -> list[int]:
    script = [sys.executable, "-c", LONG_SCRIPT, str(path), str(bundle), str(minutes)]
    run = subprocess.run(script, capture_output=True, check=True, text=True)
    return [int(number) for number in run.stdout.split()]


def paper_only(bundle: Path, out: Path) -> Path:
    """The bundle without what takes time for every pair of frames."""
    out.mkdir()
    value = json.loads((bundle / "manifest.json").read_text())
    value["uncertainty"] |= {"layouts": ["paper"], "measure": "paper.entropy"}
    value["variants"]["fp32"]["members"].pop()
    (out / "manifest.json").write_text(json.dumps(value))
    for file in bundle.glob("*.onnx*"):
        (out / file.name).write_bytes(file.read_bytes())
    return out


def test_long_audio_needs_no_more_memory_than_a_piece(bundle: Path, tmp_path: Path) -> None:
    """Beyond ten minutes recordings are not kept: what ten minutes take is all that is added."""
    model = paper_only(bundle, tmp_path / "model")
    n_pieces, before, after = run_long(tmp_path / "long.wav", model, 15)
    assert n_pieces == 46
    ten_minutes = 600 * 16_000 * 4
    assert after - before < 2.5 * ten_minutes


@pytest.mark.full
def test_an_hour(bundle: Path, tmp_path: Path) -> None:
    """With every layout; the model here is tiny, so that this is the runtime's own need."""
    n_pieces, _, peak = run_long(tmp_path / "hour.wav", bundle, 60)
    assert n_pieces == 181
    assert peak < 0.6e9


@settings(max_examples=40, deadline=None)
@given(
    waveform=st.one_of(
        st.integers(0, 3_000).map(np.zeros),
        st.tuples(st.integers(0, 2), st.integers(0, 3_000)).map(lambda s: np.ones(s, np.int16)),
        st.tuples(st.integers(0, 3_000), st.sampled_from([1e-30, 1.0, 1e25])).map(
            lambda s: np.random.default_rng(s[0]).normal(0, s[1], s[0])
        ),
        st.just(np.array(["a"])),
    ),
    rate_hz=st.sampled_from([0, 8_000, 16_000, 44_100]),
)
def test_whatever_comes_in_gives_figures_or_flags(
    scorer: mosrt.Scorer, waveform: npt.NDArray[np.float64], rate_hz: int
) -> None:
    score = scorer.score(waveform, rate_hz)
    finite = [math.isfinite(value) for value in score.measures.values()]
    assert all(finite) if score.n_views else not any(finite)
    assert score.flags or score.n_views


def test_many_threads_share_a_scorer(scorer: mosrt.Scorer, clips: list[Path]) -> None:
    alone = [scorer.score_file(clip).measures for clip in clips[:4]]
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(lambda c: scorer.score_file(c).measures, c) for c in clips[:4] * 2]
    together = [future.result() for future in futures]
    assert together == alone * 2
