"""Configurations: what Triton is told of each model, the contents of config.pbtxt.

Field names and meanings are those of `ModelConfig` in Triton's model_config.proto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mosrt.bundle.manifest import TensorSpec
from mosrt_export.triton_errors import TritonError

from .pbtxt import Word

__all__ = ["ANY_SIZE", "Network", "Serving", "Step", "ensemble_config", "network_config"]

ANY_SIZE: Final = -1
_TYPES: Final = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
_BATCH: Final = "batch"
# Long enough for requests that came together to be joined, short beside any model's run.
_MAX_QUEUE_DELAY_US: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How models are to be run.

    Attributes:
        gpu: Whether on GPUs; else on the CPU.
        instances: Copies of each network, per GPU if there are several.
    """

    gpu: bool = True
    instances: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A graph or an engine as Triton serves it.

    Attributes:
        name: What it is called there.
        backend: "onnxruntime" or "tensorrt".
        inputs: What it takes.
        outputs: What it gives.
        max_batch: Most views per run, which requests of several clients are joined to; 0 for a
            model that hears one recording at a time, whose requests are not joined.
        usual_batch: Views per run that it is tuned for, or None if any number is as good.
        usual: Shapes by input to start with, before the first request; with the batch.
        joins: Whether it gains by waiting for requests that can be joined.
    """

    name: str
    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    usual_batch: int | None = None
    usual: Mapping[str, tuple[int, ...]]
    joins: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One model of an ensemble: what its inputs and outputs are called in the ensemble."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def network_config(network: Network, serving: Serving) -> dict[str, Any]:
    """The configuration of a network.

    Raises:
        TritonError: A tensor has a type that Triton does not know.
    """
    config: dict[str, Any] = {
        "name": network.name,
        "backend": network.backend,
        "max_batch_size": network.max_batch,
        **_tensors(network.inputs, network.outputs, network.max_batch),
        "instance_group": [
            {
                "count": serving.instances,
                "kind": Word("KIND_GPU" if serving.gpu else "KIND_CPU"),
            }
        ],
    }
    if network.joins and network.max_batch > 1:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": _MAX_QUEUE_DELAY_US}
        if network.usual_batch is not None:
            config["dynamic_batching"]["preferred_batch_size"] = [network.usual_batch]
    config["model_warmup"] = [
        _warmup(network, batch) for batch in sorted({1, max(1, network.max_batch)})
    ]
    return config


def ensemble_config(
    name: str,
    steps: Sequence[Step],
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch: int,
) -> dict[str, Any]:
    """The configuration of models that run one after the other inside of the server.

    Args:
        name: What the ensemble is called.
        steps: Its models.
        inputs: What a client sends.
        outputs: What it is answered.
        max_batch: As in `Network`; no step may take fewer.

    Raises:
        TritonError: A tensor has a type that Triton does not know.
    """
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": max_batch,
        **_tensors(inputs, outputs, max_batch),
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": step.model,
                    "model_version": -1,
                    "input_map": _map(step.inputs),
                    "output_map": _map(step.outputs),
                }
                for step in steps
            ]
        },
    }


def _tensors(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], max_batch: int
) -> dict[str, Any]:
    return {
        kind: [
            {
                "name": tensor.name,
                "data_type": _type(tensor),
                "dims": _dims(tensor, max_batch),
            }
            for tensor in tensors
        ]
        for kind, tensors in (("input", inputs), ("output", outputs))
    }


def _type(tensor: TensorSpec) -> Word:
    if tensor.dtype not in _TYPES:
        raise TritonError(
            f"tensor {tensor.name!r} is of type {tensor.dtype}, which is not served "
            f"(known: {', '.join(_TYPES)}); export the bundle again"
        )
    return Word(_TYPES[tensor.dtype])


def _dims(tensor: TensorSpec, max_batch: int) -> list[int]:
    """A tensor's sizes; without the batch, which Triton adds, if there is one."""
    if max_batch:
        if tensor.shape[0] != _BATCH:
            raise TritonError(
                f"tensor {tensor.name!r} is {tensor.shape}, which does not start with the batch; "
                "export the bundle again"
            )
        return [ANY_SIZE if isinstance(size, str) else size for size in tensor.shape[1:]]
    return [
        1 if size == _BATCH else ANY_SIZE if isinstance(size, str) else size
        for size in tensor.shape
    ]


def _warmup(network: Network, batch: int) -> dict[str, Any]:
    """A run of zeros before the first request: kernels are loaded, and memory is taken.

    Zeros suit indices too, which random numbers would not.
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


def _map(names: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in names.items()]
