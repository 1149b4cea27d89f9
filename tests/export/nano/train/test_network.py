"""Network: pooling, head and the default score against plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mosrt_export.nano.train.network import Combination, MelBranch, NanoHead, SslBranch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@torch.inference_mode()
def test_the_mel_branch_pools_frames_and_patterns() -> None:
    """From the maps on, in float64: mean, deviation, maximum, attention, and maps' maxima."""
    branch = MelBranch(2, 24, widths=(4, 6, 8), frame_size=5).eval()
    images = torch.rand(3, 2, 24, 50)
    found = branch(images).numpy()
    assert found.shape == (3, branch.feature_size) == (3, 4 * 5 + 8)
    maps = branch.stages(2 * images - 1).double().numpy()
    assert maps.shape[:3] == (3, 8, 3)
    weight = branch.frame.weight[:, :, 0].double().numpy()
    bias = branch.frame.bias
    assert bias is not None
    attention_bias = branch.attention.bias
    assert attention_bias is not None
    for clip, wanted in zip(maps, found, strict=True):
        columns = clip.reshape(24, -1)
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
def test_clips_do_not_hear_one_another() -> None:
    branch = MelBranch(2, 24, widths=(4, 6, 8), frame_size=5).eval()
    images = torch.rand(4, 2, 24, 50)
    together = branch(images)
    for i in range(4):
        torch.testing.assert_close(branch(images[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-6)


def test_a_constant_frame_has_a_slope() -> None:
    """The deviation of what does not vary is kept off zero, where a root's slope is infinite."""
    branch = MelBranch(1, 8, widths=(2, 2, 2), frame_size=3)
    images = torch.zeros(2, 1, 8, 16, requires_grad=True)
    branch(images).sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
    for parameter in branch.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@torch.inference_mode()
def test_the_waveform_branch_pools_over_time() -> None:
    class Frames(nn.Module):
        def forward(self, waveform: torch.Tensor) -> torch.Tensor:
            return waveform.reshape(len(waveform), 3, -1)

    waveform = torch.randn(2, 60)
    found = SslBranch(Frames(), 3)(waveform).numpy()
    frames = waveform.double().numpy().reshape(2, 3, 20)
    wanted = np.concatenate(
        [frames.mean(axis=2), np.sqrt(frames.var(axis=2) + 1e-4), frames.max(axis=2)], axis=1
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert SslBranch(Frames(), 3).feature_size == found.shape[1]


@torch.inference_mode()
def test_the_head_is_conditioned_on_the_domain() -> None:
    """One hidden layer, scaled and shifted for each domain in turn, in float64 loops."""
    head = NanoHead(7, 3, hidden_size=5).eval()
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
    combination = Combination(
        averaged={"a": (3.5, 0.4), "c": (2.5, 0.8)},
        penalties={"b": (3.0, 0.5), "c": (2.0, 0.25)},
        offset=3.25,
        scale=0.6,
    )
    domains = ("c", "b", "a")
    rows = [[2.5, 4.0, 3.5], [1.0, 2.0, 4.3], [4.1, 3.0, 2.9], [2.0, 1.5, 3.1]]
    found = combination(torch.tensor(rows), domains)
    assert found.shape == (4, 1)
    for row, score in zip(rows, found[:, 0].tolist(), strict=True):
        c, b, a = row
        total = ((a - 3.5) / 0.4 + (c - 2.5) / 0.8) / 2
        total -= 0.5 * max(0.0, 3.0 - b) + 0.25 * max(0.0, 2.0 - c)
        assert score == pytest.approx(3.25 + 0.6 * total, abs=1e-5)
    assert found[0].item() == pytest.approx(3.25)  # average in both, nothing to punish
    with pytest.raises(ValueError, match="not in tuple"):
        combination(torch.tensor(rows), ("a", "b", "d"))
