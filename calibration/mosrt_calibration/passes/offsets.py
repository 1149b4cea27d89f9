"""Offsets: what is added to a graph's scores so that their mean is the float32 model's.

Rounded and clipped activations shift what later layers see, and so the score, by much the same for
all clips: the empirical bias correction of M. Nagel et al. (ICCV 2019, arXiv 1906.04721), taken
once, where the score leaves the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from .graph import rebuilt

__all__ = ["with_offsets"]

_OUTPUT = "mos"


def with_offsets(model: Any, offsets: Sequence[float]) -> Any:
    """A graph whose output "mos" (batch, domains) is larger by an offset for each domain.

    Args:
        model: onnx.ModelProto; left as it is.
        offsets: In MOS.
    """
    before = f"{_OUTPUT}_before_offsets"
    nodes = []
    for node in model.graph.node:
        made = type(node)()
        made.CopyFrom(node)
        for names in (made.input, made.output):
            for i, name in enumerate(names):
                if name == _OUTPUT:
                    names[i] = before
        nodes.append(made)
    constant = numpy_helper.from_array(np.array(offsets, np.float32), f"{_OUTPUT}_offsets")
    nodes.append(helper.make_node("Add", [before, constant.name], [_OUTPUT], "head/Offsets"))
    return rebuilt(model, nodes, [*model.graph.initializer, constant])
