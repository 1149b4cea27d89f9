"""A front end in the graph is kept in FP32."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from mosrt.bundle.embedded import find_bundle
from mosrt_calibration.graph import Topology, fetched, read_graph
from mosrt_calibration.passes.fp16 import to_fp16
from mosrt_calibration.passes.qdq import with_qdq
from mosrt_calibration.passes.targets import Targets, front_end


@pytest.fixture(scope="module")
def model(nano_graph: Path) -> Any:
    return fetched(read_graph(nano_graph / "model.fp32.onnx"))


def constants(model: Any) -> dict[str, bytes]:
    """The front end's constants by name."""
    return {
        tensor.name: tensor.SerializeToString(deterministic=True)
        for tensor in model.graph.initializer
        if tensor.name.startswith("front_end")
    }


def scores(model: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    crops = np.random.default_rng(0).normal(0, 0.1, (1, 1, 80_000)).astype(np.float32)
    return session.run(["mos"], {"crops": crops})[0]


def test_the_targets_are_those_of_the_network_alone(model: Any) -> None:
    """As in the same network, exported to be fed with images."""
    alone = Topology(read_graph(Path(find_bundle("nano")) / "model.fp32.onnx"))
    topology = Topology(model)
    found, wanted = Targets.of(topology), Targets.of(alone)
    assert not front_end(alone)
    assert len(front_end(topology)) > 30
    assert [name.removeprefix("network.") for name in found.weighted] == list(wanted.weighted)
    assert [name.removeprefix("network.") for name in found.between] == list(wanted.between)


def test_fp16_leaves_it_alone(model: Any) -> None:
    half = to_fp16(model)
    assert constants(half) == constants(model)
    nodes = {node.name: node for node in half.graph.node}
    made = {name: node.name for node in half.graph.node for name in node.output}
    inside = front_end(Topology(model))
    assert inside <= set(nodes)
    # Nothing is rounded on the way: nodes read the input, constants and one another.
    read = {name for node in inside for name in nodes[node].input}
    assert {made[name] for name in read if name in made} <= inside
    assert "crops" in read
    assert any(tensor.data_type == TensorProto.FLOAT16 for tensor in half.graph.initializer)
    # what fp16 variants may drift
    assert scores(half) == pytest.approx(scores(model), abs=0.02)


def test_int8_leaves_it_alone(model: Any) -> None:
    topology = Topology(model)
    targets = Targets.of(topology)
    spans = dict.fromkeys(targets.tensors(topology), (-4.0, 4.0))
    made = with_qdq(model, spans, [*targets.weighted, *targets.between], symmetric=False)
    assert constants(made) == constants(model)
    quantised = {node.input[0] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    produced = {t for name in front_end(topology) for t in topology.nodes[name].output}
    # the images alone, which the network's first convolution reads
    assert len(quantised & produced) <= 1
    assert len(quantised) > 5
