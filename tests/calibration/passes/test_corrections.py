from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from mosrt_calibration.graph import Topology, replace_value
from mosrt_calibration.passes.corrections import correct_biases, equalise, fake_quantised, smooth
from mosrt_calibration.ranges.statistics import Channels
from tests.standins.quantizable import convolutional, relu_chain, transformer

IMAGES = np.random.default_rng(0).random((8, 1, 16, 16), np.float32)
WAVES = np.random.default_rng(0).standard_normal((4, 4000)).astype(np.float32)


def _typed(model: onnx.ModelProto) -> Any:
    return onnx.shape_inference.infer_shapes(model)


def _run(model: onnx.ModelProto, feed: NDArray[np.float32], *names: str) -> list[Any]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    session = onnxruntime.InferenceSession(copy.SerializeToString())
    found: list[Any] = session.run(list(names), {copy.graph.input[0].name: feed})
    return found


def _channels(model: onnx.ModelProto, feed: NDArray[np.float32]) -> dict[str, Channels]:
    """Statistics of the inputs of weighted nodes, from one run."""
    topology = Topology(_typed(model))
    found = {}
    for node in topology.nodes.values():
        if topology.weighted(node) and node.input[0] in topology.producer:
            (values,) = _run(model, feed, node.input[0])
            axis = 1 if node.op_type == "Conv" else values.ndim - 1
            rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
            found[node.input[0]] = Channels(
                largest=np.abs(rows).max(axis=1),
                total=rows.sum(axis=1),
                count=rows.shape[1],
            )
    return found


def test_equalisation_keeps_the_function_and_balances_channels() -> None:
    model = relu_chain()
    (before,) = _run(model, IMAGES, "mos")
    (uneven,) = _run(model, IMAGES, "net.0/Conv:0")
    assert equalise(model) == {f"net.{i}/{op}:0" for i in (0, 1) for op in ("Conv", "Relu")}
    after, even = _run(model, IMAGES, "mos", "net.0/Conv:0")
    assert after == pytest.approx(before, rel=1e-5)

    def spread(values: NDArray[np.float32]) -> float:
        largest = np.abs(values).max(axis=(0, 2, 3))
        return float(largest.max() / largest.min())

    assert spread(uneven) > 50
    assert spread(even) < 10
    topology = Topology(model)
    first = np.abs(topology.value("net.0.weight")).max(axis=(1, 2, 3))
    second = np.abs(topology.value("net.1.weight")).max(axis=(0, 2, 3))
    # section 4.1 of the paper: at the optimum both ranges of a channel are the same
    assert first == pytest.approx(second, rel=0.05)


def test_equalisation_leaves_silu_and_residuals_alone() -> None:
    model = convolutional()
    before = model.SerializeToString()
    assert not equalise(model)
    assert model.SerializeToString() == before


def test_bias_correction_takes_the_mean_error_off() -> None:
    model = relu_chain()
    channels = _channels(model, IMAGES)
    read, made = "net.0/Relu:0", "net.1/Conv:0"
    (exact,) = _run(model, IMAGES, made)

    def error(correct: bool) -> NDArray[np.float64]:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        if correct:
            assert correct_biases(copy, channels, ["net.1/Conv"]) == 1
        topology = Topology(copy)
        weights = topology.initializers["net.1.weight"]
        rounded = fake_quantised(topology.value("net.1.weight").astype(np.float64))
        replace_value(weights, rounded.astype(np.float32))
        (found,) = _run(copy, IMAGES, made)
        # at the edges the kernel reads padding, which the correction neglects
        inside = (found - exact)[:, :, 1:-1, 1:-1].astype(np.float64)
        return np.asarray(np.abs(inside.mean(axis=(0, 2, 3))))

    assert read in channels
    assert error(correct=True).max() < 0.3 * error(correct=False).max()


def test_bias_correction_of_groups_uses_the_channels_of_the_group() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((6, 2, 3)).astype(np.float32)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch, 4, 9] x) => (float[batch, 6, 7] y)
          <float[6, 2, 3] w = {}, float[6] b = {0, 0, 0, 0, 0, 0}>
        { y = Conv <group = 2> (x, w, b) }""".replace(
            "w = {}", f"w = {{{', '.join(map(repr, weights.ravel().tolist()))}}}"
        )
    )
    model.graph.node[0].name = "conv"
    mean = np.array([1.0, 2.0, 30.0, 40.0])
    channels = {"x": Channels(largest=mean, total=mean, count=1)}
    assert correct_biases(model, channels, ["conv"]) == 1
    lost = (weights - fake_quantised(weights.astype(np.float64))).sum(axis=2)
    expected = np.concatenate([lost[:3] @ mean[:2], lost[3:] @ mean[2:]])
    assert Topology(model).value("b") == pytest.approx(expected, rel=1e-5)


def test_smoothing_keeps_the_function_and_folds_where_it_can(tmp_path: Path) -> None:
    model = _typed(transformer(outlier=100.0))
    onnx.save(model, tmp_path / "model.onnx")
    (before,) = _run(model, WAVES, "mos")
    assert (
        len(smooth(model, _channels(model, WAVES))) == 4
    )  # the norm, the mix, the middle, the Relu
    (after,) = _run(model, WAVES, "mos")
    assert after == pytest.approx(before, rel=1e-4, abs=1e-4)
    inserted = [node.name for node in model.graph.node if node.name.endswith("/Smooth")]
    # the first norm feeds query, key and value only, and takes the scale in
    assert inserted == [f"net.layers.0.{name}/Smooth" for name in ("out", "up", "down")]
    onnx.checker.check_model(model, full_check=True)


def test_smoothing_moves_outliers_into_the_weights() -> None:
    model = _typed(transformer(outlier=100.0))
    tensor = "net.layers.0.norm/LayerNormalization:0"
    (before,) = _run(model, WAVES, tensor)
    smooth(model, _channels(model, WAVES))
    (after,) = _run(model, WAVES, tensor)

    def outlier(values: NDArray[np.float32]) -> float:
        largest = np.abs(values).max(axis=(0, 1))
        return float(largest.max() / np.median(largest))

    assert outlier(before) > 50
    assert outlier(after) < 0.3 * outlier(before)
