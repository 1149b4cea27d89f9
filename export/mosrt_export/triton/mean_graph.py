"""The mean over networks as a graph: Triton's ensembles pass tensors on and cannot compute."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mosrt.bundle.manifest import TensorSpec

__all__ = ["OPSET", "mean_tensors", "write_mean_graph"]

OPSET: Final = 18
# The oldest that carries the opset, so that old servers read it.
_IR_VERSION: Final = 8


def mean_tensors(
    scores: TensorSpec, networks: list[str]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the graph.

    Args:
        scores: What each network gives, (batch, domains).
        networks: Their names.

    Returns:
        Inputs `{scores}_{network}`, (batch, domains) each; and outputs: their mean, called as
        `scores` is, and `{scores}_networks`, all of them, (batch, networks, domains).
    """
    shape = (*scores.shape[:1], len(networks), *scores.shape[1:])

    def like(name: str, sizes: tuple[int | str, ...]) -> TensorSpec:
        return TensorSpec(name=name, dtype=scores.dtype, shape=sizes)

    inputs = tuple(like(f"{scores.name}_{network}", scores.shape) for network in networks)
    return inputs, (scores, like(f"{scores.name}_networks", shape))


def write_mean_graph(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], path: Path
) -> None:
    """Writes the graph that `mean_tensors` describes, in float32 as the scores are."""
    from onnx import TensorProto, checker, helper, save  # noqa: PLC0415 - only if it is needed

    def tensor(spec: TensorSpec) -> object:
        return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape))

    mean, apart = outputs
    rows = [f"{spec.name}_row" for spec in inputs]
    nodes = [
        *(
            helper.make_node("Unsqueeze", [spec.name, "networks"], [row], name=f"row/{spec.name}")
            for spec, row in zip(inputs, rows, strict=True)
        ),
        helper.make_node("Concat", rows, [apart.name], name="apart", axis=1),
        helper.make_node(
            "ReduceMean", [apart.name, "networks"], [mean.name], name="mean", keepdims=0
        ),
    ]
    axis = helper.make_tensor("networks", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(
        nodes, "mean", [tensor(spec) for spec in inputs], [tensor(spec) for spec in outputs], [axis]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION
    )
    checker.check_model(model, full_check=True)
    save(model, path)
