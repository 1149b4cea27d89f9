import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

import mosrt
from mosrt import BundleError
from mosrt.audio.recording import Recording
from mosrt.audio.sources import FileSource
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import DEFAULT_MODEL, embedded_models, find_bundle


@pytest.fixture
def models(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with the default and "another", copies of tiny, and an empty directory."""
    folder = tmp_path / "models"
    for name in ("another", DEFAULT_MODEL):
        shutil.copytree(tiny, folder / name)
    (folder / "__pycache__").mkdir()
    (folder / "notes.txt").touch()
    monkeypatch.setattr("mosrt.bundle.embedded.MODELS", folder)
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    return folder


def test_what_is_installed_can_be_loaded() -> None:
    for name, path in embedded_models().items():
        bundle = Bundle.open(path)
        assert bundle.manifest.name == name
        assert bundle.model_card()
        bundle.verify()


def test_names(models: Path) -> None:
    assert list(embedded_models()) == [DEFAULT_MODEL, "another"]
    assert find_bundle() == find_bundle(DEFAULT_MODEL) == models / DEFAULT_MODEL
    assert find_bundle("another") == models / "another"


def test_loading_by_name_equals_loading_by_path(models: Path, clips: list[Path]) -> None:
    def views(*bundle: str | Path) -> tuple[float, ...]:
        with mosrt.load(*bundle, threads=1) as scorer:
            return scorer.score_file(clips[0]).views

    assert views() == views("another") == views(models / "another")


def test_a_name_goes_before_a_path(
    models: Path, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("another").mkdir()
    with caplog.at_level(logging.WARNING, "mosrt"):
        assert find_bundle("another") == models / "another"
        assert not caplog.records  # a directory of that name that is no bundle is nobody's model
        shutil.copytree(tiny, "another", dirs_exist_ok=True)
        assert find_bundle("another") == models / "another"
    (record,) = caplog.records
    assert "write ./another" in record.getMessage().replace("\\", "/")
    assert find_bundle("./another") == Path("another")
    assert find_bundle(Path("another")) == Path("another")


def test_a_word_that_is_no_name_is_a_path(models: Path, tiny: Path) -> None:
    shutil.copytree(tiny, "mine")
    assert models.is_dir()
    assert find_bundle("mine") == Path("mine")
    assert find_bundle("none/such") == Path("none/such")
    with pytest.raises(BundleError, match=r"none.such: no such bundle"):
        mosrt.load("none/such")


def test_an_unknown_name_lists_the_known(models: Path) -> None:
    assert models.is_dir()
    with pytest.raises(
        BundleError, match="nan: no such bundle; embedded models: dist[a-z]*, another; "
    ):
        mosrt.load("nan")
    with pytest.raises(BundleError, match=r"such as \.[/\\]nan "):
        mosrt.load("nan")


def test_a_broken_installation_says_so(models: Path) -> None:
    (models / DEFAULT_MODEL / "model.fold0.fp32.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.fold0\.fp32\.onnx: missing"):
        mosrt.load()
    shutil.rmtree(models)
    assert embedded_models() == {}
    with pytest.raises(BundleError, match="the default model is missing; install mosrt again"):
        mosrt.load()
    with pytest.raises(BundleError, match="embedded models: none, install mosrt again"):
        mosrt.load(DEFAULT_MODEL)


def test_the_manifests_grid_decides_how_many_views(models: Path) -> None:
    path = models / DEFAULT_MODEL / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["grid"] = {"view_every_s": 5.0, "min_views": 1, "max_views": 12}
    path.write_text(json.dumps(manifest))
    noise = np.random.default_rng(0).standard_normal(160_001).astype(np.float32) / 10
    with mosrt.load(threads=1) as scorer:
        for n_samples, views in ((80_000, 1), (80_001, 2), (160_000, 2), (160_001, 3)):
            score = scorer.score(noise[:n_samples], 16_000)
            assert len(score.windows) == views
            assert score.n_views == 2 * views  # two networks


def test_uncertainty_grows_with_noise(clips: list[Path]) -> None:
    """White noise at 40 to 0 dB below clean clips, mean over them: rising step by step."""
    rng = np.random.default_rng(1)
    means = []
    with mosrt.load("nano-uncertainty", threads=1) as scorer:
        recordings = [Recording(FileSource(clip), 16_000) for clip in clips[:5]]
        spoken = [next(r.chunks([(0, min(r.n_samples, 32_000))])) for r in recordings]
        noises = [rng.standard_normal(len(s)) * np.sqrt(np.mean(np.square(s))) for s in spoken]
        for snr_db in (40, 30, 20, 10, 0):
            noisy = [s + 10 ** (-snr_db / 20) * n for s, n in zip(spoken, noises, strict=True)]
            scores = scorer.score_many([(x.astype(np.float32), 16_000) for x in noisy])
            means.append(np.mean([score.measures["uncertainty"] for score in scores]))
    assert np.all(np.diff(means) > 0), means
