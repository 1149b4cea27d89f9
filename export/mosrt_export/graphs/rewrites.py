"""Rewrites of trained torch modules into equivalent ones that export to fast graphs.

Every rewrite keeps the function of the module, up to rounding: norms are folded into convolutions,
attention whose output is averaged does no work that the mean discards, and operators take the form
that ONNX Runtime and TensorRT fuse.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final

import torch
from torch import nn

__all__ = [
    "MeanAttention",
    "fold_batch_norm",
    "fold_weight_norm",
    "use_one_channel",
    "use_plain_operators",
]

_UNMASKED: Final = "mosrt_unmasked"


def is_plain_convolution(module: object) -> bool:
    """Whether a module convolves with its stored weight.

    Subclasses may standardise the weight first, as timm's ScaledStdConv2d does; then rewriting the
    stored weight would change the result.
    """
    from timm.layers import Conv2dSame  # noqa: PLC0415 - seconds to import

    return type(module) in (nn.Conv2d, Conv2dSame)


def fold_batch_norm(network: nn.Module, example: torch.Tensor) -> int:
    """Folds each batch norm whose input is a convolution's output, in place; returns their number.

    One run on `example` shows which norm follows which convolution, so this works for any network
    in evaluation mode. With running statistics m and v a norm computes
    `g * (y - m) / sqrt(v + eps) + b`, which becomes a scale of the kernel and a bias; both are
    computed in float64 and rounded once. Other norms are left as they are.
    """
    # By id of the output, which is kept so that no other tensor gets the id.
    producers: dict[int, tuple[nn.Module, torch.Tensor]] = {}
    pairs: list[tuple[Any, Any]] = []
    calls: Counter[nn.Module] = Counter()

    def after_conv(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        producers[id(output)] = module, output
        calls[module] += 1

    def before_norm(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls[module] += 1
        if id(inputs[0]) in producers:
            pairs.append((producers.pop(id(inputs[0]))[0], module))

    handles = []
    for module in network.modules():
        if is_plain_convolution(module):
            handles.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(before_norm))
    with torch.inference_mode():
        network(example)
    for handle in handles:
        handle.remove()
    names = {module: name for name, module in network.named_modules()}
    folded = 0
    for conv, norm in pairs:
        # A module that runs twice has two contexts, and one kernel cannot serve both.
        if calls[conv] == 1 and calls[norm] == 1 and norm.running_mean is not None:
            _fold(conv, norm)
            network.set_submodule(names[norm], _remainder(norm))
            folded += 1
    return folded


def _fold(conv: Any, norm: Any) -> None:
    scale = 1.0 / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift = norm.weight.detach().double() * shift + norm.bias.detach().double()
        scale = norm.weight.detach().double() * scale
    if conv.bias is not None:
        shift = shift + conv.bias.detach().double() * scale
    kernel = conv.weight.detach().double() * scale[:, None, None, None]
    conv.weight = nn.Parameter(kernel.float(), requires_grad=False)
    conv.bias = nn.Parameter(shift.float(), requires_grad=False)


def _remainder(norm: nn.BatchNorm2d) -> nn.Module:
    """The activation that timm keeps in its norm modules, or the identity."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()


def use_one_channel(backbone: nn.Module) -> int:
    """Makes a timm backbone read one channel instead of three equal ones, in place.

    A convolution is linear, so the kernel is summed over its input channels. The sum is computed in
    float64 and rounded once.

    Returns:
        The number of channels that the backbone now reads: 1, or 3 if its first layer is not a
        plain convolution.
    """
    settings: Any = getattr(backbone, "pretrained_cfg", {})
    name = settings.get("first_conv")
    stem: Any = backbone.get_submodule(name) if isinstance(name, str) else None
    if not is_plain_convolution(stem) or stem.in_channels != 3 or stem.groups != 1:
        return 3
    summed = stem.weight.detach().double().sum(dim=1, keepdim=True).float()
    stem.weight = nn.Parameter(summed)
    stem.in_channels = 1
    return 1


class MeanAttention(nn.Module):
    """The mean over queries of `nn.MultiheadAttention(x, x, x)`, as one query per head.

    Everything after the softmax is linear, so the probabilities are averaged over queries first.
    The value sum and the output projection are then computed once instead of once per query. The
    scale 1/sqrt(head size) is folded into the query projection.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.head_size = attention.embed_dim // self.heads
        weights = attention.in_proj_weight.detach().chunk(3)
        biases = attention.in_proj_bias.detach().chunk(3)
        scales = (1.0 / math.sqrt(self.head_size), 1.0, 1.0)
        self.query, self.key, self.value = map(_scaled_linear, weights, biases, scales)
        self.output = attention.out_proj

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


def _scaled_linear(weight: torch.Tensor, bias: torch.Tensor, scale: float) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight * scale), nn.Parameter(bias * scale)
    return linear


def fold_weight_norm(module: nn.Module) -> None:
    """Replaces every weight-normalised weight by its plain tensor, in place.

    It is computed in float64, so that the result does not depend on the order in which threads sum
    the norm.
    """
    for submodule in module.modules():
        if nn.utils.parametrize.is_parametrized(submodule, "weight"):
            submodule.double()
            nn.utils.parametrize.remove_parametrizations(
                submodule, "weight", leave_parametrized=True
            )
            submodule.float()


def use_plain_operators(encoder: nn.Module) -> None:
    """Replaces operators of a transformers encoder by ones that runtimes fuse, in place.

    Attention no longer adds a mask of ones, GELU uses the order of operations that ONNX Runtime
    fuses, and a group norm with one group per channel becomes an instance norm.
    """
    from transformers import AttentionInterface  # noqa: PLC0415 - seconds to import
    from transformers.activations import GELUActivation  # noqa: PLC0415

    AttentionInterface.register(_UNMASKED, unmasked_attention)
    for name, module in list(encoder.named_modules()):
        if isinstance(module, (nn.GELU, GELUActivation)):
            encoder.set_submodule(name, Gelu())
        elif isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
            encoder.set_submodule(name, ChannelNorm(module))
        settings: Any = getattr(module, "config", None)
        if settings is not None and settings._attn_implementation == "eager":
            settings._attn_implementation = _UNMASKED


def unmasked_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Eager attention over (batch, heads, frames, size), as transformers calls it.

    There must be no mask; ValueError if there is. By default `scaling` is 1 / sqrt(size).

    Returns:
        (batch, frames, heads, size), and None for the weights.
    """
    if attention_mask is not None:
        raise ValueError(f"{type(module).__name__} masks its attention; the exporter expects none")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = torch.softmax((query @ key.transpose(2, 3)) * scale, dim=-1)
    return (weights @ value).transpose(1, 2), None


class Gelu(nn.Module):
    """The exact GELU, x * (1 + erf(x / sqrt 2)) / 2, in the order that ONNX Runtime fuses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element-wise, for any shape."""
        return x * (torch.erf(x / math.sqrt(2.0)) + 1.0) * 0.5


class ChannelNorm(nn.Module):
    """`nn.GroupNorm` with one group per channel, computed as an instance norm."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, samples)."""
        return nn.functional.instance_norm(
            x, weight=self.weight, bias=self.bias, use_input_stats=True, eps=self.eps
        )
