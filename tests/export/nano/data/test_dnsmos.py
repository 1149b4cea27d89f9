"""DNSMOS models of the test's own making: which file is which, and what they are fed.

The front end of P.808 is compared with librosa's in the tests of the export's teachers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mosrt.errors import BundleError
from mosrt_export.nano.data.dnsmos import DnsmosP808, DnsmosP835, open_dnsmos

onnx = pytest.importorskip("onnx")


def model(path: Path, shape: list[int | str], n_outputs: int) -> Path:
    """Answers with the mean of its input, n_outputs times."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Flatten", ["input_1"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean", "ones"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "stand-in",
        [helper.make_tensor_value_info("input_1", kind, shape)],
        [helper.make_tensor_value_info("output", kind, ["N", n_outputs])],
        [onnx.numpy_helper.from_array(np.ones((1, n_outputs), np.float32), "ones")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path
    )
    return path


def test_a_file_tells_which_model_it_is(tmp_path: Path) -> None:
    p808 = open_dnsmos(model(tmp_path / "a.onnx", ["N", 900, 120], 1))
    assert isinstance(p808, DnsmosP808)
    p835 = open_dnsmos(model(tmp_path / "b.onnx", ["N", 144_160], 3))
    assert isinstance(p835, DnsmosP835)
    # the published polynomial of 0.5
    assert p835(np.full(144_160, 0.5, np.float32)) == pytest.approx(
        -0.06766283 * 0.25 + 1.11546468 * 0.5 + 0.04602535, abs=1e-6
    )


@pytest.mark.parametrize(("shape", "n_outputs"), [(["N", 144_160], 1), (["N", 80, 300], 1)])
def test_other_models_are_refused(tmp_path: Path, shape: list[int | str], n_outputs: int) -> None:
    with pytest.raises(BundleError, match=r"x\.onnx: neither DNSMOS P\.808"):
        open_dnsmos(model(tmp_path / "x.onnx", shape, n_outputs))


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no")
    with pytest.raises(BundleError, match=r"x\.onnx: not a DNSMOS model"):
        open_dnsmos(tmp_path / "x.onnx")
