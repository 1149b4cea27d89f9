"""Adapting to listening tests, with the embedded model on noisy speech."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt_studies.accuracy import adapt
from mosrt_studies.accuracy.adapt import RatedModel, by_ratings
from mosrt_studies.accuracy.listening import read_systems
from mosrt_studies.figures.plots import PLOTS, draw
from tests.conftest import DATA

TESTS, SYSTEMS, CLIPS = 3, 6, 2
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Systems are levels of noise, and rated by it; the second test is rated more strictly."""
    folder = tmp_path_factory.mktemp("systems")
    rng = np.random.default_rng(0)
    speech = soundfile.read(DATA / "flite_slt_16k_mono.wav", dtype="float32")[0]
    rows = []
    for test in range(TESTS):
        for system in range(SYSTEMS):
            place = folder / f"t{test}" / f"s{system}"
            place.mkdir(parents=True)
            for clip in range(CLIPS):
                part = speech[2000 * (3 * test + clip) :][:24_000]
                noisy = part + 10 ** (-4 + 0.45 * system) * 0.1 * rng.standard_normal(len(part))
                soundfile.write(place / f"{clip}.flac", noisy, RATE_HZ)
            rows.append((f"t{test}", f"s{system}", 4.5 - 0.5 * system - 0.4 * (test == 1),
                         f"t{test}/s{system}"))  # fmt: skip
    with (folder / "systems.tsv").open("w", newline="") as stream:
        names = ("set", "system", "mos", "folder")
        csv.writer(stream, delimiter="\t").writerows([names, *rows])
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> RatedModel:
    return RatedModel.of(Bundle.open(find_bundle("nano")), read_systems(folder))


def test_scores_are_judged_by_test(model: RatedModel) -> None:
    """The MOS itself has every pair right, and no error; its negative none."""
    n_pairs = SYSTEMS * (SYSTEMS - 1) / 2
    n_clips = SYSTEMS * CLIPS
    assert np.allclose(model.judged("t1", model.clips.mos), [0, n_clips, n_pairs, n_pairs])
    assert np.allclose(
        model.judged("t1", model.clips.mos + 1), [n_clips, n_clips, n_pairs, n_pairs]
    )
    assert np.allclose(model.judged("t1", -model.clips.mos)[1:], [n_clips, 0, n_pairs])


def test_the_test_that_is_left_out_is_not_fitted_to(model: RatedModel) -> None:
    """With one other test, what is predicted does not depend on the ratings of this one."""
    two = np.flatnonzero(model.system < 2 * SYSTEMS)
    systems = model.systems[: 2 * SYSTEMS]
    found = []
    for shift in (0.0, 0.5):
        moved = [
            dataclasses.replace(each, mos=each.mos - shift * (each.test == "t0"))
            for each in systems
        ]
        mos = np.array([moved[i].mos for i in model.system[two]])
        part = RatedModel(model.part(two, mos), model.manifest, moved, model.system[two])
        rows = by_ratings(part, draws=2, n_ratings=(5,))["by_ratings"]
        assert list(rows) == ["5", "all"]
        found.append(rows["all"]["adapted"])
    # Only t0's ratings moved: the head for t0, fitted to t1, is the same, and so are the pairs.
    assert found[0]["mse"] != found[1]["mse"]
    assert found[0]["concordance"] == found[1]["concordance"]


def test_the_command(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapt.json"
    given = ["-m", "nano", "--systems", folder, "--looks", 1, "--draws", 2, "--trials", 3]
    result = CliRunner().invoke(adapt.main, [*map(str, given), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "| 20 ratings, followed |" in result.output
    run = json.loads(out.read_text())
    assert (run["n_tests"], run["n_systems"], run["n_clips"]) == (3, 18, 36)
    found = run["models"]["nano"]
    assert list(found["by_ratings"]) == ["5", "10", "20", "50", "all"]
    everything = found["by_ratings"]["all"]
    assert everything["adapted"]["concordance"] > 0.8  # noise is what nano measures best
    assert 0 <= everything["accepted"] <= 1
    for rows in found["shuffled"].values():
        assert rows["trials"] == 3
        assert rows["clips"] + rows["systems"] <= 1
    draw(PLOTS["adapt"](run), tmp_path / "adapt.svg")
    text = (tmp_path / "adapt.svg").read_text()
    assert "nano, default domain" in text
    draw(PLOTS["adapt"](run), tmp_path / "adapt.svg")
    assert (tmp_path / "adapt.svg").read_text() == text
