"""Tests what students score, their default score, and their checkpoints."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mosrt_export.distill.train.model import (
    MOS_RANGE,
    OVERALL,
    Student,
    StudentGraph,
    combined,
    default_score,
)
from mosrt_export.distill.train.network import STEP_SAMPLES, StudentNetwork
from mosrt_export.errors import CheckpointError
from tests.standins.nano import LABELS, STANDARD, random_student

COMBINATION = random_student().combination


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def feed(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn((2, 4 * STEP_SAMPLES), generator=generator)


def standardised(network: StudentNetwork) -> NDArray[np.float32]:
    """A network's own scores of `feed`, (2, domains)."""
    scores: NDArray[np.float32] = network.head(network.encoder(feed())[1])[0].numpy()
    return scores


@torch.inference_mode()
def test_all_domains_are_scored_at_once() -> None:
    graph = StudentGraph(random_student())
    assert graph.domains == (OVERALL, *LABELS)
    assert graph.input_names == ("waveform",)
    outputs = dict(zip(graph.output_sizes, graph(feed()), strict=True))
    assert set(outputs) == {"mos", "deviation", "features"}
    for name, size in graph.output_sizes.items():
        assert outputs[name].shape == (2, size)
    features = graph.features({"waveform": feed()})
    for i, one_hot in enumerate(torch.eye(graph.n_domains)):
        score = graph.score(features, one_hot.expand(2, -1))
        torch.testing.assert_close(score, outputs["mos"][:, i])
    for name, value in features.items():
        assert torch.equal(value, outputs[name])


@torch.inference_mode()
def test_scores_are_on_the_scales_of_their_labels() -> None:
    """Standardised scores times deviation plus mean; the first column combines the others."""
    student = random_student()
    mos, deviation, _ = StudentGraph(student)(feed())
    wanted = standardised(student.network) * STANDARD.deviation + STANDARD.mean
    np.testing.assert_allclose(mos[:, 1:].numpy(), wanted.clip(*MOS_RANGE), rtol=1e-5)
    assert (deviation > 0).all()
    for row in mos.double().numpy():
        assert ((row > MOS_RANGE[0]) & (row < MOS_RANGE[1])).all()  # none of them is cut off
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
    wanted = standardised(student.network) * STANDARD.deviation[:2] + STANDARD.mean[:2]
    np.testing.assert_allclose(mos.numpy(), wanted.clip(*MOS_RANGE), rtol=1e-5)
    labels = torch.tensor([[2.5, 4.0], [1.0, 3.0]])
    assert default_score(labels, domains=graph.domains, rule={}).tolist() == [[2.5], [1.0]]


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
    assert again.deviation_factor == student.deviation_factor
    assert not again.network.training
    np.testing.assert_array_equal(again.standard.mean, student.standard.mean)
    np.testing.assert_array_equal(again.standard.deviation, student.standard.deviation)
    with torch.inference_mode():
        np.testing.assert_array_equal(standardised(again.network), standardised(student.network))


@torch.inference_mode()
def test_what_compares_hints_is_not_kept(tmp_path: Path) -> None:
    student = random_student()
    network = StudentNetwork(len(LABELS), 200)
    network.load_state_dict(student.network.state_dict(), strict=False)
    dataclasses.replace(student, network=network.eval()).save(tmp_path / "student.pt")
    again = Student.load(tmp_path / "student.pt").network
    assert again.hint is None
    np.testing.assert_array_equal(standardised(again), standardised(student.network))


def test_another_seed_is_another_model() -> None:
    """Guards the other tests against weights that do not matter."""
    with torch.inference_mode():
        first, second = (standardised(random_student(seed).network) for seed in (0, 1))
    assert not np.allclose(first, second)


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
    by_name = default_score(torch.tensor(rows), domains="cba", rule=rule)
    assert torch.equal(by_name, found)
