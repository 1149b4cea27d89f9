"""Every variant that is meant for TensorRT, made as users make it and built for real.

Small models of each family. Without a GPU an engine cannot be opened: what it takes and gives is
compared with the manifest by the builder, on TensorRT's network, and again where it is loaded.
"""

import shutil
from pathlib import Path

import pytest
import soundfile
from click.testing import CliRunner

from mosrt.backends.engine_file import EngineFiles, Profile
from mosrt.backends.trt_module import TensorRt
from mosrt.bundle.bundle import Bundle
from mosrt_calibration.cli import quantize
from mosrt_calibration.graph import Topology, read_graph, write_graph
from mosrt_calibration.passes.fp16 import to_fp16
from mosrt_calibration.passes.qdq import with_qdq
from mosrt_calibration.passes.targets import Targets
from mosrt_export.trt.builder import build_engine
from mosrt_export.trt.shapes import member_tensors, profile_of, size_ranges
from tests.conftest import DATA
from tests.export.cli.test_build import run
from tests.export.conftest import Exported
from tests.export.uncertainty.test_wav2vec2 import exported_once
from tests.standins.engine_graphs import QUICK

pytestmark = pytest.mark.usefixtures("rtx", "engine_cache")

TWO_SECONDS = ("--max-seconds", "2")


def calibrated(bundle: Path, out: Path, audio: Path, variants: str) -> Path:
    """A copy of a bundle with more variants. Untrained weights: how they drift is of no account."""
    command = [str(bundle), "--audio", str(audio), "--output", str(out)]
    command += [word for name in variants.split(",") for word in ("--variant", name)]
    command += ["--clips", "1", "--eval-clips", "3", "--method", "min-max", "--threads", "1"]
    command += ["--max-drift", "10", "--min-srcc", "-1", "--cache", f"{out}-cache"]
    result = CliRunner().invoke(quantize, command)
    assert result.exit_code == 0, result.output
    return out


def built(bundle: Path, variant: str, cache: Path, *options: str) -> dict[str, Profile]:
    """Profiles of a variant's engines by network; all tensors of the manifest are in them."""
    result = run(str(bundle), "--variant", variant, "--level", "0", *options)
    assert result.exit_code == 0, result.output
    opened = Bundle.open(bundle)
    members = {member.name: member for member in opened.variant(variant).members}
    files = EngineFiles(cache / "engines")
    profiles = {}
    for path in files.directory.glob("*.engine"):
        with files.opened(path) as (header, content):
            name = str(header.facts["network"])
            inputs, outputs = member_tensors(opened.manifest, members[name])
            for tensor in (*inputs, *outputs):
                assert tensor.name.encode() in bytes(content), (name, tensor.name)
            profiles[name] = header.key.profile
    assert set(profiles) == set(members)
    return profiles


@pytest.fixture(scope="module")
def syllables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of few and short recordings."""
    folder = tmp_path_factory.mktemp("clips")
    speech, rate_hz = soundfile.read(DATA / "flite_slt_16k_mono.wav")
    for i in range(4):
        soundfile.write(folder / f"{i}.wav", speech[i * 10_000 : (i + 1) * 10_000], rate_hz)
    return folder


@pytest.fixture(scope="module")
def every_fusion(
    fusion: Exported, syllables: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The model of both branches in all its variants."""
    out = tmp_path_factory.mktemp("variants") / "fusion"
    return calibrated(fusion.bundle, out, syllables, "fp16,int8-cpu,int8-trt")


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8-trt"])
def test_fusion(every_fusion: Path, engine_cache: Path, variant: str) -> None:
    profiles = built(every_fusion, variant, engine_cache, "--opt-batch", "1", "--max-batch", "3")
    assert list(profiles.values()) == [
        {
            "waveform": ((1, 3200), (1, 3200), (3, 3200)),
            "images": ((1, 4, 64, 96), (1, 4, 64, 96), (3, 4, 64, 96)),
        }
    ]


def test_what_is_quantised_for_cpus_is_refused(every_fusion: Path, engine_cache: Path) -> None:
    result = run(str(every_fusion), "--variant", "int8-cpu", "--level", "0")
    assert result.exit_code == 3
    assert "is of type uint8, but TensorRT supports symmetric int8 only" in result.output
    assert "choose --variant int8-trt" in result.output
    assert not list((engine_cache / "engines").glob("*"))


def test_wav2vec(tiny_wav2vec: Path, syllables: Path, engine_cache: Path, tmp_path: Path) -> None:
    """Version 1: an encoder, and graphs without weights that make logits."""
    every = calibrated(tiny_wav2vec, tmp_path / "every", syllables, "fp16,int8-trt")
    for variant in ("fp32", "fp16", "int8-trt"):
        profiles = built(every, variant, engine_cache, *TWO_SECONDS)
        assert profiles["encoder"] == {"waveform": ((1, 945), (1, 32_000), (1, 32_000))}
        shutil.rmtree(engine_cache / "engines")


@pytest.mark.parametrize("kind", ["group", "pretraining"])
def test_wav2vec2(
    rtx: TensorRt, kind: str, engine_cache: Path,
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """wav2vec 2.0 with either head; one takes a single recording, and that in many passes."""
    bundle = exported_once(tmp_path_factory, kind)
    profiles = built(bundle, "fp32", engine_cache, *TWO_SECONDS)
    assert set(profiles) == {"convolutions", "encoder"}
    assert profiles["convolutions"]["waveform"][1:] == ((1, 32_000), (1, 32_000))
    opened = Bundle.open(bundle)
    ranges = size_ranges(opened.manifest, max_seconds=2.0)
    for member in opened.variant("fp32").members:
        inputs, outputs = member_tensors(opened.manifest, member)
        model = read_graph(bundle / member.graph.path)
        targets = Targets.of(Topology(model))
        spans = dict.fromkeys(targets.tensors(Topology(model)), (-4.0, 4.0))
        for made in (to_fp16(model), with_qdq(model, spans, targets.weighted, symmetric=True)):
            graph, _ = write_graph(made, tmp_path / "other.onnx")
            engine = build_engine(
                rtx,
                graph,
                profile_of(inputs, ranges),
                inputs=inputs,
                outputs=outputs,
                settings=QUICK,
            )
            assert engine.nbytes > 10_000
