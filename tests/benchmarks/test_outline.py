import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from mosrt import load
from mosrt.bundle import Bundle
from mosrt.embedded import find_bundle
from mosrt.errors import BundleError
from mosrt_bench.outline import draw, main, take

NANO = Path(find_bundle("nano"))


def values_of(bundle: Path) -> dict[str, np.ndarray]:
    """The tensors in the file of weights; those inside the graph are copied with it."""
    member = Bundle.open(bundle).manifest.variants["fp32"].members[0]
    path = str(bundle / member.graph.path)
    apart = {
        tensor.name
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    tensors = onnx.load(path).graph.initializer
    return {
        tensor.name: numpy_helper.to_array(tensor) for tensor in tensors if tensor.name in apart
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("outline")
    take(NANO, directory / "outline")
    draw(directory / "outline", directory / "drawn")
    return directory


def test_a_drawn_bundle_is_as_large_and_scores(drawn: Path) -> None:
    bundle = Bundle.open(drawn / "drawn")
    bundle.verify()
    assert bundle.n_bytes == Bundle.open(NANO).n_bytes
    assert bundle.manifest.name.endswith("-drawn")
    assert "timing only" in bundle.manifest.provenance["weights"]
    waveform = np.sin(np.arange(64_000) / 9).astype(np.float32)
    with load(drawn / "drawn", threads=1) as scorer:
        mos = scorer.score(waveform, 16_000).mos
    assert mos is not None
    assert np.isfinite(mos)


def test_small_tensors_are_kept_and_large_ones_have_their_size(drawn: Path) -> None:
    own, made = values_of(NANO), values_of(drawn / "drawn")
    large = [name for name, value in own.items() if value.size >= 1024]
    assert large
    for name, value in own.items():
        if name not in large:
            np.testing.assert_array_equal(made[name], value)
    for name in large:
        assert not np.array_equal(made[name], own[name])
        # Of n draws the root mean square is that of the tensor within 1/sqrt(2n): five times that,
        # and something for what is cut off at the tensor's own extremes.
        rms = [float(np.sqrt(np.mean(np.square(v[name], dtype=np.float64)))) for v in (own, made)]
        assert rms[1] == pytest.approx(rms[0], rel=5 / np.sqrt(2 * own[name].size) + 0.05)
        assert np.abs(made[name]).max() <= np.abs(own[name]).max() * (1 + 1e-6)


def test_drawing_again_draws_the_same(drawn: Path, tmp_path: Path) -> None:
    outline = drawn / "outline"
    result = CliRunner().invoke(main, ["draw", str(outline), "--out", str(tmp_path / "again")])
    assert result.exit_code == 0, result.output
    files = [Bundle.open(path).manifest.variants for path in (drawn / "drawn", tmp_path / "again")]
    assert files[0] == files[1]


def test_what_is_no_outline_is_refused(tiny: Path, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no outline that can be read"):
        draw(tiny, tmp_path / "out")
    damaged = tmp_path / "damaged"
    shutil.copytree(drawn / "outline", damaged)
    (damaged / "manifest.json").write_text(json.dumps({"schema_version": 1}), encoding="utf-8")
    with pytest.raises(BundleError):
        draw(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (damaged / "statistics.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(BundleError):
        draw(damaged, tmp_path / "out")
    shutil.copyfile(drawn / "outline" / "manifest.json", damaged / "manifest.json")
    with pytest.raises(BundleError, match="no outline that can be read"):
        draw(damaged, tmp_path / "out")
    np.savez(damaged / "statistics.npz", nothing=np.zeros(1))
    with pytest.raises(BundleError, match="does not know"):
        draw(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    archive = tmp_path / "tiny.zip"
    shutil.make_archive(str(archive.with_suffix("")), "zip", tiny)
    result = CliRunner().invoke(main, ["take", str(archive), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "unpack it" in result.output
