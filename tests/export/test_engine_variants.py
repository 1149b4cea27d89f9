"""Every variant that is meant for TensorRT, made as users make it and built for real.

Small models of each family. Without a GPU an engine cannot be opened: what it takes and gives is
compared with the manifest by the builder, on TensorRT's network, and again where it is loaded.
"""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mosrt.backends.trt_module import TensorRt
from mosrt.bundle import Bundle
from mosrt.engine_file import EngineFiles, Header
from mosrt_calibration.cli import calibrate
from mosrt_export.engine.shapes import member_tensors
from tests.conftest import DATA
from tests.export.conftest import Exported
from tests.export.test_engine_command import run
from tests.export.test_wav2vec2 import export, saved

pytestmark = pytest.mark.usefixtures("rtx", "engine_cache")

CALIBRATION = (
    *("--clips", "2", "--eval-clips", "4", "--method", "min-max", "--threads", "1"),
    *("--max-drift", "10", "--min-srcc", "-1"),
)


def calibrated(bundle: Path, out: Path, variants: str) -> Path:
    """A copy of a bundle with more variants. Untrained weights: how they drift is of no account."""
    command = [str(bundle), "--audio", str(DATA), "--variants", variants, "--out", str(out)]
    result = CliRunner().invoke(calibrate, [*command, *CALIBRATION, "--cache", f"{out}-cache"])
    assert result.exit_code == 0, result.output
    return out


def built(bundle: Path, variant: str, cache: Path, *options: str) -> dict[str, Header]:
    """Headers of a variant's engines, by network, whose engines have the manifest's tensors."""
    result = run(str(bundle), "--variant", variant, "--level", "0", *options)
    assert result.exit_code == 0, result.output
    opened = Bundle.open(bundle)
    members = {member.name: member for member in opened.variant(variant).members}
    files = EngineFiles(cache / "engines")
    headers = {}
    for path in files.directory.glob("*.engine"):
        with files.opened(path) as (header, content):
            name = str(header.facts["network"])
            inputs, outputs = member_tensors(opened.manifest, members[name])
            for tensor in (*inputs, *outputs):
                assert tensor.name.encode() in bytes(content), (name, tensor.name)
            headers[name] = header
        path.unlink()
    assert set(headers) == set(members)
    return headers


@pytest.fixture(scope="module")
def every_fusion(fusion: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of both branches in all its variants."""
    out = tmp_path_factory.mktemp("variants") / "fusion"
    return calibrated(fusion.bundle, out, "fp16,int8-cpu,int8-trt")


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8-trt"])
def test_fusion(every_fusion: Path, engine_cache: Path, variant: str) -> None:
    headers = built(every_fusion, variant, engine_cache, "--opt-batch", "1", "--max-batch", "3")
    ((name, header),) = headers.items()
    assert header.key.profile == {
        "waveform": ((1, 3200), (1, 3200), (3, 3200)),
        "images": ((1, 4, 64, 96), (1, 4, 64, 96), (3, 4, 64, 96)),
    }
