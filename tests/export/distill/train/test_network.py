"""Tests what has no effect on the network, its pooling, and its head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mosrt_export.distill.train.model import MOS_RANGE, StudentGraph
from mosrt_export.distill.train.network import (
    BINS,
    FRAME_SIZE,
    HINT_SAMPLES,
    SEGMENT_SAMPLES,
    STEP_SAMPLES,
    Encoder,
    Head,
    StudentNetwork,
)
from tests.standins.nano import random_student, speech

# Float32 rounding through a dozen layers, of scores and of embeddings, which are of order one.
SCORES, EMBEDDING = 2e-5, 5e-5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def graph() -> StudentGraph:
    return StudentGraph(random_student())


def said(seconds: float = 3.0) -> torch.Tensor:
    """A spoken sentence, (1, samples)."""
    return torch.from_numpy(speech(seconds))[None]


def whole(waveform: torch.Tensor, before: int = 0) -> torch.Tensor:
    """A segment, with zeros before and after."""
    after = SEGMENT_SAMPLES - before - waveform.shape[1]
    return functional.pad(waveform, (before, after))


@torch.inference_mode()
def differences(
    graph: StudentGraph, one: torch.Tensor, other: torch.Tensor
) -> tuple[float, float, float]:
    """Largest differences of scores, deviation, embedding."""
    scores, deviation, embedding = (
        float((a - b).abs().max()) for a, b in zip(graph(one), graph(other), strict=True)
    )
    return scores, deviation, embedding


@torch.inference_mode()
def test_recordings_differ(graph: StudentGraph) -> None:
    """Guards all of these tests against a network that answers the same to everything."""
    waveforms = torch.cat([whole(said()), whole(0.1 * torch.randn(1, 48_000))])
    scores, _, embedding = graph(waveforms)
    assert float((scores[0] - scores[1]).abs().max()) > 0.1
    assert float((embedding[0] - embedding[1]).abs().max()) > 0.5


@pytest.mark.parametrize("first", [0, 14_000])  # begins and ends in silence, or in a word
@pytest.mark.parametrize("length", [6_399, 6_400, 6_401, 12 * STEP_SAMPLES, 13 * STEP_SAMPLES])
def test_zeros_at_the_end_change_nothing(graph: StudentGraph, length: int, first: int) -> None:
    """From one step of them on, wherever the recording ends."""
    waveform = speech(4)[first : first + length]
    steps = -(-length // STEP_SAMPLES) + 1
    short = torch.from_numpy(np.pad(waveform, (0, steps * STEP_SAMPLES - length)))[None]
    for longer in (functional.pad(short, (0, STEP_SAMPLES)), whole(short)):
        scores, deviation, embedding = differences(graph, short, longer)
        assert max(scores, deviation) < SCORES
        assert embedding < EMBEDDING


def test_silence_at_the_beginning_changes_little(graph: StudentGraph) -> None:
    """By whole frames, and where no sound is cut into; the network sees where an input begins."""
    for before in (HINT_SAMPLES, 10 * HINT_SAMPLES, 40 * HINT_SAMPLES):
        scores, _, embedding = differences(graph, whole(said()), whole(said(), before))
        assert scores < 1e-3
        assert embedding < 1e-3


@pytest.mark.parametrize("gain", [-1.0, 0.003, 0.1, 5.0])
def test_neither_level_nor_polarity_matters(graph: StudentGraph, gain: float) -> None:
    """Above the power that keeps silence apart, which is below 16 bits."""
    scores, deviation, embedding = differences(graph, whole(said()), gain * whole(said()))
    assert max(scores, deviation) < SCORES
    assert embedding < EMBEDDING


@pytest.mark.parametrize("offset", [0.01, 0.3])
def test_a_constant_offset_does_not_matter(graph: StudentGraph, offset: float) -> None:
    """If it does not begin with a click, and hardly even then."""
    fade = np.sin(np.linspace(0, np.pi / 2, 12_000)) ** 2
    level = np.concatenate([fade, np.ones(SEGMENT_SAMPLES - 24_000), fade[::-1]])
    waveform = whole(said(), 16_000)
    faded = waveform + torch.from_numpy(offset * level).float()
    scores, deviation, embedding = differences(graph, waveform, faded)
    assert max(scores, deviation) < 1e-4
    assert embedding < 1e-3
    assert differences(graph, waveform, waveform + offset)[0] < 0.05


@torch.inference_mode()
@pytest.mark.parametrize("seed", [0, 1])
def test_everything_has_a_score(seed: int) -> None:
    graph = StudentGraph(random_student(seed))
    rows = torch.cat(
        [
            torch.zeros(1, SEGMENT_SAMPLES),
            torch.full((1, SEGMENT_SAMPLES), 0.5),
            functional.pad(torch.ones(1, 1), (0, SEGMENT_SAMPLES - 1)),
            1e-6 * torch.randn(1, SEGMENT_SAMPLES),
            torch.sign(torch.randn(1, SEGMENT_SAMPLES)),
            1e4 * torch.randn(1, SEGMENT_SAMPLES),
        ]
    )
    for outputs in (graph(rows), graph(rows[:, : 2 * STEP_SAMPLES])):
        assert all(torch.isfinite(each).all() for each in outputs)
        assert ((outputs[0] >= MOS_RANGE[0]) & (outputs[0] <= MOS_RANGE[1])).all()
        assert (outputs[1] > 0).all()


@torch.inference_mode()
def test_scores_stay_in_their_range() -> None:
    """However far the head goes."""
    student = random_student(domains=("ours", "theirs"))
    student.network.head.offset.copy_(torch.tensor([-90.0, 90.0]))
    scores = StudentGraph(student)(whole(said()))[0]
    assert scores[0].tolist() == list(MOS_RANGE)


@torch.inference_mode()
def test_scores_do_not_depend_on_the_batch(graph: StudentGraph) -> None:
    rows = torch.cat([said(1.28), 1e-3 * torch.randn(1, 20_480), torch.zeros(1, 20_480)])
    together = graph(rows)
    for i in range(len(rows)):
        for one, all_ in zip(graph(rows[i : i + 1]), together, strict=True):
            torch.testing.assert_close(one[0], all_[i], rtol=0, atol=EMBEDDING)


@torch.inference_mode()
def test_a_frequency_response_is_one_of_power() -> None:
    """Applied within the network it is what a filter does to the waveform, here of one gain."""
    encoder = random_student().network.encoder
    waveform = whole(said())
    frames, plain = encoder(waveform)
    assert frames.shape == (1, FRAME_SIZE, SEGMENT_SAMPLES // HINT_SAMPLES)
    torch.testing.assert_close(
        encoder(waveform, torch.full((1, BINS), 0.5))[1], plain, rtol=0, atol=EMBEDDING
    )
    low = (torch.arange(BINS) < BINS // 2).float()[None] + 0.1
    assert float((encoder(waveform, low)[1] - plain).abs().max()) > 0.1


@torch.inference_mode()
def test_the_embedding_pools_what_is_not_silent() -> None:
    """Attention, mean and deviation of frames, by the weights of loud frames, in float64."""
    encoder = random_student().network.encoder
    n_loud = 20
    loud = 0.1 * torch.randn(1, n_loud * HINT_SAMPLES)
    frames, embedding = encoder(functional.pad(loud, (0, 2 * STEP_SAMPLES)))
    kept = frames[0, :, :n_loud].double().numpy()
    weight = encoder.attention.weight[0, :, 0, 0].double().numpy()
    assert encoder.attention.bias is not None
    attention = np.exp(4 * np.tanh(weight @ kept + float(encoder.attention.bias[0])))
    parts = [
        kept @ attention / attention.sum(),
        kept.mean(axis=1),
        np.sqrt(kept.var(axis=1) + 1e-4),
    ]
    wanted: NDArray[np.float64] = np.concatenate(parts)
    assert embedding.shape == (1, encoder.feature_size) == (1, len(wanted))
    np.testing.assert_allclose(embedding[0].numpy(), wanted, rtol=1e-3, atol=1e-4)


def test_silence_has_finite_gradients() -> None:
    """The deviation of constant frames stays above zero, where its gradient is infinite."""
    encoder = Encoder()
    rows = torch.cat([torch.zeros(1, 4 * STEP_SAMPLES), torch.randn(1, 4 * STEP_SAMPLES)])
    encoder(rows)[1].sum().backward()
    for parameter in encoder.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@torch.inference_mode()
def test_the_head_is_conditioned_on_the_domain() -> None:
    """The hidden layer is scaled and shifted for each domain, in float64 loops."""
    head = Head(7, 3).eval()
    head.norm.running_mean = torch.randn(7)
    head.norm.running_var = torch.rand(7) + 0.5
    head.offset.normal_()
    features = torch.randn(4, 7)
    found, deviations = head(features)
    assert deviations.shape == (4, 1)
    state = {key: value.double().numpy() for key, value in head.state_dict().items()}
    for clip in range(4):
        x = (features[clip].double().numpy() - state["norm.running_mean"]) / np.sqrt(
            state["norm.running_var"] + 1e-5
        )
        hidden = state["shared.weight"] @ x + state["shared.bias"]
        for domain in range(3):
            seen = np.maximum(hidden * state["scale"][domain] + state["shift"][domain], 0)
            wanted = seen @ state["score"][domain] + state["offset"][domain]
            assert float(found[clip, domain]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        spread = state["spread.weight"][0] @ np.maximum(hidden, 0) + state["spread.bias"][0]
        assert float(deviations[clip, 0]) == pytest.approx(
            0.02 + np.log1p(np.exp(spread)), rel=1e-4
        )


def test_learning_the_deviation_leaves_the_scores_alone() -> None:
    network = StudentNetwork(2).train()
    features = torch.randn(4, network.encoder.feature_size, requires_grad=True)
    network.head(features)[1].sum().backward()
    learned = {name for name, each in network.named_parameters() if each.grad is not None}
    assert learned == {"head.spread.weight", "head.spread.bias"}
    assert features.grad is None


def test_hints_are_compared_with_a_layer_of_their_own() -> None:
    assert StudentNetwork(1).hint is None
    hint = StudentNetwork(1, 200).hint
    assert hint is not None
    assert hint(torch.zeros(1, FRAME_SIZE, 128)).shape == (1, 200, 128)
