"""Makes bundles of family "segments": one that only looks like it, and one whose graph runs."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mosrt.bundle.deviation_spec import DeviationSpec
from mosrt.bundle.front_end_spec import SslSpec
from mosrt.bundle.manifest import File, Manifest, Member, TensorSpec, Variant
from tests.standins.quantizable import RATE_HZ, Network

__all__ = ["DOMAINS", "SEGMENT", "STEP", "with_segments", "write_segments_bundle"]

SEGMENT, STEP = 48_000, 1_600
DOMAINS = ("overall", "codec", "noise")
_HOP, _WINDOW, _WIDTH = 160, 400, 8
_COLUMNS = {"mos": len(DOMAINS), "segment_features": _WIDTH, "mos_deviation": 2}

_FRAMES = TensorSpec(name="frames", dtype="float32", shape=("batch", SEGMENT // STEP, _WIDTH))


def with_segments(tiny: Path, out: Path) -> Path:
    """Copies the bundle `tiny` to `out`: segments of 3 s, at most 1 s apart, in steps of 0.1 s.

    Only its manifest is of that family.
    """
    shutil.copytree(tiny, out)
    path = out / "manifest.json"
    facts: dict[str, Any] = json.loads(path.read_text())
    facts |= {"family": "segments", "mel": None, "front_end": "graph"}
    facts["ssl"] |= {"segment_hop_samples": 16_000, "segment_step_samples": 1_600}
    facts["inputs"] = [{"name": "waveform", "dtype": "float32", "shape": ["batch", "samples"]}]
    path.write_text(json.dumps(facts))
    return out


def write_segments_bundle(directory: Path, *, frames: bool = False, **fields: Any) -> Path:
    """A bundle with random weights, from waveform to three domains and predicted deviations.

    "overall" is the mean of the others less a penalty, in the graph. Zeros after a segment have no
    effect but for rounding. With `frames` there is an output of that name, one each 0.1 s
    of a whole segment. `fields` replace those of the manifest.
    """
    directory.mkdir(parents=True)
    path = directory / "model.fp32.onnx"
    onnx.save(_model(frames), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    file = File(path=path.name, sha256=sha256, bytes=path.stat().st_size)
    plain: dict[str, Any] = {
        "name": "small-segments",
        "family": "segments",
        "sample_rate_hz": RATE_HZ,
        "ssl": SslSpec(
            tensor="waveform", crop_samples=SEGMENT, epsilon=0.0, segment_hop_samples=RATE_HZ,
            segment_step_samples=STEP,
        ),
        "mel": None,
        "front_end": "graph",
        "domains": DOMAINS,
        "default_domain": "overall",
        "inputs": (TensorSpec(name="waveform", dtype="float32", shape=("batch", "samples")),),
        "outputs": tuple(
            TensorSpec(name=name, dtype="float32", shape=("batch", size))
            for name, size in _COLUMNS.items()
        )
        + (_FRAMES,) * frames,
        "variants": {"fp32": Variant(opset=18, members=(Member(name="network", graph=file),))},
        "mos_range": (1.0, 5.0),
        "deviation": DeviationSpec(
            tensor="mos_deviation", domains=("noise", "overall"), factors=(1.5, 2.0)
        ),
    }  # fmt: skip
    manifest = Manifest(**(plain | fields))
    (directory / "manifest.json").write_text(json.dumps(manifest.to_dict()))
    (directory / "model-card.md").write_text("# small\n\nRandom weights.\n\n## Licence\n\nMIT\n")
    return directory


def _model(frames: bool) -> onnx.ModelProto:
    net = Network(3)
    wave = net.node("net/Unsqueeze", ["waveform", net.constant("one", np.array([1]))])
    # No biases: what is computed from zeros is zero.
    kernel = net.weights("net.frames.weight", _WIDTH, 1, _WINDOW)
    x = net.node("net.frames/Conv", [wave, kernel], strides=[_HOP])
    x = net.node("net.frames/Relu", [x])
    x = net.node("net.1/Conv", [x, net.weights("net.1.weight", _WIDTH, _WIDTH, 1)])
    x = net.node("net.1/Relu", [x])
    time = net.constant("time", np.array([2]))
    loud = net.node("pool/ReduceSum", [x, net.constant("axis", np.array([1, 2]))], keepdims=1)
    floor = net.constant("floor", np.array([1e-6], np.float32))
    share = net.node("pool/Div", [x, net.node("pool/Add", [loud, floor])])
    features = net.node("pool/ReduceSum_1", [share, time], "segment_features", keepdims=0)

    def linear(scope: str, output: str, bias: list[float]) -> str:
        weights = net.weights(f"{scope}.weight", len(bias), _WIDTH)
        offset = net.constant(f"{scope}.bias", np.array(bias, np.float32))
        return net.node(f"{scope}/Gemm", [features, weights, offset], output, transB=1)

    parts = linear("head", "", [3.0, 3.2])
    mean = net.node("combine/ReduceMean", [parts, net.constant("last", np.array([1]))], keepdims=1)
    threshold = net.constant("threshold", np.array([[3.0, 3.0]], np.float32))
    short = net.node("combine/Relu", [net.node("combine/Sub", [threshold, parts])])
    penalty = net.node("combine/ReduceSum", [short, "last"], keepdims=1)
    overall = net.node("combine/Sub_1", [mean, penalty])
    net.node("combine/Concat", [overall, parts], "mos", axis=1)
    net.node("error/Softplus", [linear("error", "error", [-3.0, -2.5])], "mos_deviation")
    outputs: dict[str, Any] = {name: (size,) for name, size in _COLUMNS.items()}
    if frames:
        # Zeros to the length of a segment.
        beyond = net.node("pad/Shape", ["waveform"])
        after = net.node("pad/Sub", [net.constant("ends", np.array([0, SEGMENT])), beyond])
        after = net.node("pad/Mul", [after, net.constant("only", np.array([0, 1]))])
        pads = net.node("pad/Concat", [net.constant("start", np.array([0, 0])), after], axis=0)
        long = net.node("pad/Unsqueeze", [net.node("pad/Pad", ["waveform", pads]), "one"])
        y = net.node("all.frames/Conv", [long, kernel], strides=[STEP])
        y = net.node("all/Relu", [y])
        net.node("all/Transpose", [y], "frames", perm=[0, 2, 1])
        outputs["frames"] = _FRAMES.shape[1:]
    return net.model({"waveform": ("samples",)}, outputs)
