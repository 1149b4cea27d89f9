"""Makes small bundles to quantise, with random weights: a residual network and a transformer."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mosrt.bundle.front_end_spec import MelSpec, SslSpec
from mosrt.bundle.manifest import File, Manifest, Member, TensorSpec, Variant

RATE_HZ = 16_000
CROP = 4_000
CHANNELS = 8
SIZE = 16
DOMAINS = ("north", "south")
Shape = tuple[int | str, ...]


class Network:
    """A graph under construction; nodes are named after modules as exported ones are."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def weights(self, name: str, *shape: int, fan_in: int | None = None) -> str:
        fan_in = fan_in or int(np.prod(shape[1:]))
        value = self.rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)
        return self.constant(name, value.astype(np.float32))

    def node(self, name: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{name}:0"
        op = name.rpartition("/")[2].partition("_")[0]
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def conv(self, scope: str, x: str, n_in: int, n_out: int, kernel: int = 3) -> str:
        inputs = [
            x,
            self.weights(f"{scope}.weight", n_out, n_in, kernel, kernel),
            self.constant(
                f"{scope}.bias", (0.1 * self.rng.standard_normal(n_out)).astype(np.float32)
            ),
        ]
        return self.node(f"{scope}/Conv", inputs, pads=[kernel // 2] * 4)

    def silu(self, scope: str, x: str) -> str:
        return self.node(f"{scope}/Mul", [x, self.node(f"{scope}/Sigmoid", [x])])

    def matmul(self, scope: str, x: str, n_in: int, n_out: int) -> str:
        return self.node(
            f"{scope}/MatMul", [x, self.weights(f"{scope}.weight", n_in, n_out, fan_in=n_in)]
        )

    def norm(self, scope: str, x: str, size: int) -> str:
        scale = (1.0 + 0.1 * self.rng.standard_normal(size)).astype(np.float32)
        bias = (0.1 * self.rng.standard_normal(size)).astype(np.float32)
        inputs = [x, self.constant(f"{scope}.scale", scale), self.constant(f"{scope}.bias", bias)]
        return self.node(f"{scope}/LayerNormalization", inputs, axis=-1)

    def head(self, x: str, n_in: int) -> None:
        inputs = [
            x,
            self.weights("head.weight", len(DOMAINS), n_in),
            self.constant("head.bias", np.array([3.0, 3.2], np.float32)),
        ]
        self.node("head/Gemm", inputs, "mos", transB=1)

    def model(
        self, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape] | None = None
    ) -> onnx.ModelProto:
        outputs = {"mos": (len(DOMAINS),)} if outputs is None else outputs

        def tensor(name: str, *shape: int | str) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

        graph = helper.make_graph(
            self.nodes,
            "small",
            [tensor(name, *shape) for name, shape in inputs.items()],
            [tensor(name, *shape) for name, shape in outputs.items()],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def convolutional(
    n_blocks: int = 4,
    outlier: int | None = None,
    name: Callable[[int], str] = "net.blocks.{}".format,
) -> onnx.ModelProto:
    """Residual blocks with SiLU between their convolutions, called as `name` says.

    In block `outlier` one channel between the convolutions is 2000 times as large as the others,
    with weights as small in the second. FP32 is hardly affected, but INT8 has no levels left for
    the other channels.
    """
    net = Network()
    x = net.silu("net.stem", net.conv("net.stem", "images", 1, CHANNELS))
    for i in range(n_blocks):
        scope = name(i)
        y = net.conv(f"{scope}.first", x, CHANNELS, CHANNELS)
        y = net.conv(f"{scope}.second", net.silu(scope, y), CHANNELS, CHANNELS)
        x = net.node(f"{scope}/Add", [x, y])
    pooled = net.node("net/GlobalAveragePool", [x])
    flat = net.node("net/Flatten", [pooled], axis=1)
    net.head(flat, CHANNELS)
    model = net.model({"images": (1, SIZE, SIZE)})
    if outlier is not None:
        for layer, axis, factor in (("first", 0, 2000.0), ("second", 1, 1.0 / 2000.0)):
            scale(model, f"{name(outlier)}.{layer}.weight", axis, factor)
        scale(model, f"{name(outlier)}.first.bias", 0, 2000.0)
    return model


def relu_chain() -> onnx.ModelProto:
    """Convolutions with ReLU between, whose channels are of very different sizes."""
    net = Network(1)
    x = net.node("net.0/Relu", [net.conv("net.0", "images", 1, CHANNELS)])
    x = net.node("net.1/Relu", [net.conv("net.1", x, CHANNELS, CHANNELS)])
    x = net.conv("net.2", x, CHANNELS, CHANNELS)
    flat = net.node("net/Flatten", [net.node("net/GlobalAveragePool", [x])], axis=1)
    net.head(flat, CHANNELS)
    model = net.model({"images": (1, SIZE, SIZE)})
    for channel, factor in enumerate(4.0 ** np.arange(-4, 4)):
        scale(model, "net.0.weight", 0, float(factor), channel)
        scale(model, "net.0.bias", 0, float(factor), channel)
        scale(model, "net.1.weight", 1, float(1.0 / factor), channel)
    return model


def transformer(width: int = 16, outlier: float = 1.0) -> onnx.ModelProto:
    """Frames of a waveform through one transformer layer; a norm feeds both kinds of reader."""
    net = Network(2)
    wave = net.node("net/Unsqueeze", ["waveform", net.constant("one", np.array([1]))])
    kernel = net.weights("net.frames.weight", width, 1, 400)
    frames = net.node("net.frames/Conv", [wave, kernel], strides=[200])
    x = net.node("net/Transpose", [frames], perm=[0, 2, 1])
    layer = "net.layers.0"
    scored = net.norm(f"{layer}.norm", x, width)  # read by query, key and value only
    query, key, value = (net.matmul(f"{layer}.{n}", scored, width, width) for n in "qkv")
    transposed = net.node(f"{layer}/Transpose", [key], perm=[0, 2, 1])
    logits = net.node(f"{layer}.logits/MatMul", [query, transposed])
    weights = net.node(f"{layer}/Softmax", [logits], axis=-1)
    mixed = net.node(f"{layer}.mixed/MatMul", [weights, value])
    y = net.norm(
        f"{layer}.middle",
        net.node(f"{layer}/Add", [x, net.matmul(f"{layer}.out", mixed, width, width)]),
        width,
    )  # read by the next MatMul and by the residual
    wide = net.node(f"{layer}/Relu", [net.matmul(f"{layer}.up", y, width, 2 * width)])
    x = net.node(f"{layer}/Add_2", [y, net.matmul(f"{layer}.down", wide, 2 * width, width)])
    mean = net.node("net/ReduceMean", [x, net.constant("axis", np.array([1]))], keepdims=0)
    net.head(mean, width)
    model = net.model({"waveform": (CROP,)})
    for scope in ("norm", "middle"):
        scale(model, f"{layer}.{scope}.scale", 0, outlier)
    return model


def scale(model: onnx.ModelProto, name: str, axis: int, factor: float, channel: int = 0) -> None:
    """Multiplies one channel of a constant in place."""
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    value = numpy_helper.to_array(tensor).copy()
    np.moveaxis(value, axis, 0)[channel] *= factor
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def write_bundle(directory: Path, *models: onnx.ModelProto) -> Path:
    """A bundle of networks of one kind, told by their input."""
    directory.mkdir(parents=True)
    members = []
    for i, model in enumerate(models):
        path = directory / f"model.fold{i}.fp32.onnx"
        onnx.save(model, path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        file = File(path=path.name, sha256=sha256, bytes=path.stat().st_size)
        members.append(Member(name=f"fold{i}", graph=file))
    spec = models[0].graph.input[0].name == "images"
    manifest = Manifest(
        name="small",
        family="spec" if spec else "ssl",
        sample_rate_hz=RATE_HZ,
        ssl=None if spec else SslSpec(tensor="waveform", crop_samples=CROP, epsilon=1e-7),
        mel=MelSpec(
            tensor="images",
            crop_samples=CROP,
            n_crops=1,
            n_fft=512,
            hop_length=250,
            n_mels=SIZE,
            windows=(512,),
            f_min_hz=0.0,
            f_max_hz=8000.0,
            floor_db=80.0,
            image_height=SIZE,
            image_width=SIZE,
        )
        if spec
        else None,
        domains=DOMAINS,
        default_domain="south",
        inputs=(
            TensorSpec(name="images", dtype="float32", shape=("batch", 1, SIZE, SIZE))
            if spec
            else TensorSpec(name="waveform", dtype="float32", shape=("batch", CROP)),
        ),
        outputs=(TensorSpec(name="mos", dtype="float32", shape=("batch", len(DOMAINS))),),
        variants={"fp32": Variant(opset=18, members=tuple(members))},
    )
    (directory / "manifest.json").write_text(json.dumps(manifest.to_dict()))
    (directory / "model-card.md").write_text("# small\n\nRandom weights.\n\n## Licence\n\nMIT\n")
    return directory
