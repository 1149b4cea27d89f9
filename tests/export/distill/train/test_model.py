"""Tests the network, its default score, and its checkpoints."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from mosrt_export.distill.data.images import MEL
from mosrt_export.distill.train.model import (
    OVERALL,
    Head,
    MelBranch,
    Student,
    StudentGraph,
    combined,
)
from mosrt_export.errors import CheckpointError
from tests.standins.nano import LABELS, STANDARD, random_student

COMBINATION = random_student().combination


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def feed(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((2, len(MEL.windows), MEL.image_height, 64), generator=generator)


@torch.inference_mode()
def test_all_domains_are_scored_at_once() -> None:
    graph = StudentGraph(random_student())
    assert graph.domains == (OVERALL, *LABELS)
    assert graph.input_names == ("images",)
    outputs = dict(zip(graph.output_sizes, graph(feed()), strict=True))
    for name, size in graph.output_sizes.items():
        assert outputs[name].shape == (2, size)
    features = graph.features({"images": feed()})
    for i, one_hot in enumerate(torch.eye(graph.n_domains)):
        score = graph.score(features, one_hot.expand(2, -1))
        torch.testing.assert_close(score, outputs["mos"][:, i])
    for name, value in features.items():
        assert torch.equal(value, outputs[name])


@torch.inference_mode()
def test_scores_are_on_the_scales_of_their_labels() -> None:
    """Standardised scores times deviation plus mean; the first column combines the others."""
    student = random_student()
    mos, *_ = StudentGraph(student)(feed())
    wanted = student.network(feed()).numpy() * STANDARD.deviation + STANDARD.mean
    np.testing.assert_allclose(mos[:, 1:].numpy(), wanted, rtol=1e-5)
    for row in mos.double().numpy():
        scores = dict(zip(LABELS, row[1:], strict=True))
        z_scores = [
            (scores[name] - z["mean"]) / z["deviation"]
            for name, z in COMBINATION["averaged"].items()
        ]
        total = sum(z_scores) / len(z_scores)
        for name, penalty in COMBINATION["penalties"].items():
            total -= penalty["slope"] * max(0.0, penalty["threshold"] - scores[name])
        assert row[0] == pytest.approx(
            COMBINATION["offset"] + COMBINATION["scale"] * total, abs=1e-4
        )


@torch.inference_mode()
def test_without_a_rule_the_first_domain_is_the_default() -> None:
    student = random_student(domains=("ours", "theirs"))
    graph = StudentGraph(student)
    assert graph.domains == ("ours", "theirs")
    assert graph.combination == {}
    mos, *_ = graph(feed())
    wanted = student.network(feed()).numpy() * STANDARD.deviation[:2] + STANDARD.mean[:2]
    np.testing.assert_allclose(mos.numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("domains", [LABELS, ("ours",)])
def test_checkpoints_come_back(domains: tuple[str, ...], tmp_path: Path) -> None:
    student = random_student(domains=domains)
    path = tmp_path / "student.pt"
    student.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["student.pt"]
    again = Student.load(path)
    assert again.domains == domains
    assert again.combination == student.combination
    assert again.provenance == student.provenance
    assert not again.network.training
    np.testing.assert_array_equal(again.standard.mean, student.standard.mean)
    np.testing.assert_array_equal(again.standard.deviation, student.standard.deviation)
    with torch.inference_mode():
        assert torch.equal(again.network(feed()), student.network(feed()))


def test_another_seed_is_another_model() -> None:
    """Guards the other tests against weights that do not matter."""
    with torch.inference_mode():
        first, second = (random_student(seed).network(feed()) for seed in (0, 1))
    assert not torch.allclose(first, second)


def saved(path: Path, **changes: object) -> Path:
    random_student().save(path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)
    return path


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.pt"
    text.write_text("not even a pickle")
    tensor = tmp_path / "tensor.pt"
    torch.save(torch.zeros(3), tensor)
    other = saved(tmp_path / "state.pt", state={})
    for path in (text, tensor, other, tmp_path / "none.pt"):
        with pytest.raises(CheckpointError, match=f"{path.name}: not a checkpoint"):
            Student.load(path)
    older = saved(tmp_path / "older.pt", format="mosrt-nano-0")
    with pytest.raises(CheckpointError, match="mosrt-nano-0"):
        Student.load(older)


def test_foreign_classes_are_not_unpickled(tmp_path: Path) -> None:
    path = saved(tmp_path / "evil.pt", provenance={"third": Fraction(1, 3)})
    with pytest.raises(CheckpointError, match=r"(?s)evil\.pt: .*fractions\.Fraction"):
        Student.load(path)


def test_writing_is_atomic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    random_student().save(path)
    before = path.read_bytes()

    def breaks_off(_content: object, part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", breaks_off)
    with pytest.raises(OSError, match="no space"):
        random_student(1).save(path)
    assert path.read_bytes() == before


@torch.inference_mode()
def test_the_mel_branch_pools_frames_and_patterns() -> None:
    """Mean, deviation, maximum and attention of frames, and maxima of maps, in float64."""
    branch = MelBranch().eval()
    images = torch.rand(3, len(MEL.windows), MEL.n_mels, 50)
    found = branch(images).numpy()
    assert found.shape == (3, branch.feature_size) == (3, 4 * 96 + 64)
    maps = branch.stages(2 * images - 1).double().numpy()
    assert maps.shape[:3] == (3, 64, 15)
    weight = branch.frame.weight[:, :, 0].double().numpy()
    bias = branch.frame.bias
    assert bias is not None
    attention_bias = branch.attention.bias
    assert attention_bias is not None
    for clip, wanted in zip(maps, found, strict=True):
        columns = clip.reshape(64 * 15, -1)
        frames = np.maximum(weight @ columns + bias.double().numpy()[:, None], 0)
        scores = branch.attention.weight[0, :, 0].double().numpy() @ frames
        scores += attention_bias.double().numpy()
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        parts = [
            frames.mean(axis=1),
            np.sqrt(frames.var(axis=1) + 1e-4),
            frames.max(axis=1),
            frames @ shares,
            clip.max(axis=(1, 2)),
        ]
        np.testing.assert_allclose(wanted, np.concatenate(parts), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_scores_do_not_depend_on_the_batch() -> None:
    branch = MelBranch().eval()
    images = torch.rand(4, len(MEL.windows), MEL.n_mels, 50)
    together = branch(images)
    for i in range(4):
        torch.testing.assert_close(branch(images[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-6)


def test_constant_frames_have_finite_gradients() -> None:
    """The deviation of constant frames stays above zero, where its gradient is infinite."""
    branch = MelBranch()
    images = torch.zeros(2, len(MEL.windows), MEL.n_mels, 16, requires_grad=True)
    branch(images).sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
    for parameter in branch.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@torch.inference_mode()
def test_the_head_is_conditioned_on_the_domain() -> None:
    """The hidden layer is scaled and shifted for each domain, in float64 loops."""
    head = Head(7, 3).eval()
    head.norm.running_mean = torch.randn(7)
    head.norm.running_var = torch.rand(7) + 0.5
    head.offset.data.normal_()
    features = torch.randn(4, 7)
    found = head(features).numpy()
    state = {key: value.double().numpy() for key, value in head.state_dict().items()}
    for clip in range(4):
        x = (features[clip].double().numpy() - state["norm.running_mean"]) / np.sqrt(
            state["norm.running_var"] + 1e-5
        )
        hidden = state["shared.weight"] @ x + state["shared.bias"]
        for domain in range(3):
            seen = np.maximum(hidden * state["scale"][domain] + state["shift"][domain], 0)
            wanted = seen @ state["score"][domain] + state["offset"][domain]
            assert found[clip, domain] == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_the_combination_is_its_formula() -> None:
    rule = {
        "averaged": {"a": {"mean": 3.5, "deviation": 0.4}, "c": {"mean": 2.5, "deviation": 0.8}},
        "penalties": {
            "b": {"threshold": 3.0, "slope": 0.5},
            "c": {"threshold": 2.0, "slope": 0.25},
        },
        "offset": 3.25,
        "scale": 0.6,
    }
    rows = [[2.5, 4.0, 3.5], [1.0, 2.0, 4.3], [4.1, 3.0, 2.9], [2.0, 1.5, 3.1]]
    found = combined(torch.tensor(rows), "cba", rule)
    assert found.shape == (4, 1)
    for row, score in zip(rows, found[:, 0].tolist(), strict=True):
        c, b, a = row
        total = ((a - 3.5) / 0.4 + (c - 2.5) / 0.8) / 2
        total -= 0.5 * max(0.0, 3.0 - b) + 0.25 * max(0.0, 2.0 - c)
        assert score == pytest.approx(3.25 + 0.6 * total, abs=1e-5)
    assert found[0].item() == pytest.approx(3.25)  # average in both, no penalty
