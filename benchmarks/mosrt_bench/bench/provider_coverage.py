"""Placement: what really runs a graph's nodes, asked of ONNX Runtime's profiler.

A provider that cannot run a node leaves it to the CPU without a word, and some providers leave
every node. A session then still lists the provider first, so its own word is not enough.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnxruntime

from mosrt.backends.ort import PROVIDERS

from .configurations import Contestant

__all__ = ["nodes_by_provider", "placement"]

_DTYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
_FREE_SAMPLES: Final = 8_000  # half a second, which any model of speech hears


def placement(contestant: Contestant, feeds: dict[str, Any] | None = None) -> dict[str, int] | None:
    """Nodes of the first network that each of mosrt's providers runs.

    Args:
        contestant: What to look into.
        feeds: Inputs by name; ones by default, a batch of one.

    Returns:
        Numbers by provider's name, or None where ONNX Runtime does not run it or cannot tell.
    """
    full = PROVIDERS.get(contestant.provider)
    if full is None:
        return None
    variant = contestant.bundle.variant(contestant.variant)
    with contestant.bundle.extracted(variant) as directory:
        try:
            counts = nodes_by_provider(directory / variant.members[0].graph.path, full, feeds)
        except Exception:  # noqa: BLE001 - ONNX Runtime's own exceptions share no other base
            return None
    names = {long: short for short, long in PROVIDERS.items()}
    return {names.get(long, long): count for long, count in counts.items()}


def nodes_by_provider(
    graph: Path, provider: str, feeds: dict[str, Any] | None = None
) -> dict[str, int]:
    """Runs a graph once and counts its nodes by ONNX Runtime's names of providers."""
    with TemporaryDirectory(prefix="mosrt-placement-", ignore_cleanup_errors=True) as directory:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(directory, "profile"))
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(graph, options, providers=[provider])
        session.run(None, feeds or {tensor.name: _ones(tensor) for tensor in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = {
        (event["args"].get("node_index"), event["name"]): event["args"]["provider"]
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    }
    return dict(Counter(nodes.values()))


def _ones(tensor: Any) -> np.ndarray[Any, Any]:
    shape = [size if isinstance(size, int) else _FREE_SAMPLES for size in tensor.shape]
    shape[0] = 1
    return np.ones(shape, _DTYPES[tensor.type])
