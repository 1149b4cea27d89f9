"""MeanAttention: self-attention followed by the mean over queries, without the wasted work."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["MeanAttention", "mean_attention"]


class MeanAttention(nn.Module):
    """The mean over queries of `nn.MultiheadAttention(x, x, x)`, as one query per head.

    Everything after the softmax is linear, so the mean over queries moves in front of it: the
    probabilities are averaged, and the value sum and the output projection are done once instead of
    once per query. The scale 1/sqrt(head size) is folded into the query projection.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        size, heads = attention.embed_dim, attention.num_heads
        if not attention.batch_first or attention.in_proj_weight is None:
            raise ValueError("MeanAttention needs batch_first and one joint input projection")
        self.heads, self.head_size = heads, size // heads
        weight, bias = attention.in_proj_weight.detach(), attention.in_proj_bias.detach()
        scale = 1.0 / math.sqrt(self.head_size)
        self.query, self.key, self.value, self.output = (
            nn.Linear(size, size, device="meta") for _ in range(4)
        )
        for i, (projection, factor) in enumerate(
            ((self.query, scale), (self.key, 1.0), (self.value, 1.0))
        ):
            rows = slice(i * size, (i + 1) * size)
            projection.weight = nn.Parameter(weight[rows] * factor)
            projection.bias = nn.Parameter(bias[rows] * factor)
        self.output.weight = attention.out_proj.weight
        self.output.bias = attention.out_proj.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, size) → (batch, size)."""
        length = x.shape[1]
        split = (-1, length, self.heads, self.head_size)
        query = self.query(x).reshape(split).transpose(1, 2)
        key = self.key(x).reshape(split).permute(0, 2, 3, 1)
        value = self.value(x).reshape(split).transpose(1, 2)
        probabilities = torch.softmax(query @ key, dim=-1).mean(dim=2, keepdim=True)
        context = (probabilities @ value).reshape(-1, self.heads * self.head_size)
        projected: torch.Tensor = self.output(context)
        return projected


def mean_attention(attention: nn.Module) -> MeanAttention:
    """`MeanAttention` made from a trained `nn.MultiheadAttention`."""
    if not isinstance(attention, nn.MultiheadAttention):
        raise TypeError(f"expected nn.MultiheadAttention, got {type(attention).__name__}")
    return MeanAttention(attention)
