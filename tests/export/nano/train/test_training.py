"""Tests the losses, the schedule and the moving average against plain loops."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import pearsonr, rankdata
from torch import nn

from mosrt_export.nano.train import training
from mosrt_export.nano.train.training import Standardisation, TrainingConfig, correlations, train

N, SIZE = 240, 5
X = np.random.default_rng(0).standard_normal((N, SIZE)).astype(np.float32)
SLOPES = np.random.default_rng(1).standard_normal((SIZE, 2)).astype(np.float32)
LABELS = (X @ SLOPES * np.float32(0.5) + np.array([3.0, 2.0], np.float32)).astype(np.float32)
ALL = np.arange(N)


def inputs(numbers: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
    return (torch.from_numpy(X[numbers]),)


def config(epochs: float = 1.0, **changes: object) -> TrainingConfig:
    plain: dict[str, object] = {"batch": 24, "rate": 0.03, "weight_decay": 0.0, "reduced": False}
    return TrainingConfig(epochs=epochs, **{**plain, **changes})  # type: ignore[arg-type]


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(SIZE, 2)


def test_a_linear_problem_is_solved() -> None:
    """Without noise the least-squares solution is exact, and training finds it within 1 %."""
    network, standard = linear(), Standardisation.of(LABELS)
    losses = [loss for _, loss in train(
        network, inputs, LABELS, ALL, standard, config(60, ranking=0.0)
    )]  # fmt: skip
    assert np.mean(losses[-10:]) < 1e-3 * losses[0]
    wanted = SLOPES.T * 0.5 / standard.deviation[:, None]
    np.testing.assert_allclose(network.weight.detach().numpy(), wanted, atol=0.01)
    assert not network.training
    scores = training.predict(network, inputs, ALL, standard)
    np.testing.assert_allclose(scores, LABELS, atol=0.05)


def test_ranking_alone_finds_the_order() -> None:
    network, standard = linear(), Standardisation.of(LABELS)
    before = [spearman for _, spearman in correlations(
        training.predict(network, inputs, ALL, standard), LABELS
    )]  # fmt: skip
    for _ in train(network, inputs, LABELS, ALL, standard, config(20, ranking=3.0)):
        pass
    after = correlations(training.predict(network, inputs, ALL, standard), LABELS)
    assert max(before) < 0.9
    assert min(spearman for _, spearman in after) > 0.99


def test_ladders_alone_find_the_order() -> None:
    """The labels are noise, so that only the ladders define an order."""
    rng = np.random.default_rng(5)
    noise = rng.standard_normal(LABELS.shape).astype(np.float32)
    by_quality = np.argsort(-X[:, 0]).reshape(4, N // 4).T  # 60 ladders, the best first
    found = []
    for climbing in (0.0, 5.0):
        network = linear()
        options = config(20, ranking=0.0, climbing=climbing)
        for _ in train(network, inputs, noise, ALL, Standardisation.of(noise), options,
                       ladders=by_quality):  # fmt: skip
            pass
        scores = network(torch.from_numpy(X)).detach().numpy()[by_quality]
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


def test_progress_ends_at_one_and_the_seed_decides() -> None:
    standard = Standardisation.of(LABELS)
    results = []
    for seed in (3, 3, 4):
        network = linear()
        done = [share for share, _ in train(
            network, inputs, LABELS, ALL, standard, config(2.5, seed=seed)
        )]  # fmt: skip
        assert len(done) == 25
        assert done == sorted(done)
        assert done[-1] == 1.0
        results.append(network.weight.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


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
        loss = training.label_loss(scores, targets, config())
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
    options = config(ranking=0.3, margin=0.2)
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
    found = training.label_loss(torch.from_numpy(scores), torch.from_numpy(targets), options)
    assert float(found) == pytest.approx(total, rel=1e-9)


def test_the_weights_end_as_their_running_average() -> None:
    """Recomputed from the weights after every step; the average of a batch norm's too."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.BatchNorm1d(SIZE), nn.Linear(SIZE, 2))
    average: dict[str, NDArray[np.float64]] = {}
    steps = train(network, inputs, LABELS, ALL, Standardisation.of(LABELS), config(4, average=0.7))
    last: dict[str, torch.Tensor] = {}
    for step, _ in enumerate(steps):
        keep = min(0.7, step / (step + 10))
        last = copy.deepcopy(network.state_dict())
        for key, value in last.items():
            now = value.double().numpy()
            average[key] = now if step == 0 else keep * average[key] + (1 - keep) * now
    state = network.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            np.testing.assert_allclose(value.numpy(), average[key], rtol=1e-4, atol=1e-5)
            assert not torch.equal(value, last[key])
    assert int(state["0.num_batches_tracked"]) == 40


def test_the_rate_rises_and_falls() -> None:
    rates = [training.schedule(done) for done in np.linspace(0, 1, 201)]
    assert rates[0] == 0
    assert rates[20] == pytest.approx(1)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert np.all(np.diff(rates[:21]) > 0)
    assert np.all(np.diff(rates[20:]) < 0)


def test_every_clip_comes_up_once_per_epoch() -> None:
    chosen = np.arange(100, 130)
    batches = list(training.sample_batches(chosen, 7, 30, np.random.default_rng(0)))
    assert all(len(batch) == 7 for batch in batches)
    order = np.concatenate(batches)
    for epoch in range(7):
        assert sorted(order[epoch * 30 : (epoch + 1) * 30]) == chosen.tolist()
    assert order[:30].tolist() != order[30:60].tolist()


def test_clips_are_sampled_by_their_shares() -> None:
    chosen = np.arange(100, 104)
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    batches = training.sample_batches(chosen, 8, 1000, np.random.default_rng(0), shares)
    counts = np.bincount(np.concatenate(list(batches)) - 100) / 8000
    # four deviations of a share of 8000 draws
    assert np.all(np.abs(counts - shares) < 4 * np.sqrt(shares * (1 - shares) / 8000))


def test_standardisation_skips_unknown_labels() -> None:
    labels = np.array([[1, 2], [3, np.nan], [5, 8], [3, 5]], np.float32)
    standard = Standardisation.of(labels)
    np.testing.assert_allclose(standard.mean, [3, 5])
    np.testing.assert_allclose(standard.deviation, [2**0.5, 6**0.5], rtol=1e-6)


def test_correlations_are_scipys() -> None:
    """Spearman's is Pearson's of the ranks, ties shared."""
    rng = np.random.default_rng(5)
    scores = np.round(rng.standard_normal((50, 2)), 1).astype(np.float32)
    labels = (scores + np.round(rng.standard_normal((50, 2)), 1)).astype(np.float32)
    labels[:7, 1] = np.nan
    for domain, (pearson, spearman) in enumerate(correlations(scores, labels)):
        known = ~np.isnan(labels[:, domain])
        a, b = scores[known, domain], labels[known, domain]
        assert pearson == pytest.approx(pearsonr(a, b)[0], abs=1e-6)
        assert spearman == pytest.approx(pearsonr(rankdata(a), rankdata(b))[0], abs=1e-6)
