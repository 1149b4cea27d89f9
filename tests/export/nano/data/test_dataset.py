"""Tests the chunks on disk, labels, resumption, and the utterances that clips are made of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from mosrt_export.nano.data import clips, dataset
from mosrt_export.nano.data.clips import CLIP_SAMPLES, RUNGS, Clip
from mosrt_export.nano.data.dataset import (
    LABELS,
    Dataset,
    DatasetError,
    Labeller,
    Recipe,
    build_pool,
    generate,
    load_pool,
    make_chunk,
    record_recipe,
)
from mosrt_export.nano.data.degradations import DEGRADATIONS
from mosrt_export.nano.data.teachers import fidelity
from mosrt_export.nano.data.voices import VoiceError, held_out_file
from tests.standins.nano import small_pool, speech, voice

SIZE = 3  # clips per chunk in these tests


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "CHUNK_CLIPS", SIZE)


def write_chunk(folder: Path, chunk: int) -> dict[str, Any]:
    rng = np.random.default_rng(chunk)
    labels = rng.uniform(1, 5, (SIZE, len(LABELS))).astype(np.float32)
    labels[1, 2] = np.nan
    arrays: dict[str, Any] = {
        "waveforms": rng.integers(-9, 9, (SIZE, CLIP_SAMPLES)).astype(np.int16),
        "labels": labels,
        "notes": np.array([f"voice{chunk}|clean|0.00{i}" for i in range(SIZE)]),
    }
    dataset.save_arrays(dataset.chunk_path(folder, chunk, ladders=False), **arrays)
    return arrays


def test_chunks_are_read_in_order(tmp_path: Path) -> None:
    written = {chunk: write_chunk(tmp_path, chunk) for chunk in (10, 2, 0)}
    found = Dataset(tmp_path)
    assert len(found) == 3 * SIZE
    for i, chunk in enumerate((0, 2, 10)):
        rows = slice(i * SIZE, (i + 1) * SIZE)
        np.testing.assert_array_equal(found.waveforms[rows], written[chunk]["waveforms"])
        np.testing.assert_array_equal(found.labels[rows], written[chunk]["labels"])
        assert found.notes[rows] == list(written[chunk]["notes"])
    assert found.waveforms.dtype == np.int16
    assert found.labels.dtype == np.float32
    assert np.isnan(found.labels[1, 2])


def test_no_chunks_no_data(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DatasetError, match="run `generate`"):
            Dataset(folder)


def test_the_digest_tells_data_apart(tmp_path: Path) -> None:
    for chunk in range(2):
        write_chunk(tmp_path, chunk)
    found = Dataset(tmp_path)
    whole = found.waveforms.tobytes() + found.labels.tobytes()
    assert found.digest() == Dataset(tmp_path).digest() == hashlib.sha256(whole).hexdigest()
    digests = {found.digest()}
    found.waveforms[-1, -1] += 1
    digests.add(found.digest())
    found.labels[0, 0] += 0.25
    digests.add(found.digest())
    assert len(digests) == 3


def test_writing_is_atomic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A write that fails leaves the old chunk, and no other."""
    write_chunk(tmp_path, 0)
    before = Dataset(tmp_path).digest()

    def breaks_off(file: Any, **_arrays: Any) -> None:
        file.write(b"half a chunk")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", breaks_off)
    for chunk in (0, 1):
        with pytest.raises(OSError, match="no space"):
            write_chunk(tmp_path, chunk)
    assert [path.name for path in tmp_path.glob("chunk-*")] == ["chunk-00000.npz"]
    assert Dataset(tmp_path).digest() == before


def test_existing_chunks_are_not_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_work(*_args: Any, **_options: Any) -> None:
        raise AssertionError("started a process")

    for chunk in range(3):
        write_chunk(tmp_path, chunk)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", no_work)
    recipe = Recipe(seed=0, teachers=tmp_path / "none")
    there = list(generate([], [], recipe, range(3), range(0), tmp_path, 1))
    assert [path.name for path in there] == [f"chunk-0000{i}.npz" for i in range(3)]
    for missing in ((range(4), range(0)), (range(3), range(1))):
        with pytest.raises(AssertionError, match="started a process"):
            list(generate([], [], recipe, *missing, tmp_path, 1))


@pytest.fixture
def labeller(monkeypatch: pytest.MonkeyPatch) -> Labeller:
    """Labels with the RMS level and the peak in place of the teachers' scores."""
    without_codec2 = {kind: change for kind, change in DEGRADATIONS.items() if kind != "codec2"}
    monkeypatch.setattr(clips, "DEGRADATIONS", without_codec2)
    return Labeller(small_pool(), lambda x: float(x.std()), lambda x: float(np.abs(x).max()))


def test_a_chunk_is_its_seed_and_number(labeller: Labeller, tmp_path: Path) -> None:
    names = {speaker.name for speaker in labeller.pool.voices}
    digests = []
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        recipe = Recipe(seed=seed, teachers=tmp_path)
        path = dataset.chunk_path(tmp_path / folder, 7, ladders=False)
        make_chunk(labeller, 7, recipe, path)
        found = Dataset(tmp_path / folder)
        digests.append(found.digest())
        assert len(found) == SIZE
        for note, row, waveform in zip(found.notes, found.labels, found.waveforms, strict=True):
            speaker, treatment, severity = note.split("|")
            assert speaker in names
            assert (treatment == "clean") == (float(severity) == 0)
            samples = waveform.astype(np.float64) / 32_768
            assert row[0] == pytest.approx(samples.std(), rel=1e-3)
            assert row[1] == pytest.approx(np.abs(samples).max(), rel=1e-6)
    assert digests[0] == digests[1] != digests[2]


def test_ladders_come_last(
    labeller: Labeller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of their clips have a fidelity, which falls with noise."""
    monkeypatch.setattr(dataset, "CHUNK_CLIPS", 2 * RUNGS)
    for table in ("RESYNTHESES", "DEGRADATIONS"):
        monkeypatch.setattr(clips, table, {"white noise": DEGRADATIONS["white noise"]})
    recipe = Recipe(seed=5, teachers=tmp_path)
    digests = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        path = dataset.chunk_path(folder, 1, ladders=True)
        make_chunk(labeller, 1, recipe, path, ladders=True)
        digests.append(Dataset(folder).digest())
    assert digests[0] == digests[1]
    np.testing.assert_array_equal(Dataset(tmp_path / "a").ladders, [[0, 1, 2, 3], [4, 5, 6, 7]])
    make_chunk(labeller, 0, recipe, dataset.chunk_path(tmp_path / "a", 0, ladders=False))
    found = Dataset(tmp_path / "a")
    np.testing.assert_array_equal(found.ladders, np.arange(8, 16).reshape(2, 4))
    for ladder in found.ladders:
        assert [found.notes[i].split("|")[1] for i in ladder] == ["clean", *["white noise"] * 3]
        fidelities = found.labels[ladder, LABELS.index("fidelity")]
        assert fidelities[0] == 5
        assert (np.diff(fidelities) < 0).all()


def a_clip(treatment: str) -> Clip:
    clean = np.resize(speech(4), CLIP_SAMPLES)
    rng = np.random.default_rng(0)
    damaged = clean + rng.normal(0, 0.01, CLIP_SAMPLES).astype(np.float32)
    return Clip(damaged, clean, voice("flite slt", anchor=3.2), treatment, 0.5)


def test_labels(labeller: Labeller) -> None:
    """The fidelity of clean clips is 5, whether or not fidelity is measured."""
    stored = np.full(CLIP_SAMPLES, 16_384, np.int16)
    clean, measured, unknown = (
        dict(zip(LABELS, labeller.labels(a_clip(treatment), stored, measured=measure), strict=True))
        for treatment, measure in (("clean", False), ("white noise", True), ("white noise", False))
    )
    assert (clean["bvcc"], clean["p808"], clean["fidelity"]) == (0.0, 0.5, 5.0)
    assert clean["anchor"] == pytest.approx(3.2)
    damaged = a_clip("white noise")
    wanted = fidelity(damaged.reference, damaged.waveform)
    assert measured["fidelity"] == pytest.approx(wanted)
    # The 2.2 points above the bottom of the scale shrink by the share of fidelity that is lost.
    assert measured["anchor"] == pytest.approx(1 + 2.2 * (wanted - 1) / 4)
    assert 1 < measured["anchor"] < 3.2
    assert np.isnan([unknown["fidelity"], unknown["anchor"]]).all()


@pytest.mark.parametrize(
    ("treatment", "measured"), [("white noise", 50), ("MP3", 85), ("WORLD + Opus", 85)]
)
def test_codecs_are_measured_more_often(treatment: str, measured: int) -> None:
    clip = a_clip(treatment)
    assert [dataset.is_measured(clip, 200 + i) for i in range(100)] == [
        i < measured for i in range(100)
    ]


def test_levels_are_random_and_never_clip() -> None:
    levels_db = []
    for number in range(200):
        loud = np.random.default_rng(number).normal(0, 3, 4000).astype(np.float32)
        stored = dataset.at_random_level(loud, [1, number]).astype(np.float64) / 32_768
        levels_db.append(20 * np.log10(stored.std()))
        assert np.abs(stored).max() < 1
    assert -32.1 < min(levels_db) < -30.5
    assert -17.5 < max(levels_db) < -15.9
    peaky = np.zeros(4000, np.float32)
    peaky[100] = 9.0
    for number in range(20):
        assert 0 < dataset.at_random_level(peaky, [1, number]).max() <= np.ceil(0.99 * 32_767)
    assert not dataset.at_random_level(np.zeros(4000, np.float32), [1, 0]).any()


def test_a_recorded_pool(tmp_path: Path) -> None:
    folder = tmp_path / "anna"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [f"say_{i:02d}" for i in range(30)]
    for i, name in enumerate(names):
        loud = 0.01 * (i + 1) * rng.uniform(-1, 1, 9000 + i)
        sf.write(folder / f"{name}.flac", loud, 16_000)
    sf.write(folder / "short.flac", 0.5 * np.ones(8000), 16_000)
    sf.write(folder / "silent.flac", np.zeros(20_000), 16_000)
    anna = voice("recorded anna", "recorded", selector=str(folder))
    silent = tmp_path / "nobody"
    silent.mkdir()
    sf.write(silent / "x.flac", np.zeros(20_000), 16_000)
    nobody = voice("recorded nobody", "recorded", selector=str(silent))
    with pytest.raises(VoiceError, match="recorded nobody"):
        build_pool(nobody, 0, tmp_path / "pools")
    assert not (tmp_path / "pools").exists()
    path = build_pool(anna, 0, tmp_path / "pools")
    kept = [i for i, name in enumerate(names) if not held_out_file(Path(name))]
    assert 0 < len(kept) < 30
    pool = load_pool([anna], [path])
    assert list(pool.voices) == [anna]
    (utterances,) = pool.utterances
    assert [len(part) for part in utterances] == [9000 + i for i in kept]
    for part in utterances:
        assert part.dtype == np.int16
        assert np.abs(part).max() == pytest.approx(0.25 * 32_767, abs=1)
    # An existing pool is not made again.
    stamp = path.stat().st_mtime_ns
    assert build_pool(anna, 0, tmp_path / "pools") == path
    assert path.stat().st_mtime_ns == stamp


def test_a_voice_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A voice without its engine leaves no file, so that the next run tries again."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VoiceError, match="flite slt"):
        build_pool(voice("flite slt"), 0, tmp_path / "pools")
    assert not (tmp_path / "pools").exists()


def test_a_folder_holds_one_recipe(tmp_path: Path) -> None:
    teachers = tmp_path / "teachers"
    teachers.mkdir()
    with pytest.raises(DatasetError, match="dnsmospro_bvcc.pt is missing"):
        record_recipe(Recipe(seed=1, teachers=teachers), tmp_path / "data")
    for name in ("dnsmospro_bvcc.pt", "dnsmos_p808.onnx"):
        (teachers / name).write_bytes(name.encode())
    record_recipe(Recipe(seed=1, teachers=teachers), tmp_path / "data")
    record_recipe(Recipe(seed=1, teachers=teachers), tmp_path / "data")
    write_chunk(tmp_path / "data", 0)
    digest = hashlib.sha256(b"dnsmos_p808.onnx").hexdigest()
    assert Dataset(tmp_path / "data").recipe["teachers"]["dnsmos_p808.onnx"] == digest
    with pytest.raises(DatasetError, match="another seed"):
        record_recipe(Recipe(seed=2, teachers=teachers), tmp_path / "data")
    (teachers / "dnsmos_p808.onnx").write_bytes(b"another")
    with pytest.raises(DatasetError, match="other teachers"):
        record_recipe(Recipe(seed=1, teachers=teachers), tmp_path / "data")
