"""Graphs that are quantised for CPUs, told from those for TensorRT by reading the file."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import mosrt
from mosrt.backends.trt_module import TensorRt
from mosrt.bundle.onnx_header import read_graph
from mosrt.errors import BundleError
from mosrt_export.errors import EngineError
from mosrt_export.trt.builder import check_zero_points
from tests.standins.engine_graphs import built, quantised, save


@pytest.mark.parametrize(
    ("zero_point", "words"),
    [
        (np.uint8(128), "is of type uint8"),
        (np.uint8(0), "is of type uint8"),  # TensorRT would take it for int8 without a word
        (np.int8(5), "has a zero point other than 0"),
    ],
)
@pytest.mark.parametrize("constant_node", [False, True])
def test_other_zero_points_are_refused(
    tmp_path: Path, zero_point: Any, words: str, constant_node: bool
) -> None:
    path = quantised(tmp_path / "u8s8.onnx", zero_point, constant_node=constant_node)
    with pytest.raises(EngineError, match=f"'conv/in/q'.*{words}.*symmetric int8.*int8-trt"):
        check_zero_points(path)


def test_asymmetric_graphs_never_reach_the_parser(
    rtx: TensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtx.module, "OnnxParser", None)
    with pytest.raises(EngineError, match="symmetric int8 only"):
        built(rtx, quantised(tmp_path / "u8s8.onnx", np.uint8(128)))


def test_zero_points_outside_of_the_file(tmp_path: Path) -> None:
    for value, fine in ((0, True), (3, False)):
        model = onnx.load(quantised(tmp_path / "in.onnx", np.int8(value)))
        target = tmp_path / f"{value}.onnx"
        onnx.save(
            model, target, save_as_external_data=True, location=f"{value}.data", size_threshold=0
        )
        if fine:
            check_zero_points(target)
        else:
            with pytest.raises(EngineError, match="other than 0"):
                check_zero_points(target)


def test_a_computed_zero_point_and_none_are_refused(tmp_path: Path) -> None:
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    path = save(
        tmp_path / "a.onnx",
        [
            helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="first"),
            helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
        ],
        [scale],
        ["batch", 3, 16, 16],
    )
    with pytest.raises(EngineError, match="'first'.*no zero point, which means uint8"):
        check_zero_points(path)
    path = save(
        tmp_path / "b.onnx",
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="second"),
        ],
        [],
        ["batch", 3, 16, 16],
    )
    with pytest.raises(EngineError, match="'second'.*computed"):
        check_zero_points(path)


def test_wire_reads_what_onnx_reads() -> None:
    for name in ("nano/model", "nano-uncertainty/encoder", "nano-uncertainty/contrast"):
        path = Path(mosrt.__file__).parent / "models" / f"{name}.fp32.onnx"
        graph = onnx.load(path).graph
        nodes, constants = read_graph(path)
        assert [(node.name, node.op_type, node.inputs) for node in nodes] == [
            (node.name, node.op_type, tuple(node.input)) for node in graph.node
        ]
        for node, wanted in zip(nodes, graph.node, strict=True):
            assert node.integers == {a.name: a.i for a in wanted.attribute if a.type == a.INT}
        for tensor in graph.initializer:
            assert constants[tensor.name].data_type == tensor.data_type
            zeros = not numpy_helper.to_array(tensor).any()
            assert constants[tensor.name].all_zeros() == zeros, tensor.name


@pytest.mark.parametrize("content", [b"\x0f", b"\x3a\x7f", b"\x3a", b"no protocol buffer"])
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="not an ONNX file"):
        read_graph(path)
    with pytest.raises(BundleError, match="cannot be read"):
        read_graph(tmp_path / "missing.onnx")
