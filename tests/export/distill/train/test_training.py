"""Tests the losses, the stages and their resumption, and the moving average."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import nn

from mosrt_export.distill.data.batches import Dataset
from mosrt_export.distill.recipe import Stage
from mosrt_export.distill.train import training
from mosrt_export.distill.train.network import BINS, SEGMENT_SAMPLES, StudentNetwork
from mosrt_export.distill.train.training import Standardisation, Training

N, SIZE = 240, 5
# Of what a clip's samples are, the network below sees the first ones, and not their sign.
X = np.random.default_rng(0).integers(1, 2**15, (N, SIZE)).astype(np.int16)
INPUTS = (X / 2**15 - 0.5) * 12**0.5
SLOPES = np.random.default_rng(1).standard_normal((SIZE, 2)).astype(np.float32)
LABELS = (INPUTS @ SLOPES * 0.5 + np.array([3.0, 2.0])).astype(np.float32)
NONE = np.empty((0, 4), np.int64)
# What a teacher knows of each of two frames, on a scale of its own.
_MIXED = np.einsum("ni,fih->nfh", INPUTS, np.random.default_rng(2).standard_normal((2, SIZE, 3)))
HINTS = (50 + 20 * _MIXED).astype(np.float16)


def dataset(
    labels: NDArray[np.float32] = LABELS,
    ladders: NDArray[np.int64] = NONE,
    hints: NDArray[np.float16] | None = None,
) -> Dataset:
    """Clips of as many samples as the problem has features, in two files."""
    halves = slice(N // 2), slice(N // 2, N)
    return Dataset(
        [X[half] for half in halves],
        [] if hints is None else [hints[half] for half in halves],
        labels,
        ladders,
    )


def plan(
    folder: Path, *stages: Stage, data: Dataset | None = None, seed: int = 0, batch: int = 24
) -> Training:
    used = data or dataset()
    return Training(
        dataset=used,
        standard=Standardisation.of(used.labels),
        default=lambda scores: scores[:, :1],
        stages=stages,
        batch=batch,
        seed=seed,
        reduced=False,
        resume=folder / "training.pt",
        save_every_s=1e9,
    )


def stage(epochs: float, **changes: object) -> Stage:
    return Stage(**{"name": "only", "epochs": epochs, "rate": 0.03, **changes})  # type: ignore[arg-type]


class FirstSamples(nn.Module):
    """An encoder whose embedding is the samples themselves, if nothing is done to them."""

    feature_size = SIZE

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.seen: list[torch.Tensor] = []

    def forward(
        self, waveform: torch.Tensor, gains: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert gains is not None
        assert waveform.shape[1] == SEGMENT_SAMPLES
        samples = waveform[:, :SIZE].clone()  # of a batch that is let go
        self.seen.append(samples)
        features = self.layers((samples.abs() * gains[:, :SIZE] - 0.5) * 12**0.5)
        return features[:, :, None].expand(-1, -1, 4), features


class Linear(nn.Module):
    """A head without a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.spread = nn.Linear(SIZE, 2), nn.Linear(SIZE, 1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        deviation = nn.functional.softplus(self.spread(features.detach())) + 0.02
        return self.scores(features), deviation


def linear(*layers: nn.Module, hint_size: int = 0) -> StudentNetwork:
    """A network of the same interface that trains in a second."""
    torch.manual_seed(0)
    network = StudentNetwork.__new__(StudentNetwork)
    nn.Module.__init__(network)
    parts = (FirstSamples(*layers), Linear(), nn.Conv1d(SIZE, hint_size, 1) if hint_size else None)
    for name, part in zip(("encoder", "head", "hint"), parts, strict=True):
        setattr(network, name, part)
    return network


def everything() -> torch.Tensor:
    """All clips, (N, SEGMENT_SAMPLES)."""
    samples = torch.from_numpy((X / 2**15).astype(np.float32))
    return nn.functional.pad(samples, (0, SEGMENT_SAMPLES - SIZE))


def scores_of(network: StudentNetwork) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Standardised scores (N, 2) and deviations (N, 1) of all clips."""
    with torch.inference_mode():
        features = network.encoder(everything(), torch.ones(N, BINS))[1]
        scores, deviations = network.head(features)
    return scores.numpy(), deviations.numpy()


def finish(work: Training, network: StudentNetwork) -> list[tuple[str, float, float]]:
    return list(work.run(network))


def weights_of(network: StudentNetwork) -> torch.Tensor:
    weights: torch.Tensor = network.state_dict()["head.scores.weight"].clone()
    return weights


def test_a_linear_problem_is_solved(tmp_path: Path) -> None:
    """Without noise the least-squares solution is near, and training finds it."""
    network = linear()
    losses = [loss for _, _, loss in finish(plan(tmp_path, stage(25)), network)]
    assert np.mean(losses[-10:]) < 0.2 * losses[0]
    standard = Standardisation.of(LABELS)
    error = scores_of(network)[0] * standard.deviation + standard.mean - LABELS
    assert np.sqrt(np.mean(error**2)) < 0.1
    assert not network.training


def test_the_deviation_is_that_of_the_error(tmp_path: Path) -> None:
    """In MOS, and larger where labels are uncertain: here by the sign of an input."""
    wanted = np.where(INPUTS[:, 0] > 0, 0.8, 0.2)
    noise = np.random.default_rng(7).standard_normal(N) * wanted
    labels = LABELS.copy()
    labels[:, 0] += noise.astype(np.float32)
    network = linear()
    finish(plan(tmp_path, stage(40), data=dataset(labels)), network)
    deviations = scores_of(network)[1][:, 0]
    high, low = (np.median(deviations[wanted == each]) for each in (0.8, 0.2))
    # A softplus of a line, which cannot step.
    assert 0.4 < high < 1.2
    assert low < 0.6 * high


def test_hints_teach_the_encoder(tmp_path: Path) -> None:
    """The frames of the last layer follow what the teacher knows, at any scale of it."""
    losses = []
    for number, size in enumerate((0, 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        network = linear(nn.Linear(SIZE, SIZE), hint_size=size)
        data = dataset(hints=HINTS)
        losses.append([loss for *_, loss in finish(plan(folder, stage(20), data=data), network)])
    assert network.hint is not None
    with torch.inference_mode():
        frames, _ = network.encoder(everything(), torch.ones(N, BINS))
        found = network.hint(frames)[:, :, :2].mT.numpy()
    # The network has the same frame twice, and can only learn the mean of two. What hints are
    # scaled by is measured on some of them.
    wanted = HINTS.astype(np.float64).mean(axis=1)
    for column in range(3):
        assert np.corrcoef(found[:, 0, column], wanted[:, column])[0, 1] > 0.95
    assert losses[1][0] > losses[0][0] + 0.3


def test_ladders_alone_find_the_order(tmp_path: Path) -> None:
    """The labels are noise, so that only the ladders define an order."""
    noise = np.random.default_rng(5).standard_normal(LABELS.shape).astype(np.float32)
    singles, rest = np.arange(40), np.arange(40, N)
    by_quality = rest[np.argsort(-X[40:, 0], kind="stable")].reshape(4, 50).T
    order = np.concatenate([singles, by_quality.ravel()])
    data = Dataset([X[order]], [], noise, np.arange(40, N).reshape(50, 4))
    found = []
    for number, climbing in enumerate((0.0, 50.0)):
        network = linear()
        folder = tmp_path / str(number)
        folder.mkdir()
        finish(plan(folder, stage(30, climbing=climbing, ladders=4), data=data), network)
        scores = scores_of(network)[0][order][data.ladders]
        found.append(float(np.mean(np.diff(scores, axis=1) < 0)))
    assert found[0] < 0.8
    assert found[1] > 0.95


def test_the_ladder_loss_equals_loops() -> None:
    scores = np.random.default_rng(6).standard_normal((3, 4, 2))
    losses = [
        math.log1p(math.exp(-8 * (scores[n, i, d] - scores[n, j, d]))) / 8
        for n in range(3)
        for d in range(2)
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    found = float(training.ladder_loss(torch.from_numpy(scores)))
    assert found == pytest.approx(np.mean(losses), rel=1e-12)


TWO = (stage(1.0, name="first"), stage(0.5, name="second", rate=0.01))


def test_progress_ends_at_one_and_the_seed_decides(tmp_path: Path) -> None:
    weights = []
    for number, seed in enumerate((3, 3, 4)):
        network = linear()
        folder = tmp_path / str(number)
        folder.mkdir()
        steps = finish(plan(folder, *TWO, seed=seed), network)
        assert [name for name, _, _ in steps] == ["first"] * 10 + ["second"] * 5
        assert [done for name, done, _ in steps if name == "second"] == [0.2, 0.4, 0.6, 0.8, 1.0]
        weights.append(weights_of(network))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize("broken_after", [1, 4, 10, 12, 15])
def test_an_interrupted_training_continues_as_if_nothing_had_happened(
    broken_after: int, hinted: bool, tmp_path: Path
) -> None:
    """Bit for bit, with dropout, batch norm, hints and responses, wherever it was interrupted."""
    data = dataset(hints=HINTS if hinted else None)
    stages = (TWO[0], dataclasses.replace(TWO[1], microphones=True))

    def network() -> StudentNetwork:
        torch.manual_seed(0)
        layers = nn.Linear(SIZE, SIZE), nn.BatchNorm1d(SIZE), nn.Dropout(0.3)
        return linear(*layers, hint_size=3 if hinted else 0)

    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    undisturbed, resumed = network(), network()
    wanted = finish(plan(tmp_path / "whole", *stages, data=data), undisturbed)
    work = dataclasses.replace(plan(tmp_path / "broken", *stages, data=data), save_every_s=0.0)
    for count, _ in enumerate(work.run(network()), 1):
        if count == broken_after:
            break
    found = finish(work, resumed)
    assert found == wanted[broken_after:]
    state = resumed.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in undisturbed.state_dict().items())


def test_another_training_starts_anew(tmp_path: Path) -> None:
    first, again, other = linear(), linear(), linear()
    finish(plan(tmp_path, *TWO), first)
    assert finish(plan(tmp_path, *TWO), again) == []
    assert torch.equal(weights_of(first), weights_of(again))
    labels = LABELS.copy()
    labels[0, 0] += 0.25
    for work in (plan(tmp_path, *TWO, data=dataset(labels)), plan(tmp_path, *TWO, seed=9)):
        assert len(finish(work, other)) == 15


def test_a_batch_has_clips_and_ladders(tmp_path: Path) -> None:
    """The network gets what the dataset holds, ladders last, with either polarity."""
    network = linear()
    data = dataset(ladders=np.arange(200, N).reshape(10, 4))
    finish(plan(tmp_path, stage(1.0, ladders=3), data=data), network)
    seen = network.encoder.seen
    assert isinstance(seen, list)
    assert len(seen) == 200 // 12
    signs = []
    for batch in seen:
        samples = (batch.numpy() * 2**15).astype(np.int64)
        signs += samples[:, 0].tolist()
        assert (np.sign(samples) == np.sign(samples[:, :1])).all()
        rows = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in np.abs(samples)]
        assert max(rows[:12]) < 200
        ladders = np.array(rows[12:]).reshape(3, 4)
        assert len(set(ladders[:, 0])) == 3
        np.testing.assert_array_equal(ladders, ladders[:, :1] + np.arange(4))
    assert 0.4 < np.mean(np.array(signs) > 0) < 0.6


def test_responses_are_equal_within_a_group_and_3_db_wide() -> None:
    groups = np.repeat(np.arange(1000), 2)
    gains = training.random_responses(groups, np.random.default_rng(3))
    assert gains.shape == (2000, BINS)
    assert gains.dtype == np.float32
    np.testing.assert_array_equal(gains[::2], gains[1::2])
    levels_db = 20 * np.log10(gains[::2].astype(np.float64))
    changed = levels_db.any(axis=1)
    assert changed.mean() == pytest.approx(0.7, abs=3.5 * (0.7 * 0.3 / 1000) ** 0.5)
    # At the ends there is a knot; between two of them their mean varies less.
    for edge in (0, -1):
        assert levels_db[changed, edge].std() == pytest.approx(3, rel=0.1)
    widths = levels_db[changed].std(axis=0)
    assert 3 / 2**0.5 - 0.2 < widths.min() < widths.max() < 3.4
    # Smooth: a tenth of a bin's gain at most to the next.
    assert np.abs(np.diff(levels_db, axis=1)).max() < 3.0
    assert levels_db[changed].mean() == pytest.approx(0, abs=0.15)


def test_only_tuning_has_other_microphones(tmp_path: Path) -> None:
    heard: list[torch.Tensor] = []

    class Listening(FirstSamples):
        def forward(
            self, waveform: torch.Tensor, gains: torch.Tensor | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            assert gains is not None
            heard.append(gains)
            return super().forward(waveform, gains)

    network = linear()
    network.encoder = Listening()  # type: ignore[assignment]
    stages = (stage(0.2, name="first"), stage(0.2, name="second", microphones=True))
    data = dataset(ladders=np.arange(200, N).reshape(10, 4))
    finish(plan(tmp_path, *stages, data=data), network)
    plain, varied = heard[: len(heard) // 2], heard[len(heard) // 2 :]
    assert all((each == 1).all() for each in plain)
    assert any((each != 1).any() for each in varied)


def test_unknown_labels_have_no_influence() -> None:
    """Predictions without a label change neither loss nor gradient."""
    rng = np.random.default_rng(2)
    targets = torch.from_numpy(rng.standard_normal((12, 3)).astype(np.float32))
    targets[::3, 1] = math.nan
    targets[:, 2] = math.nan  # a batch in which a domain has no label at all
    found = []
    for size in (1.0, -50.0):
        scores = torch.from_numpy(np.random.default_rng(3).standard_normal((12, 3)))
        scores[::3, 1] = size
        scores[:, 2] *= size
        scores.requires_grad_()
        loss = training.label_loss(scores, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        assert scores.grad is not None
        assert not scores.grad[torch.isnan(targets)].any()
        assert scores.grad[torch.isfinite(targets)].all()
        found.append(float(loss.detach()))
    assert found[0] == found[1]


def test_the_label_loss_equals_loops() -> None:
    """Every pair and every clip by loops in float64."""
    rng = np.random.default_rng(4)
    scores = rng.standard_normal((9, 2))
    targets = rng.standard_normal((9, 2))
    targets[[1, 4], 0] = math.nan
    total = 0.0
    for domain in range(2):
        squares, pairs = [], []
        for i in range(9):
            if math.isnan(targets[i, domain]):
                continue
            squares.append((scores[i, domain] - targets[i, domain]) ** 2)
            for j in range(9):
                if targets[i, domain] - targets[j, domain] > 0.2:
                    lead = scores[i, domain] - scores[j, domain]
                    pairs.append(math.log1p(math.exp(-3 * lead)) / 3)
        total += (sum(squares) / len(squares) + 0.3 * sum(pairs) / len(pairs)) / 2
    found = training.label_loss(torch.from_numpy(scores), torch.from_numpy(targets))
    assert float(found) == pytest.approx(total, rel=1e-9)


def test_the_deviation_loss_is_the_likelihood_of_a_normal_distribution() -> None:
    """scipy's, in float64, less the constant; and clips without a label have no influence."""
    rng = np.random.default_rng(8)
    deviation = rng.uniform(0.05, 2.0, (20, 1))
    error = rng.standard_normal((20, 1))
    error[[3, 11]] = math.nan
    known = np.isfinite(error)
    wanted = -norm.logpdf(error[known], scale=deviation[known]).mean() - math.log(2 * math.pi) / 2
    given = torch.from_numpy(deviation).requires_grad_()
    loss = training.deviation_loss(given, torch.from_numpy(error))
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-12)
    loss.backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None
    gradient = (1 / deviation - error**2 / deviation**3) / known.sum()
    np.testing.assert_allclose(given.grad.numpy(), np.where(known, gradient, 0), rtol=1e-12)
    none = torch.full((3, 1), math.nan)
    assert float(training.deviation_loss(torch.ones(3, 1), none)) == 0


def test_the_hint_loss_is_the_mean_square_of_what_is_known() -> None:
    rng = np.random.default_rng(9)
    found, hints = rng.standard_normal((2, 4, 3, 6))
    hints[1] = math.nan  # a clip that the teacher does not score
    hints[2, :, 4:] = math.nan
    squares = [
        (found[i] - hints[i]) ** 2
        for i in np.ndindex(hints.shape)
        if not math.isnan(hints[i])
    ]  # fmt: skip
    given = torch.from_numpy(found).requires_grad_()
    loss = training.hint_loss(given, torch.from_numpy(hints))
    assert float(loss.detach()) == pytest.approx(np.mean(squares), rel=1e-12)
    loss.backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None
    assert torch.isfinite(given.grad).all()
    np.testing.assert_array_equal(given.grad.numpy() != 0, np.isfinite(hints))
    none = torch.full((1, 2, 3), math.nan)
    assert float(training.hint_loss(torch.ones(1, 2, 3), none)) == 0


def test_the_weights_end_as_their_running_average(tmp_path: Path) -> None:
    """Recomputed from the weights after every step.

    The last step's weights are not seen; by the schedule they differ by 2e-4 from those before.
    """
    network = linear()
    average: dict[str, NDArray[np.float64]] = {}
    last: dict[str, NDArray[np.float64]] = {}
    for step, (_, done, _) in enumerate(plan(tmp_path, stage(4)).run(network)):
        keep = step / (step + 10)
        if done < 1:
            last = {key: value.double().numpy() for key, value in network.state_dict().items()}
        for key, value in last.items():
            average[key] = keep * average[key] + (1 - keep) * value if step else value.copy()
    for key, value in network.state_dict().items():
        np.testing.assert_allclose(value.numpy(), average[key], atol=2e-4)
        assert np.abs(value.numpy() - last[key]).max() > 1e-3


def test_the_rate_rises_and_falls() -> None:
    rates = [training.schedule(done) for done in np.linspace(0, 1, 201)]
    assert rates[0] == 0
    assert rates[20] == pytest.approx(1)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert np.all(np.diff(rates[:21]) > 0)
    assert np.all(np.diff(rates[20:]) < 0)


def test_standardisation_skips_unknown_labels() -> None:
    labels = np.array([[1, 2], [3, np.nan], [5, 8], [3, 5]], np.float32)
    standard = Standardisation.of(labels)
    np.testing.assert_allclose(standard.mean, [3, 5])
    np.testing.assert_allclose(standard.deviation, [2**0.5, 6**0.5], rtol=1e-6)
