"""Tests the files of a data set, their resumption, and the labels."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mosrt_export.distill.data.batches import Dataset, clean_waveforms
from mosrt_export.distill.data.clips import CLIP_SAMPLES
from mosrt_export.distill.data.dataset import HINT_FRAMES, Data, DatasetError, at_random_level
from mosrt_export.distill.data.degradations import DEGRADATIONS
from mosrt_export.distill.data.resyntheses import RESYNTHESES
from mosrt_export.distill.data.speech import find_speakers
from mosrt_export.distill.recipe import Group, Overall, Recipe
from mosrt_export.distill.teachers import OpenTeacher, Teacher
from tests.conftest import HANG_S, TESTS
from tests.standins.nano import recordings

CHUNK_HOURS = 4 * 5 / 3600
ALL = (*RESYNTHESES, *DEGRADATIONS)
RECIPE = Recipe(hours=2.5 * CHUNK_HOURS, test_hours=CHUNK_HOURS, chunk_clips=4)


class LevelTeacher(Teacher):
    """Scores a clip by its level and its peak, and can be counted."""

    def open(self, *, provider: str = "cpu", reduced: bool = False) -> OpenTeacher:
        assert (provider, reduced) == ("cpu", False)
        return OpenTeacher(level_and_peak)


def level_and_peak(waveform: NDArray[np.float32]) -> list[float]:
    return [float(waveform.std()), float(np.abs(waveform).max())]


class HintTeacher(Teacher):
    """Scores a clip as `LevelTeacher`, but for the loud ones, and knows the level of each 20 ms."""

    def open(self, *, provider: str = "cpu", reduced: bool = False) -> OpenTeacher:
        assert (provider, reduced) == ("cpu", False)

        def hinted(waveform: NDArray[np.float32]) -> tuple[Sequence[float], NDArray[np.float32]]:
            if np.abs(waveform).max() > self.loudest:
                return [np.nan, np.nan], np.full((1, 2), np.nan, np.float32)
            levels = np.abs(waveform.reshape(-1, 320)).mean(axis=1)
            return level_and_peak(waveform), np.stack([levels, 3 - 100 * levels], axis=1)

        return OpenTeacher(lambda waveform: hinted(waveform)[0], hinted)

    @property
    def loudest(self) -> float:
        return 9.0 if self.name == "hints" else 0.3


def teacher(name: str = "level") -> Teacher:
    return LevelTeacher(
        name=name, path=Path(name), domains=(name, f"{name} peak"), sha256=64 * name[0], n_bytes=1
    )


def data(folder: Path, recipe: Recipe = RECIPE, seed: int = 5, *teachers: Teacher) -> Data:
    speech = folder.parent / "speech"
    speakers = find_speakers([speech if speech.exists() else recordings(speech)])
    parts = {"clips": speakers, "ladders": speakers, "recordings": [], "speakers": speakers[:1]}
    return Data(folder=folder, recipe=recipe, seed=seed, speech=parts,
                teachers=teachers or [teacher()])  # fmt: skip


def made(of: Data) -> dict[str, bytes]:
    of.check()
    assert len(list(of.make(1))) == len(of.chunks())
    return {path.name: path.read_bytes() for path in sorted(of.folder.iterdir())}


class EndedTeacher(Teacher):
    """Ends the process that opens it, as the system does where memory is short."""

    def open(self, **_: object) -> OpenTeacher:
        os._exit(9)


class SlowTeacher(Teacher):
    """Says that it is asked, and never answers."""

    def open(self, **_: object) -> OpenTeacher:
        def scores(_: NDArray[np.float32]) -> Sequence[float]:
            self.path.touch()
            threading.Event().wait()
            return [0.0, 0.0]

        return OpenTeacher(scores)


@pytest.mark.full
def test_a_process_that_ends_is_an_error_with_a_cure(tmp_path: Path) -> None:
    ended = EndedTeacher(
        name="ended", path=Path("ended"), domains=("a", "b"), sha256="0" * 64, n_bytes=1
    )
    of = data(tmp_path / "a", RECIPE, 5, ended)
    of.check()
    with pytest.raises(DatasetError, match="fewer --workers"):
        list(of.make(2))


INTERRUPTED = """
import signal, sys
from pathlib import Path
from tests.export.distill.data.test_dataset import RECIPE, SlowTeacher, data
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
folder, asked = map(Path, sys.argv[1:])
slow = SlowTeacher(name="slow", path=asked, domains=("a", "b"), sha256="0" * 64, n_bytes=1)
of = data(folder, RECIPE, 5, slow)
of.check()
try:
    list(of.make(2))
except KeyboardInterrupt:
    sys.exit(7)
"""


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interruption_ends_the_processes_at_once(tmp_path: Path) -> None:
    """Nobody waits for a chunk, and only the command itself speaks of the interruption."""
    asked = tmp_path / "asked"
    command = [sys.executable, "-W", "ignore", "-c", INTERRUPTED, str(tmp_path / "a"), str(asked)]
    with subprocess.Popen(
        command, cwd=TESTS.parent, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        while not asked.exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=HANG_S)
    assert (process.returncode, errors) == (7, b"")


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    """Files that are lost are made again, with the same bytes."""
    first = made(data(tmp_path / "a"))
    suffixes = (".waveforms.npy", f".{16 * 'l'}.npy", ".npz")
    chunks = ("clips-00000", "clips-00001", "ladders-00000", "speakers-00000")
    files = {f"{chunk}{suffix}" for chunk in chunks for suffix in suffixes}
    assert set(first) == {"recipe.json", *files}
    lost = ["clips-00001.npz", f"ladders-00000.{16 * 'l'}.npy"]
    for name in lost:
        (tmp_path / "a" / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    assert made(data(tmp_path / "a")) == first
    rewritten = tmp_path / "a" / "clips-00001.waveforms.npy"  # goes with its notes
    assert {path for path, stamp in kept.items() if path.stat().st_mtime_ns != stamp} <= {rewritten}
    # More hours and another teacher add files to what is there.
    more = data(tmp_path / "a", dataclasses.replace(RECIPE, hours=3.75 * CHUNK_HOURS), 5,
                teacher(), teacher("other"))  # fmt: skip
    assert made(more).items() > first.items()
    assert made(data(tmp_path / "b", RECIPE, 6))["clips-00000.npz"] != first["clips-00000.npz"]


def test_a_folder_holds_one_recipe(tmp_path: Path) -> None:
    data(tmp_path / "a").check()
    data(tmp_path / "a", dataclasses.replace(RECIPE, hours=1.0)).check()
    for other in (
        data(tmp_path / "a", RECIPE, 6),
        data(tmp_path / "a", dataclasses.replace(RECIPE, takes=2)),
        data(tmp_path / "a", dataclasses.replace(RECIPE, groups={"*": Group(anchor=4.0)})),
        dataclasses.replace(data(tmp_path / "a"), speech={}),
    ):
        with pytest.raises(DatasetError, match="choose another --cache"):
            other.check()


def test_names_of_a_recipe_must_exist(tmp_path: Path) -> None:
    overall = Overall(averaged=("mos",), offset=3.0, scale=1.0)
    for changes, message in (
        ({"leave_out": ("buzz",)}, "no treatment 'buzz'"),
        ({"leave_out": tuple(RESYNTHESES)}, "keep at least one"),
        ({"overall": overall}, "no teacher has a domain 'mos'"),
    ):
        with pytest.raises(DatasetError, match=message):
            data(tmp_path / "a", dataclasses.replace(RECIPE, **changes)).check()
    with pytest.raises(DatasetError, match="domain has this name"):
        data(tmp_path / "a", dataclasses.replace(RECIPE, overall=overall), 5,
             teacher("overall"), teacher("mos")).check()  # fmt: skip
    assert not (tmp_path / "a").exists()


def test_clips_and_labels_belong_together(tmp_path: Path) -> None:
    of = data(tmp_path / "a", RECIPE, 5, teacher(), teacher("other"))
    made(of)
    assert of.domains == ("level", "level peak", "other", "other peak")
    names = {speaker.name for speaker in of.speech["clips"]}
    for part, number in of.chunks():
        with np.load(of.path(part, number)) as arrays:
            notes = arrays["notes"].tolist()
        waveforms = np.load(of.path(part, number, ".waveforms.npy"))
        assert (waveforms.shape, waveforms.dtype) == ((4, CLIP_SAMPLES), np.int16)
        samples = waveforms.astype(np.float64) / 32_768
        wanted = np.stack([samples.std(axis=1), np.abs(samples).max(axis=1)], axis=1)
        np.testing.assert_allclose(of.labels(part, number), np.tile(wanted, 2), rtol=1e-3)
        for note in notes:
            speaker, treatment, severity = note.split("|")
            assert speaker in ({"anna"} if part == "speakers" else names)
            assert (treatment == "clean") == (float(severity) == 0)
    dataset = Dataset.of(of)
    assert dataset.labels.shape == (12, 4)
    assert dataset.n_single == 8
    np.testing.assert_array_equal(dataset.ladders, [[8, 9, 10, 11]])
    np.testing.assert_array_equal(dataset.groups(np.array([3, 7, 8, 10, 11])), [3, 7, 8, 8, 8])
    batch = dataset.waveform_batch(np.array([1, 4, 11]))
    assert batch.dtype == np.float32
    stored = np.load(of.path("clips", 1, ".waveforms.npy"))
    np.testing.assert_array_equal(batch[1], stored[0].astype(np.float32) / 32_768)
    assert dataset.hint_batch(np.array([1, 4, 11])) is None
    assert dataset.sha256() == Dataset.of(of).sha256()


def hinting(name: str) -> Teacher:
    return HintTeacher(
        name=name, path=Path(name), domains=(name, f"{name} peak"), sha256=64 * name[0],
        n_bytes=1, hint_size=2,
    )  # fmt: skip


def test_hints_go_with_their_clips(tmp_path: Path) -> None:
    """Those of the first teacher that gives any, of clips that train, standardised."""
    of = data(tmp_path / "a", RECIPE, 5, teacher(), hinting("hints"), hinting("more"))
    assert of.hint_teacher is of.teachers[1]
    files = made(of)
    chunks = ("clips-00000", "clips-00001", "ladders-00000")
    assert {name for name in files if "hints" in name} == {f"{each}.hints.npy" for each in chunks}
    dataset = Dataset.of(of)
    everything = np.arange(12)
    hints = dataset.hint_batch(everything)
    assert hints is not None
    assert hints.shape == (12, 2, HINT_FRAMES)
    assert hints.dtype == np.float32
    np.testing.assert_allclose(hints.mean(axis=(0, 2)), 0, atol=0.05)
    np.testing.assert_allclose(hints.std(axis=(0, 2)), 1, atol=0.1)
    levels = np.abs(dataset.waveform_batch(everything)).reshape(12, HINT_FRAMES, -1).mean(axis=2)
    for row, level in zip(hints, levels, strict=True):
        assert np.corrcoef(row[0], level)[0, 1] > 0.999
        assert np.corrcoef(row[1], level)[0, 1] < -0.999
    # What is lost is made again, and labels of both ways to ask are the same.
    (tmp_path / "a" / "clips-00001.hints.npy").unlink()
    assert made(of) == files
    for part, number in of.chunks():
        labels = of.labels(part, number)
        np.testing.assert_array_equal(labels[:, :2], labels[:, 2:4])


def test_clips_without_a_score_have_no_hints(tmp_path: Path) -> None:
    of = data(tmp_path / "a", RECIPE, 5, hinting("some"))
    made(of)
    dataset = Dataset.of(of)
    hints = dataset.hint_batch(np.arange(12))
    assert hints is not None
    unknown = np.isnan(dataset.labels[:, 0])
    assert 0 < unknown.sum() < 12
    np.testing.assert_array_equal(np.isnan(hints).all(axis=(1, 2)), unknown)
    np.testing.assert_array_equal(np.isnan(hints).any(axis=(1, 2)), unknown)


def test_fidelity_and_anchor_fall_together(tmp_path: Path) -> None:
    """The anchor above 1 shrinks by the share of fidelity that a ladder loses."""
    groups = {"*": Group(anchor=4.6), "flite": Group(anchor=3.2)}
    leave_out = tuple(name for name in ALL if name not in {"white noise", "comb"})
    recipe = dataclasses.replace(
        RECIPE, test_hours=0.0, fidelity=True, groups=groups, leave_out=leave_out
    )
    of = data(tmp_path / "a", recipe)
    made(of)
    assert of.domains[2:] == ("fidelity", "anchor")
    fidelities, anchors = of.labels("ladders", 0).T[2:]
    assert fidelities[0] == 5
    assert (np.diff(fidelities) < 0).all()
    with np.load(of.path("ladders", 0)) as arrays:
        notes = [note.split("|") for note in arrays["notes"].tolist()]
    assert [treatment for _, treatment, _ in notes] == ["clean", *[notes[1][1]] * 3]
    top = 4.6 if notes[0][0] == "anna" else 3.2
    np.testing.assert_allclose(anchors, 1 + (top - 1) * (fidelities - 1) / 4, rtol=1e-6)


def test_rare_labels_are_sampled_more_often() -> None:
    """Shares go with 1 / √(number of clips with such a label)."""
    labels = np.full((204, 2), 3.0, np.float32)
    labels[:8, 0] = 1.0
    labels[198:200, 0] = 4.5
    dataset = Dataset([], [], labels, np.arange(200, 204).reshape(1, 4))
    wanted = np.repeat(1 / np.sqrt([8.0, 190.0, 2.0]), [8, 190, 2])
    np.testing.assert_allclose(dataset.sampling_shares(), wanted / wanted.sum(), rtol=1e-6)


def test_only_clean_recordings_are_pretrained_on(tmp_path: Path) -> None:
    waveforms = np.arange(4, dtype=np.int16)[:, None].repeat(CLIP_SAMPLES, axis=1)
    notes = ["anna|clean|0.000", "anna|hum|0.300", "flite/slt|clean|0.000", "bert|clean|0.000"]
    np.savez(tmp_path / "clips-00000.npz", notes=np.array(notes))
    np.save(tmp_path / "clips-00000.waveforms.npy", waveforms)
    assert clean_waveforms(tmp_path)[:, 0].tolist() == [0, 3]
    with pytest.raises(DatasetError, match="run `mosrt distill` first"):
        clean_waveforms(tmp_path / "none")


def test_levels_are_random_and_never_clip() -> None:
    levels_db = []
    for seed in range(200):
        loud = np.random.default_rng(seed).normal(0, 3, 4000).astype(np.float32)
        stored = at_random_level(loud, np.random.default_rng([1, seed])) / 32_768
        levels_db.append(20 * np.log10(stored.std()))
        assert np.abs(stored).max() < 1
    assert -45.1 < min(levels_db) < -43.5
    # Noise has peaks of four times its RMS level.
    assert -14 < max(levels_db) < -9
    peaky = np.zeros(4000, np.float32)
    peaky[100] = 9.0
    for seed in range(20):
        highest = at_random_level(peaky, np.random.default_rng([1, seed])).max()
        assert 0 < highest <= np.ceil(0.99 * 32_767)
    assert not at_random_level(np.zeros(4000, np.float32), np.random.default_rng(1)).any()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    of = data(tmp_path / "a")
    with pytest.raises(DatasetError, match="a: cannot be written .*choose another --cache"):
        list(of.make(1))  # there is no such folder
    (tmp_path / "a").touch()
    with pytest.raises(DatasetError, match="a: cannot be written .*choose another --cache"):
        of.check()
