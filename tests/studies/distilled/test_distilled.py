import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from scipy import stats

import mosrt
from mosrt_export.nano.data.voices import held_out_file
from mosrt_studies.distilled.__main__ import main
from mosrt_studies.distilled.training import TrainingData, make_training_data, ridge
from tests.export.conftest import toml
from tests.standins.utmosv2 import SMALL, small_config


@pytest.fixture(scope="module")
def recordings(
    speech: np.ndarray[tuple[int], np.dtype[np.float32]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A voice with recordings on both sides of the hold-out."""
    folder = tmp_path_factory.mktemp("speech")
    (folder / "anna").mkdir()
    for i in range(40):
        piece = np.roll(speech, 1000 * i)[:32_000]
        soundfile.write(folder / "anna" / f"sentence{i:03d}.flac", piece, 16_000)
    assert {held_out_file(path) for path in folder.glob("*/*")} == {True, False}
    return folder


def test_targets_are_the_scores_of_nano_on_degraded_speech(recordings: Path) -> None:
    spec = small_config().spectrogram
    data = make_training_data(recordings, 6, spec, 0, held_out=False)
    again = make_training_data(recordings, 6, spec, 0, held_out=False)
    np.testing.assert_array_equal(data.waveforms, again.waveforms)
    np.testing.assert_array_equal(data.targets, again.targets)
    with mosrt.load("nano") as nano:
        for waveform, target in zip(data.waveforms, data.targets, strict=True):
            assert nano.score(waveform, 16_000).mos == pytest.approx(float(target), abs=1e-6)
    assert np.ptp(data.targets) > 0.5  # degradations of all kinds


def test_inputs_are_those_of_the_runtime(recordings: Path) -> None:
    """With one place to cut, the images and crops are those that a bundle's scorer makes."""
    config = small_config()
    whole = make_training_data(recordings, 1, config.spectrogram, 0, held_out=True)
    cut = whole.waveforms[:, : config.spectrogram.crop_samples + 1]
    data = TrainingData(cut, whole.targets, whole.front_end, config.spectrogram)
    view = data.view(0, np.random.default_rng(0))
    made = whole.front_end.images(cut[0, :-1])
    expected = [made[window] for window in config.spectrogram.windows] * config.spectrogram.n_crops
    np.testing.assert_array_equal(view, np.stack(expected))
    crop = data.crop(0, cut.shape[1], np.random.default_rng(0))
    assert crop.mean() == pytest.approx(0, abs=1e-6)
    assert crop.std() == pytest.approx(1, abs=1e-3)


def test_ridge_is_that_of_the_normal_equations() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 50)) + 3
    targets = features @ rng.normal(size=50) + 3 * rng.normal(size=20)
    slopes, offset, error = ridge(features, targets)
    centred = features - features.mean(axis=0)
    gradient = centred.T @ (features @ slopes + offset - targets)
    strength = -float(gradient @ slopes / (slopes @ slopes))
    np.testing.assert_allclose(gradient, -strength * slopes, atol=1e-9 * np.abs(targets).sum())
    left_out = _errors_left_out(features, targets, strength)
    assert error == pytest.approx(float(np.sqrt(np.mean(np.square(left_out)))), rel=1e-4)


def test_ridge_is_the_strongest_within_a_standard_error_of_the_best() -> None:
    rng = np.random.default_rng(1)
    common = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 60))
    features = common + rng.normal(size=(40, 60))
    targets = features @ rng.normal(size=60) + 5 * rng.normal(size=40)
    _, _, error = ridge(features, targets)
    unit = np.square(features - features.mean(axis=0)).sum() / len(features)
    squares = [
        np.square(_errors_left_out(features, targets, unit * 10**power))
        for power in np.arange(-5, 3, 0.5)
    ]
    means = [float(square.mean()) for square in squares]
    best = int(np.argmin(means))
    limit = means[best] + stats.sem(squares[best])
    chosen = max(i for i, mean in enumerate(means) if mean <= limit)
    assert best < chosen < len(means) - 1  # otherwise the rule is not what is tested
    assert error**2 == pytest.approx(means[chosen])


def _errors_left_out(
    features: NDArray[np.float64], targets: NDArray[np.float64], strength: float
) -> NDArray[np.float64]:
    """By fitting as often as there are rows."""
    errors = []
    for i in range(len(targets)):
        rest, others = np.delete(features, i, axis=0), np.delete(targets, i)
        mean = rest.mean(axis=0)
        normal = (rest - mean).T @ (rest - mean) + strength * np.eye(features.shape[1])
        found = np.linalg.solve(normal, (rest - mean).T @ (others - others.mean()))
        errors.append((features[i] - mean) @ found + others.mean() - targets[i])
    return np.array(errors)


def test_a_small_model_is_trained_and_exported(recordings: Path, tmp_path: Path) -> None:
    config = {**SMALL, "spectrogram": {**SMALL["spectrogram"], "crop_samples": 8000}}
    (tmp_path / "small.toml").write_text(toml(config))
    out = tmp_path / "distilled.pth"
    options = [
        "--speech", recordings, "--output", out, "--config", tmp_path / "small.toml", "--clips", 24,
        "--held-out", 4, "--norm-clips", 2, "--head-clips", 24,
        "--minutes", 0.03, 0.03, 0.05, "--threads", 1,
    ]  # fmt: skip
    run = CliRunner().invoke(main, [str(option) for option in options], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    result = json.loads(out.with_suffix(".json").read_text())
    assert result["command"].startswith("python -m mosrt_studies.distilled --speech … --output … ")
    assert len(result["scores"]) == len(result["targets"]) == 4
    error = np.abs(np.subtract(result["scores"], result["targets"])).mean()
    assert result["mean_abs_error_mos"] == pytest.approx(error, abs=1e-3)
    state = torch.load(out, weights_only=True)
    backbones = [f"spec_long.backbones.{i}.conv_stem.weight" for i in range(2)]
    assert not torch.equal(*(state[name] for name in backbones))  # each went its own way
    assert (
        state["spec_long.backbones.0.bn1.num_batches_tracked"]
        == 2 * config["spectrogram"]["n_crops"]
    )
