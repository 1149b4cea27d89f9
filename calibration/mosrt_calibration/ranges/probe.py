"""Taps: a backend that also shows the tensors inside a network, a slice of them at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

__all__ = ["Tap", "slices"]

See = Callable[[str, NDArray[np.float32]], None]

# With the copy that is handed out, twice as much is held.
_SLICE_BYTES: Final = 1200 * 1024 * 1024
# What a tensor is taken to need whose size depends on the recording.
_UNKNOWN_BYTES: Final = 16 * 1024 * 1024
_FLOAT_BYTES: Final = 4


def slices(
    model: Any, names: Sequence[str], limit_bytes: int = _SLICE_BYTES
) -> list[tuple[str, ...]]:
    """Cuts a list of tensors into runs that need at most `limit_bytes` at once, or are single."""
    shapes = {
        value.name: value.type.tensor_type.shape
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    found: list[list[str]] = []
    held = 0
    for name in names:
        size = _bytes(shapes.get(name))
        if not found or held + size > limit_bytes:
            found.append([])
            held = 0
        found[-1].append(name)
        held += size
    return [tuple(run) for run in found]


def _bytes(shape: Any) -> int:
    """Size of a float32 tensor with a batch of one."""
    if shape is None or not shape.dim:
        return _UNKNOWN_BYTES
    sizes = [dim.dim_value for dim in shape.dim]
    if not all(sizes[1:]):
        return _UNKNOWN_BYTES
    return int(_FLOAT_BYTES * max(1, sizes[0]) * math.prod(sizes[1:]))


class Tap:
    """A backend that runs a float32 graph and shows some of its tensors at every run.

    Args:
        graph: The graph; weights may lie beside it.
        names: Activations to show.
        see: Called with the name and the value, (batch, ...) float32, of each of them.
        threads: Threads for one call.
    """

    provider = "cpu"
    batch_size = 1

    def __init__(self, graph: Path, names: Sequence[str], see: See, *, threads: int) -> None:
        model = onnx.load(graph, load_external_data=False)
        inputs = {value.name for value in model.graph.input}
        outputs = {value.name for value in model.graph.output}
        self._see = see
        self._fed = [name for name in names if name in inputs]
        self._shown = [name for name in names if name not in inputs]
        for name in self._shown:
            if name not in outputs:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
        tapped = graph.with_name(f"{graph.stem}.tap.onnx")
        tapped.write_bytes(model.SerializeToString())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_mem_pattern = False
        try:
            self._session = onnxruntime.InferenceSession(
                tapped, options, providers=["CPUExecutionProvider"]
            )
        finally:
            tapped.unlink()

    def run(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Runs a batch; see `mosrt.backends.Backend`."""
        names = list(dict.fromkeys([*outputs, *self._shown]))
        results = dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        for name in self._fed:
            self._see(name, np.asarray(feeds[name]))
        for name in self._shown:
            self._see(name, results[name])
        return {name: results[name][np.newaxis] for name in outputs}

    def close(self) -> None:
        """Releases the session."""
        del self._session
