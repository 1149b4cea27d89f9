"""A front end in the graph, here the spectrogram of a student, is kept in FP32."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from mosrt_calibration.graph import Topology, fetched, read_graph
from mosrt_calibration.passes.fp16 import to_fp16
from mosrt_calibration.passes.qdq import with_qdq
from mosrt_calibration.passes.targets import Targets, front_end


@pytest.fixture(scope="module")
def model(student: Path) -> Any:
    return fetched(read_graph(student / "model.fp32.onnx"))


def constants(model: Any) -> dict[str, tuple[str, bytes]]:
    """Type and value of the constants that nodes of the front end read."""
    topology = Topology(model)
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    return {
        f"{name}:{i}": (str(values[read].dtype), values[read].tobytes())
        for name in front_end(topology)
        for i, read in enumerate(topology.nodes[name].input)
        if read in values
    }


def scores(model: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    waveform = np.random.default_rng(0).normal(0, 0.1, (1, 20_480)).astype(np.float32)
    return session.run(["mos"], {"waveform": waveform})[0]


def test_the_targets_are_those_of_the_network_alone(model: Any) -> None:
    """Nothing that reads audio is quantised, and every convolution after it is."""
    topology = Topology(model)
    targets, kept = Targets.of(topology), front_end(topology)
    assert constants(model)
    assert len(kept) > 20
    assert not kept & {*targets.weighted, *targets.between}
    convolutions = {name for name, node in topology.nodes.items() if node.op_type == "Conv"}
    # six stages, the frames, three layers of each of four blocks, attention
    assert len(convolutions - kept) == 20
    assert convolutions - kept <= set(targets.weighted)
    readers = {name for name, node in topology.nodes.items() if "waveform" in node.input}
    assert {name for name in readers if topology.nodes[name].op_type != "Shape"} <= kept


def test_fp16_leaves_it_alone(model: Any) -> None:
    half = to_fp16(model)
    assert constants(half).items() >= constants(model).items()
    nodes = {node.name: node for node in half.graph.node}
    made = {name: node.name for node in half.graph.node for name in node.output}
    inside = front_end(Topology(model))
    assert inside <= set(nodes)
    # Nothing is rounded on the way: nodes read the input, constants and one another.
    read = {name for node in inside for name in nodes[node].input}
    makers = {made[name] for name in read if name in made}
    assert {name for name in makers if nodes[name].op_type != "Shape"} <= inside
    assert "waveform" in read
    assert any(tensor.data_type == TensorProto.FLOAT16 for tensor in half.graph.initializer)
    # what fp16 variants may drift
    assert scores(half) == pytest.approx(scores(model), abs=0.02)


def test_int8_leaves_it_alone(model: Any) -> None:
    topology = Topology(model)
    targets = Targets.of(topology)
    spans = dict.fromkeys(targets.tensors(topology), (-4.0, 4.0))
    made = with_qdq(model, spans, [*targets.weighted, *targets.between], symmetric=False)
    assert constants(made).items() >= constants(model).items()
    quantised = {node.input[0] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    produced = {t for name in front_end(topology) for t in topology.nodes[name].output}
    # the magnitudes alone, which the network's first convolution reads
    assert len(quantised & produced) <= 1
    assert len(quantised) > 5
