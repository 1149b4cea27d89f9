"""Graphs cut in two, against the whole; the package onnx makes them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mosrt.backends.ort_cut import cut
from mosrt.backends.ort_halves import FIRST, SECOND, Halves

onnx = pytest.importorskip("onnx", reason="onnx is not installed: it makes the graphs")


def written(path: Path, nodes: list[Any], outputs: list[str], *, typed: bool = True) -> Path:
    """A graph of vectors of four numbers, from "x" and "y" to some outputs."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(0)
    constants = [
        onnx.numpy_helper.from_array(rng.standard_normal(4).astype(np.float32), name)
        for name in dict.fromkeys(name for node in nodes for name in node.input)
        if name.startswith("w")
    ]

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, kind, [4])

    graph = helper.make_graph(
        nodes, "graph", [value("x"), value("y")], [value(name) for name in outputs], constants
    )
    if typed:
        # ONNX Runtime writes types of initializers, too.
        named = dict.fromkeys(n for node in nodes for n in (*node.input, *node.output))
        graph.value_info.extend(value(n) for n in named if n not in {"x", "y", *outputs})
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def node(kind: str, inputs: str, output: str) -> Any:
    return onnx.helper.make_node(kind, inputs.split(), [output], f"{kind}_{output}")


def chain(n_nodes: int, start: str, name: str) -> list[Any]:
    names = [start, *(f"{name}{i}" for i in range(n_nodes))]
    return [
        node("Mul" if i % 2 else "Add", f"{names[i]} w_{name}{i}", names[i + 1])
        for i in range(n_nodes)
    ]


FEEDS = {
    "x": np.arange(4, dtype=np.float32),
    "y": np.arange(4, dtype=np.float32) ** 2,
}


def run(session: Any, outputs: list[str]) -> list[Any]:
    wanted = {tensor.name for tensor in session.get_inputs()}
    return list(session.run(outputs, {n: v for n, v in FEEDS.items() if n in wanted}))


def halves_of(graph: Path) -> Halves:
    return Halves.open(graph.parent, onnxruntime.InferenceSession, threads=2)


@pytest.mark.parametrize("outputs", [["end"], ["a2", "end"], ["end", "a5", "b1"]])
def test_halves_give_what_the_whole_gives(tmp_path: Path, outputs: list[str]) -> None:
    nodes = [*chain(6, "x", "a"), *chain(6, "y", "b"), node("Add", "a5 b5", "sum")]
    nodes.append(node("Mul", "sum x", "end"))  # "x" is read in either half
    graph = written(tmp_path / "graph.onnx", nodes, outputs)
    expected = run(onnxruntime.InferenceSession(graph), outputs)
    assert cut(graph)
    assert {path.name for path in tmp_path.iterdir()} == {FIRST, SECOND}
    halves = halves_of(graph)
    assert {tensor.name for tensor in halves.get_inputs()} == {"x", "y"}
    assert set(outputs) <= {tensor.name for tensor in halves.get_outputs()}
    for given, wanted in zip(run(halves, outputs), expected, strict=True):
        assert np.array_equal(given, wanted)
    (alone,) = run(halves, outputs[:1])
    assert np.array_equal(alone, expected[0])


def test_weights_stay_constant(tmp_path: Path) -> None:
    """ONNX Runtime packs no others, which is slower and rounds differently."""
    graph = written(tmp_path / "graph.onnx", chain(8, "x", "a"), ["a7"])
    assert cut(graph)
    for name in (FIRST, SECOND):
        session = onnxruntime.InferenceSession(tmp_path / name)
        assert session.get_overridable_initializers() == []


def test_the_cut_is_where_little_goes_over(tmp_path: Path) -> None:
    """Behind the sum, although half the nodes are done before it."""
    nodes = [node("Neg", "x", f"n{i}") for i in range(8)]
    nodes += [node("Add", f"n{i} w{i}", f"m{i}") for i in range(8)]
    nodes.append(node("Sum", " ".join(f"m{i}" for i in range(8)), "m"))
    nodes += [*chain(14, "y", "b"), node("Add", "m b13", "end")]
    graph = written(tmp_path / "graph.onnx", nodes, ["end"])
    assert cut(graph)
    first, second = (onnx.load(tmp_path / name).graph for name in (FIRST, SECOND))
    assert len(first.node) in (17, 18)
    assert "m" in {value.name for value in first.output} <= {"m", "b0"}
    assert len(first.initializer) + len(second.initializer) == 22


def test_what_goes_over_must_have_a_type(tmp_path: Path) -> None:
    graph = written(tmp_path / "graph.onnx", chain(8, "x", "a"), ["a7"], typed=False)
    assert not cut(graph)
    assert run(onnxruntime.InferenceSession(graph), ["a7"])


def test_a_graph_with_no_middle_stays_whole(tmp_path: Path) -> None:
    graph = written(tmp_path / "graph.onnx", chain(1, "x", "a"), ["a0"])
    before = graph.read_bytes()
    assert not cut(graph)
    assert graph.read_bytes() == before


def test_graphs_inside_nodes_stay_whole(tmp_path: Path) -> None:
    """They read tensors of the graph around them without naming them as inputs."""
    helper = onnx.helper
    inside = [
        helper.make_graph(
            [node("Neg", "a3", name)],
            name,
            [],
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4])],
        )
        for name in ("yes", "no")
    ]
    nodes = chain(8, "x", "a")
    nodes.insert(4, onnx.helper.make_node("Constant", [], ["one"], "one", value_int=1))
    nodes.append(helper.make_node("Cast", ["one"], ["flag"], "flag", to=onnx.TensorProto.BOOL))
    nodes.append(
        helper.make_node(
            "If", ["flag"], ["end"], "If", then_branch=inside[0], else_branch=inside[1]
        )
    )
    graph = tmp_path / "graph.onnx"
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4])],
            [helper.make_tensor_value_info("end", onnx.TensorProto.FLOAT, [4])],
            [onnx.numpy_helper.from_array(np.ones(4, np.float32), f"w_a{i}") for i in range(8)],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.save(model, graph)
    assert not cut(graph)


def test_a_message_keeps_what_is_not_read(tmp_path: Path) -> None:
    graph = written(tmp_path / "graph.onnx", chain(8, "x", "a"), ["a7"])
    whole = onnx.load(graph)
    assert cut(graph)
    halves = [onnx.load(tmp_path / name) for name in (FIRST, SECOND)]
    for half in halves:
        onnx.checker.check_model(half, full_check=True)
        assert half.opset_import == whole.opset_import
        assert half.ir_version == whole.ir_version
    assert [n for half in halves for n in half.graph.node] == list(whole.graph.node)
    assert [t for half in halves for t in half.graph.initializer] == list(whole.graph.initializer)
