"""Tests the losses, the stages and their resumption, and the moving average."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mosrt_export.distill.data.dataset import Dataset
from mosrt_export.distill.recipe import Stage
from mosrt_export.distill.train import training
from mosrt_export.distill.train.training import Standardisation, Training

N, SIZE = 240, 5
X = np.random.default_rng(0).standard_normal((N, SIZE)).astype(np.float16)
SLOPES = np.random.default_rng(1).standard_normal((SIZE, 2)).astype(np.float32)
LABELS = (X @ SLOPES * np.float32(0.5) + np.array([3.0, 2.0], np.float32)).astype(np.float32)
NONE = np.empty((0, 4), np.int64)


def dataset(labels: NDArray[np.float32] = LABELS, ladders: NDArray[np.int64] = NONE) -> Dataset:
    """Images of one pixel with as many windows as the problem has features, in two files."""
    images = X[:, :, None, None]
    return Dataset([images[: N // 2], images[N // 2 :]], labels, ladders)


def plan(
    folder: Path, *stages: Stage, data: Dataset | None = None, seed: int = 0, batch: int = 24
) -> Training:
    used = data or dataset()
    return Training(
        dataset=used, standard=Standardisation.of(used.labels), stages=stages, batch=batch,
        seed=seed, reduced=False, resume=folder / "training.pt", save_every_s=1e9,
    )  # fmt: skip


def stage(epochs: float, **changes: object) -> Stage:
    return Stage(**{"name": "only", "epochs": epochs, "rate": 0.03, **changes})  # type: ignore[arg-type]


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 2))


def finish(work: Training, network: nn.Module) -> list[tuple[str, float, float]]:
    return list(work.run(network))


def test_a_linear_problem_is_solved(tmp_path: Path) -> None:
    """Without noise the least-squares solution is near, and training finds it."""
    network = linear()
    losses = [loss for _, _, loss in finish(plan(tmp_path, stage(25)), network)]
    assert np.mean(losses[-10:]) < 0.2 * losses[0]
    standard = Standardisation.of(LABELS)
    with torch.inference_mode():
        scores = network(torch.from_numpy(X).float()[:, :, None, None]).numpy()
    error = scores * standard.deviation + standard.mean - LABELS
    assert np.sqrt(np.mean(error**2)) < 0.1
    assert not network.training


def test_ladders_alone_find_the_order(tmp_path: Path) -> None:
    """The labels are noise, so that only the ladders define an order."""
    noise = np.random.default_rng(5).standard_normal(LABELS.shape).astype(np.float32)
    singles, rest = np.arange(40), np.arange(40, N)
    by_quality = rest[np.argsort(-X[40:, 0].astype(np.float32), kind="stable")].reshape(4, 50).T
    order = np.concatenate([singles, by_quality.ravel()])
    data = Dataset([X[order][:, :, None, None]], noise, np.arange(40, N).reshape(50, 4))
    found = []
    for number, climbing in enumerate((0.0, 50.0)):
        network = linear()
        folder = tmp_path / str(number)
        folder.mkdir()
        finish(plan(folder, stage(30, climbing=climbing, ladders=4), data=data), network)
        scores = network(torch.from_numpy(X[order]).float()).detach().numpy()[data.ladders]
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
        weights.append(network.state_dict()["1.weight"].clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("broken_after", [1, 4, 10, 12, 15])
def test_an_interrupted_training_continues_as_if_nothing_had_happened(
    broken_after: int, tmp_path: Path
) -> None:
    """Bit for bit, with dropout and batch norm, wherever it was interrupted."""

    def network() -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(SIZE), nn.Dropout(0.3), *linear())

    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    undisturbed, resumed = network(), network()
    wanted = finish(plan(tmp_path / "whole", *TWO), undisturbed)
    work = dataclasses.replace(plan(tmp_path / "broken", *TWO), save_every_s=0.0)
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
    assert torch.equal(first.state_dict()["1.weight"], again.state_dict()["1.weight"])
    labels = LABELS.copy()
    labels[0, 0] += 0.25
    for work in (plan(tmp_path, *TWO, data=dataset(labels)), plan(tmp_path, *TWO, seed=9)):
        assert len(finish(work, other)) == 15


def test_clips_of_a_batch_are_images_and_ladders(tmp_path: Path) -> None:
    """The network gets what the dataset holds, ladders last."""
    seen: list[torch.Tensor] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images[:, :, 0, 0])
            result: torch.Tensor = self.linear(images)
            return result

    data = dataset(ladders=np.arange(200, N).reshape(10, 4))
    finish(plan(tmp_path, stage(1.0, ladders=3), data=data), Watching())
    assert len(seen) == 200 // 12
    for batch in seen:
        rows = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in batch.half().numpy()]
        assert max(rows[:12]) < 200
        ladders = np.array(rows[12:]).reshape(3, 4)
        assert len(set(ladders[:, 0])) == 3
        np.testing.assert_array_equal(ladders, ladders[:, :1] + np.arange(4))


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
