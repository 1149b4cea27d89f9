"""Exports Microsoft's DNSMOS P.808 and P.835 from their published ONNX files.

C. Reddy et al., ICASSP 2021 (arXiv 2010.15258) and ICASSP 2022 (arXiv 2110.01763). The published
network stays as it is. What the published script computes before it (the log-mel spectrogram of
P.808) and after it (the maps to MOS of P.835) becomes a part of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import torch

from mosrt._arrays import Float32Array, FloatArray
from mosrt.audio.sources import AudioSource
from mosrt.bundle.front_end_spec import FRONT_END_SCOPE, MelSpec, SslSpec
from mosrt.bundle.manifest import Manifest, Member, Variant
from mosrt.bundle.writer import bundle_file, check_target, new_directory
from mosrt.errors import BundleError
from mosrt.host.files import sha256_of
from mosrt.mel.front_end import MelFrontEnd

from .errors import CheckpointError
from .graphs.front_end import MelImages
from .graphs.graph import BATCH, OPSET, tensor, write_graph
from .model_card import dnsmos_card, provenance
from .parity import Drift, Step, compared, publish

__all__ = ["N_STEPS", "export_dnsmos"]

N_STEPS: Final = 4
_TOLERANCE_MOS: Final = 1e-4  # float32; on speech from 0.5 to 30 s scores differed by 3e-6
_GRAPH: Final = "mosrt"
_SAMPLE_RATE_HZ: Final = 16_000
_SEGMENT_SAMPLES: Final = 144_160  # 9.01 s, the input of both models
_INPUT: Final = tensor("waveform", BATCH, _SEGMENT_SAMPLES)
_MEL: Final = MelSpec(
    tensor="features", crop_samples=_SEGMENT_SAMPLES - 160, n_crops=1, n_fft=321, hop_length=160,
    n_mels=120, windows=(321,), f_min_hz=0.0, f_max_hz=_SAMPLE_RATE_HZ / 2, floor_db=80.0,
    image_height=120, image_width=900,
)  # fmt: skip
_SEGMENTS: Final = SslSpec(
    tensor="waveform", crop_samples=_SEGMENT_SAMPLES, epsilon=0.0, segment_repeat=True,
    segment_hop_samples=_SAMPLE_RATE_HZ, segment_step_samples=_SEGMENT_SAMPLES,
)  # fmt: skip

# Coefficients of x², x and 1 from each output x to MOS, by domain.
_P808: Final = {"p808": (0.0, 1.0, 0.0)}
_P835: Final = {
    "sig": (-0.08397278, 1.22083953, 0.0052439),
    "bak": (-0.13166888, 1.60915514, -0.39604546),
    "ovr": (-0.06766283, 1.11546468, 0.04602535),
}


class _Published:
    """A published network with what the published script computes before and after it.

    Attributes:
        maps: `_P808` or `_P835`.
    """

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # ONNX Runtime's own exceptions share no base but Exception
            raise BundleError(f"{file}: not a DNSMOS model ({exc})") from exc
        (first, *others), outputs = self._session.get_inputs(), self._session.get_outputs()
        sizes = [size if isinstance(size, int) else None for size in first.shape[1:]]
        if not others and sizes in ([900, _MEL.n_mels], [None, _MEL.n_mels]):
            self.maps = _P808
        elif not others and sizes in ([_SEGMENT_SAMPLES], [None]) and outputs[0].shape[-1] == 3:
            self.maps = _P835
        else:
            raise BundleError(
                f"{file}: neither DNSMOS P.808 (900 frames of {_MEL.n_mels} mels) nor P.835 "
                f"({_SEGMENT_SAMPLES} samples, three scores): the input is {first.shape}, the "
                f"output {outputs[0].shape}"
            )
        self._input = first.name
        self._mel = MelFrontEnd(_MEL, _SAMPLE_RATE_HZ)

    def __call__(self, waveform: Float32Array) -> FloatArray:
        """MOS (domains,) of a recording (samples,)."""
        while len(waveform) < _SEGMENT_SAMPLES:
            waveform = np.concatenate([waveform, waveform])
        raw = []
        # Counted as in the script, which drops a last segment that would still fit, and those that
        # are a sample short by rounding.
        for i in range(int(len(waveform) // _SAMPLE_RATE_HZ - 9.01) + 1):
            start, end = i * _SAMPLE_RATE_HZ, int((i + 9.01) * _SAMPLE_RATE_HZ)
            if end - start < _SEGMENT_SAMPLES:
                continue
            feed = waveform[start:end]
            if self.maps is _P808:
                feed = 2 * self._mel.images(feed[: _MEL.crop_samples], _MEL.windows)[321].T - 1
            raw.append(self._session.run(None, {self._input: feed[None]})[0][0])
        maps = np.array([*self.maps.values()])
        mos: FloatArray = np.polyval(maps.T, np.array(raw, np.float64)).mean(axis=0)
        return mos


class _Features(MelImages):
    """Segments (batch, 144160) to what the network of P.808 reads, (batch, 900, 120)."""

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        image = super().forward(waveform[:, None, : _MEL.crop_samples])[:, 0]
        return 2 * image.transpose(1, 2) - 1


def export_dnsmos(
    file: Path,
    out: Path,
    *,
    clips: Sequence[AudioSource],
    step: Step,
    name: str | None = None,
    force: bool = False,
) -> Drift:
    """Exports a bundle with one FP32 graph, after comparing its scores with the published script's.

    Args:
        file: The published ONNX file, whose input tells P.808 from P.835.
        out: Directory of the bundle to write.
        clips: Audio to compare on; all clips one after the other are compared, too.
        step: Announces progress.
        name: Name of the model; by default dnsmos-p808 or dnsmos-p835.
        force: Whether an older bundle at `out` is replaced.

    Returns:
        The measured differences, which are also in the manifest.

    Raises:
        AudioError: A clip cannot be scored.
        BundleError: The file is no DNSMOS model.
        CheckpointError: There is no such file, or it is exported already.
        OutputError: `out` must not or cannot be written.
        ParityError: Bundle and script disagree; nothing was written.
    """
    check_target(out, force=force)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; pass model_v8.onnx or sig_bak_ovr.onnx")
    with step(f"reading {file.name}"):
        model = _Published(file)
        original = onnx.load(file)
        if original.graph.name == _GRAPH:
            raise CheckpointError(f"{file}: exported already; pass the file of Microsoft's")
    kind = "p808" if model.maps is _P808 else "p835"
    network = f"the published network in onnxruntime {onnxruntime.__version__}"
    with new_directory(out, force=force) as directory:
        with step("exporting"):
            member = _write(directory / "model.fp32.onnx", original, model.maps)
            manifest = _manifest(name or f"dnsmos-{kind}", file, tuple(model.maps), member)
        with step(f"comparing with the original on {len(clips)} clips and all of them as one"):
            drift = compared(
                directory,
                manifest,
                model,
                clips,
                tolerance_mos=_TOLERANCE_MOS,
                against=f"{network}, all else in numpy {np.__version__}",
            )
        with step(f"writing {out.name}"):
            publish(directory, manifest, drift, card=dnsmos_card)
    return drift


def _write(path: Path, original: Any, maps: Mapping[str, tuple[float, float, float]]) -> Member:
    """Writes the graph from segments of audio to MOS."""
    network = onnx.version_converter.convert_version(original, OPSET).graph
    network = onnx.compose.add_prefix_graph(network, "published/")
    before = onnx.parser.parse_graph(
        f"before (float[batch, {_SEGMENT_SAMPLES}] waveform) => (float[batch, {_SEGMENT_SAMPLES}] "
        "features) { features = Identity (waveform) }"
    )
    if maps is _P808:
        features = tensor("features", BATCH, _MEL.image_width, _MEL.n_mels)
        module = _Features(_MEL, _SAMPLE_RATE_HZ).eval()
        write_graph("features", module, path, inputs=[_INPUT], outputs=[features])
        before = onnx.load(path).graph
        path.with_name(f"{path.name}.data").unlink()
    n, rows = len(maps), zip(*maps.values(), strict=True)
    a, b, c = (", ".join(map(str, row)) for row in rows)
    after = onnx.parser.parse_graph(
        f"after (float[batch, {n}] raw) => (float[batch, {n}] mos) "
        f"<float[{n}] a = {{{a}}}, float[{n}] b = {{{b}}}, float[{n}] c = {{{c}}}> "
        "{ ax = Mul (a, raw) axb = Add (ax, b) axxbx = Mul (axb, raw) mos = Add (axxbx, c) }"
    )
    graph = onnx.compose.merge_graphs(before, network, [("features", network.input[0].name)])
    graph = onnx.compose.merge_graphs(graph, after, [(graph.output[0].name, "raw")], name=_GRAPH)
    del graph.value_info[:]  # of another name of the batch
    # Calibration keeps the front end, which ends with a logarithm in both models, in FP32.
    end = max((i for i, node in enumerate(graph.node) if node.op_type == "Log"), default=-1)
    for i, node in enumerate(graph.node):
        node.name = f"{FRONT_END_SCOPE if i <= end else 'network'}/{node.op_type}_{i}"
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    complete = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(complete.SerializeToString(deterministic=True))
    return Member(name="network", graph=bundle_file(path))


def _manifest(name: str, file: Path, domains: tuple[str, ...], member: Member) -> Manifest:
    return Manifest(
        name=name,
        family="segments",
        sample_rate_hz=_SAMPLE_RATE_HZ,
        ssl=_SEGMENTS,
        mel=None,
        domains=domains,
        default_domain=domains[-1],
        inputs=(_INPUT,),
        outputs=(tensor("mos", BATCH, len(domains)),),
        variants={"fp32": Variant(opset=OPSET, members=(member,))},
        front_end="graph",
        provenance=provenance(
            [{"file": file.name, "sha256": sha256_of(file)}],
            config={},
            licence="CC-BY-4.0, Microsoft Corporation (code MIT)",
            training_data="noisy speech and the output of noise suppressors, rated by crowds",
            libraries=("mosrt", "onnx", "onnxruntime"),
        ),
    )
