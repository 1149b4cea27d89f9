"""Folds batch norm into the convolution before it, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["fold_batch_norm", "is_plain_convolution"]


def is_plain_convolution(module: nn.Module) -> bool:
    """Whether a module convolves with its weight as it is stored.

    Subclasses may standardise or normalise the weight on the way (timm's ScaledStdConv2d does),
    which no linear rewriting of the stored weight survives.
    """
    from timm.layers import Conv2dSame  # noqa: PLC0415 - seconds to import

    return type(module) in (nn.Conv2d, Conv2dSame)


def fold_batch_norm(network: nn.Module, example: torch.Tensor) -> int:
    """Folds each batch norm whose input is a convolution's output, in place.

    Which norm follows which convolution is read off one run on `example`, so that it holds for
    any network, whatever its modules are called. With the running statistics m, v a norm is
    `g * (y - m) / sqrt(v + eps) + b`, which the convolution takes over as a scale of its kernel
    and a bias; both are computed in float64 and rounded once.

    Args:
        network: In evaluation mode.
        example: An input `network` accepts.

    Returns:
        How many norms were folded; the others stay as they are, which is slower and as right.
    """
    producers: dict[int, nn.Conv2d] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    alive: list[torch.Tensor] = []
    calls: dict[nn.Module, int] = {}

    def after_conv(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        producers[id(output)] = module  # type: ignore[assignment]
        alive.append(output)  # keeps the id from being given to another tensor
        calls[module] = calls.get(module, 0) + 1

    def before_norm(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        if (conv := producers.pop(id(inputs[0]), None)) is not None:
            pairs.append((conv, module))  # type: ignore[arg-type]

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
        # a module that runs twice has two contexts, and one kernel cannot serve both
        if calls[conv] == 1 and calls[norm] == 1 and norm.running_mean is not None:
            _fold(conv, norm)
            network.set_submodule(names[norm], _remainder(norm))
            folded += 1
    return folded


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    scale = 1.0 / torch.sqrt(variance.double() + norm.eps)
    shift = -mean.double() * scale
    if norm.affine:
        shift = norm.weight.detach().double() * shift + norm.bias.detach().double()
        scale = norm.weight.detach().double() * scale
    if conv.bias is not None:
        shift = shift + conv.bias.detach().double() * scale
    kernel = conv.weight.detach().double() * scale[:, None, None, None]
    conv.weight = nn.Parameter(kernel.float(), requires_grad=False)
    conv.bias = nn.Parameter(shift.float(), requires_grad=False)


def _remainder(norm: nn.BatchNorm2d) -> nn.Module:
    """What a norm did besides normalising: timm's also hold the activation."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()
