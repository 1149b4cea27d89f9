"""Builds Triton's configuration of each model, and writes it as config.pbtxt.

Field names and meanings are those of `ModelConfig` in Triton's model_config.proto. The format is
described at protobuf.dev under "Text Format Language Specification"; writing it here makes the
protobuf package unnecessary. The tests read it back with that package and Triton's schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mosrt.bundle.manifest import TensorSpec
from mosrt_export.errors import TritonError

__all__ = ["Network", "Serving", "ensemble_config", "ensemble_step", "network_config", "to_text"]

_ANY_SIZE: Final = -1
_TYPES: Final = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
_BATCH: Final = "batch"
# Long enough to batch requests that arrive together, short compared with the run of any model.
_MAX_QUEUE_DELAY_US: Final = 1_000


class EnumValue(str):
    """A value of an enumeration, which is written without quotes."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How the server runs models.

    Attributes:
        gpu: Whether they run on GPUs; else on the CPU.
        instances: Number of copies of each network, per GPU.
    """

    gpu: bool = True
    instances: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A graph or an engine that Triton serves.

    Attributes:
        name: Name of the model on the server.
        backend: "onnxruntime" or "tensorrt".
        inputs: Its inputs.
        outputs: Its outputs.
        max_batch: Most views per run, up to which requests of several clients are batched; 0 for
            a model that processes one recording at a time, whose requests are not batched.
        usual: Usual shapes of the inputs, batch included.
    """

    name: str
    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    usual: Mapping[str, tuple[int, ...]]


def network_config(network: Network, serving: Serving) -> dict[str, Any]:
    """Builds the configuration of a network.

    Raises:
        TritonError: A tensor has a dtype that cannot be served.
    """
    kind = EnumValue("KIND_GPU" if serving.gpu else "KIND_CPU")
    config: dict[str, Any] = {
        "name": network.name,
        "backend": network.backend,
        "max_batch_size": network.max_batch,
        **_tensors(network.inputs, network.outputs, network.max_batch),
        "instance_group": [{"count": serving.instances, "kind": kind}],
    }
    if network.max_batch > 1:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": _MAX_QUEUE_DELAY_US}
        if network.backend == "tensorrt":  # an engine is tuned for the usual shapes
            tuned = min(network.max_batch, *(shape[0] for shape in network.usual.values()))
            config["dynamic_batching"]["preferred_batch_size"] = [tuned]
    config["model_warmup"] = [
        _warmup(network, batch) for batch in sorted({1, max(1, network.max_batch)})
    ]
    return config


def ensemble_config(
    name: str,
    steps: Sequence[Mapping[str, Any]],
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch: int,
) -> dict[str, Any]:
    """Builds the configuration of models that run one after the other on the server.

    A client sends `inputs` and gets `outputs`. The steps come from `ensemble_step`, and none has a
    smaller `max_batch` than this.

    Raises:
        TritonError: A tensor has a dtype that cannot be served.
    """
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": max_batch,
        **_tensors(inputs, outputs, max_batch),
        "ensemble_scheduling": {"step": list(steps)},
    }


def ensemble_step(network: Network, outputs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Builds the configuration of one model of an ensemble, which reads tensors of the same names.

    `outputs` has those that the ensemble uses, and their names in it; by default all, under the
    names that they have.
    """
    if outputs is None:
        outputs = {tensor.name: tensor.name for tensor in network.outputs}
    inputs = {tensor.name: tensor.name for tensor in network.inputs}
    return {
        "model_name": network.name,
        "model_version": -1,
        "input_map": [{"key": key, "value": value} for key, value in inputs.items()],
        "output_map": [{"key": key, "value": value} for key, value in outputs.items()],
    }


def _tensors(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], max_batch: int
) -> dict[str, Any]:
    return {
        kind: [
            {"name": tensor.name, "data_type": _type(tensor), "dims": _dims(tensor, max_batch)}
            for tensor in tensors
        ]
        for kind, tensors in (("input", inputs), ("output", outputs))
    }


def _type(tensor: TensorSpec) -> EnumValue:
    if tensor.dtype not in _TYPES:
        raise TritonError(
            f"tensor {tensor.name!r} has dtype {tensor.dtype}, which cannot be served "
            f"(supported: {', '.join(_TYPES)}); export the bundle again"
        )
    return EnumValue(_TYPES[tensor.dtype])


def _dims(tensor: TensorSpec, max_batch: int) -> list[int]:
    """Sizes of a tensor, without the batch if there is one, because Triton adds it."""
    if max_batch:
        if tensor.shape[0] != _BATCH:
            raise TritonError(
                f"tensor {tensor.name!r} has shape {tensor.shape}, which does not start with "
                "the batch; export the bundle again"
            )
        return [_ANY_SIZE if isinstance(size, str) else size for size in tensor.shape[1:]]
    one = (1 if size == _BATCH else size for size in tensor.shape)
    return [_ANY_SIZE if isinstance(size, str) else size for size in one]


def _warmup(network: Network, batch: int) -> dict[str, Any]:
    """A run on zeros before the first request, which loads kernels and allocates memory.

    Zeros are valid indices, too; random numbers would not be.
    """
    first = 1 if network.max_batch else 0
    return {
        "name": f"batch of {batch}" if network.max_batch else "a recording",
        "batch_size": batch,
        "inputs": [
            {
                "key": tensor.name,
                "value": {
                    "data_type": _type(tensor),
                    "dims": list(network.usual[tensor.name][first:]),
                    "zero_data": True,
                },
            }
            for tensor in network.inputs
        ],
    }


def to_text(message: Mapping[str, Any]) -> str:
    """Formats a message as protobuf text.

    Args:
        message: Fields by name: integers, booleans, strings, `EnumValue`s, messages, and lists of
            those for repeated fields. A map is a list of messages with "key" and "value".
    """
    return "".join(f"{line}\n" for field in message.items() for line in _lines(*field))


def _lines(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield f"{name} {{"
        yield from (f"  {line}" for field in value.items() for line in _lines(*field))
        yield "}"
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for each in value:
            yield from _lines(name, each)
    else:
        yield f"{name}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, EnumValue):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    # JSON string escapes are valid in this format.
    return json.dumps(value, ensure_ascii=False)
