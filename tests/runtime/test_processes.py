"""Pickled and forked scorers: other processes score the same bits, or say why they cannot."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.mos.scorer import FusionScorer
from tests.conftest import HANG_S, noise


def values(score: mosrt.Score) -> str:
    """All of a score but the time it took."""
    plain = score.to_dict()
    del plain["timings_ms"]
    return repr(plain)


def load_and_score(scorer: mosrt.Scorer, file: Path) -> str:
    """What a worker process does."""
    return values(scorer.score_file(file))


@pytest.mark.parametrize("model", ["nano", "nano-uncertainty", "tiny"])
def test_spawned_processes_score_the_same_bits(model: str, tiny: Path, clips: list[Path]) -> None:
    with mosrt.load(tiny if model == "tiny" else model, threads=2, batch_size=3) as scorer:
        again = pickle.loads(pickle.dumps(scorer))
        assert (again.threads, again.batch_size, again.variant) == (2, 3, "fp32")
        expected = [values(scorer.score_file(clip)) for clip in clips[:2]]
        assert [values(score) for score in again.iter_scores(clips[:2])] == expected
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.map(functools.partial(load_and_score, scorer), clips[:2])
    assert found == expected


FORK_SCRIPT = """
import multiprocessing, sys
import mosrt

def measured(_):
    score = scorer.score_file(sys.argv[2])
    return score.views, list(score.measures.items())

scorer = mosrt.load(sys.argv[1], threads=2)
expected = measured(None)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(measured, range(6)) == [expected] * 6
assert measured(None) == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("model", ["nano", "nano-uncertainty"])
def test_forked_processes_score_the_same_bits(model: str, clips: list[Path]) -> None:
    """Although the threads of the engine and of the front end stay in the parent."""
    # Python 3.12 and later warn of forks of a process that has threads.
    command = [sys.executable, "-W", "ignore", "-c", FORK_SCRIPT, model, str(clips[0])]
    subprocess.run(command, check=True, timeout=HANG_S)


def test_options_are_kept(tiny: Path) -> None:
    with mosrt.load(tiny, on_bad_audio="error", remove_silence=True) as scorer:
        scorer.batch_size = 7
        again = pickle.loads(pickle.dumps(scorer))
    assert again.batch_size == 7
    with pytest.raises(mosrt.AudioError) as caught:
        again.score(noise(16_000) / 20, 16_000)
    assert caught.value.flags == ("quiet",)


def test_a_relative_path_holds_elsewhere(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    with mosrt.load("./model") as scorer:
        pickled = pickle.dumps(scorer)
    monkeypatch.chdir("/")
    assert pickle.loads(pickled).manifest.name == "tiny"


def test_a_changed_or_missing_bundle_is_an_error(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    with mosrt.load(model) as scorer:
        pickled = pickle.dumps(scorer)
    manifest = model / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "tiny"', '"name": "tine"'))
    with pytest.raises(mosrt.BundleError, match="not the one that the scorer was pickled with"):
        pickle.loads(pickled)
    shutil.rmtree(model)
    with pytest.raises(mosrt.BundleError, match="no such bundle"):
        pickle.loads(pickled)


def test_a_scorer_of_ones_own_cannot_be_pickled(tiny: Path) -> None:
    class Backend:
        provider = "mine"
        batch_size = 1

        def run(self, *_: object) -> dict[str, object]:
            return {}

        def close(self) -> None:
            pass

    manifest = Bundle.open(tiny).manifest
    options = {"variant": "fp32", "threads": 1, "on_bad_audio": "warn", "remove_silence": False}
    scorer = FusionScorer(manifest, Backend(), **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="made by mosrt.load"):
        pickle.dumps(scorer)
