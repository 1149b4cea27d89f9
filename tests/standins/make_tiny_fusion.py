"""Makes the bundle `tiny` beside this file: needs the package onnx.

    python -m tests.standins.make_tiny_fusion

Two networks with UTMOSv2's interface and a few thousand random weights, so that the runtime's
tests need neither torch nor a checkpoint. Every input sample and pixel moves every output. The
result is committed.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mosrt.bundle.front_end_spec import MelSpec, SslSpec
from mosrt.bundle.manifest import File, Manifest, Member, TensorSpec, Variant

OUT = Path(__file__).parent / "tiny"
DOMAINS = ("north", "south", "east")
CHANNELS = 6


def network(seed: int) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    node = helper.make_node
    nodes = [
        node("Unsqueeze", ["waveform", "one"], ["wave3"]),
        node("Conv", ["wave3", "wave_kernel"], ["frames"], strides=[200]),
        node("Tanh", ["frames"], ["heard"]),
        node("ReduceMean", ["heard", "two"], ["ssl_features"], keepdims=0),
        node("AveragePool", ["images"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        node("Conv", ["pooled", "image_kernel"], ["mapped"]),
        node("Tanh", ["mapped"], ["seen"]),
        node("ReduceMean", ["seen", "two_three"], ["spec_features"], keepdims=0),
        node("Concat", ["ssl_features", "spec_features"], ["joined"], axis=1),
        node("Gemm", ["joined", "head", "bias"], ["mos"], transB=1),
    ]
    constants = [
        weights("wave_kernel", CHANNELS, 1, 400),
        weights("image_kernel", CHANNELS, 8, 3, 3),
        weights("head", len(DOMAINS), 2 * CHANNELS),
        numpy_helper.from_array(np.array([3.0, 3.2, 3.4], np.float32), "bias"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array([2], np.int64), "two"),
        numpy_helper.from_array(np.array([2, 3], np.int64), "two_three"),
    ]

    def tensor(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

    graph = helper.make_graph(
        nodes,
        "tiny",
        [tensor("waveform", 48_000), tensor("images", 8, 512, 512)],
        [
            tensor("mos", len(DOMAINS)),
            tensor("ssl_features", CHANNELS),
            tensor("spec_features", CHANNELS),
        ],
        constants,
    )
    # The oldest IR that carries opset 18, so that old runtimes read it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def file(name: str) -> File:
    data = (OUT / name).read_bytes()
    return File(path=name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def main() -> None:
    OUT.mkdir(exist_ok=True)
    members = []
    for fold in range(2):
        name = f"model.fold{fold}.fp32.onnx"
        onnx.save(network(fold), OUT / name)
        members.append(Member(name=f"fold{fold}", graph=file(name)))
    shapes = {"mos": len(DOMAINS), "ssl_features": CHANNELS, "spec_features": CHANNELS}
    manifest = Manifest(
        name="tiny",
        family="fusion",
        sample_rate_hz=16_000,
        ssl=SslSpec(tensor="waveform", crop_samples=48_000, epsilon=1e-7),
        mel=MelSpec(
            tensor="images",
            crop_samples=22_400,
            n_crops=2,
            n_fft=4096,
            hop_length=32,
            n_mels=512,
            windows=(4096, 2048, 1024, 512),
            f_min_hz=0.0,
            f_max_hz=8000.0,
            floor_db=80.0,
            image_height=512,
            image_width=512,
        ),
        domains=DOMAINS,
        default_domain="south",
        inputs=(
            TensorSpec(name="waveform", dtype="float32", shape=("batch", 48_000)),
            TensorSpec(name="images", dtype="float32", shape=("batch", 8, 512, 512)),
        ),
        outputs=tuple(
            TensorSpec(name=name, dtype="float32", shape=("batch", size))
            for name, size in shapes.items()
        ),
        variants={"fp32": Variant(opset=18, members=tuple(members))},
        provenance={"source": "random weights", "licence": "MIT"},
    )
    (OUT / "manifest.json").write_text(json.dumps(manifest.to_dict(), indent=1) + "\n")
    card = "# tiny\n\nRandom weights, for tests: its scores mean nothing.\n"
    (OUT / "model-card.md").write_text(card)


if __name__ == "__main__":
    main()
