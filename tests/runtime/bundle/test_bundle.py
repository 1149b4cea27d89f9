import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mosrt import BundleError, load
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.front_end_spec import GridSpec
from mosrt.bundle.manifest import Manifest
from tests.standins.resealed import resealed

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def edit(bundle: Path, change: Change) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def zipped(bundle: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in bundle.iterdir():
            archive.write(file, file.name)
    return target


def test_round_trip(tiny: Path) -> None:
    written = {
        **json.loads((tiny / "manifest.json").read_text()),
        "grid": {"view_every_s": 5.0, "min_views": 1, "max_views": 12},
    }
    manifest = Manifest.from_dict(written)
    assert json.loads(json.dumps(manifest.to_dict())) == written
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_a_bundle_without_grid_has_utmosv2s(copy: Path) -> None:
    edit(copy, lambda m: m.pop("grid", None))
    assert Bundle.open(copy).manifest.grid == GridSpec(view_every_s=3.0, min_views=2, max_views=8)


def test_directory_and_zip_are_alike(tiny: Path, tmp_path: Path) -> None:
    archive = zipped(tiny, tmp_path / "tiny.zip")
    directory, packed = Bundle.open(tiny), Bundle.open(archive)
    assert directory.manifest == packed.manifest
    assert directory.model_card() == packed.model_card() != ""
    directory.verify()
    seen: list[int] = []
    packed.verify(seen.append)
    assert sum(seen) == packed.n_bytes == sum(f.stat().st_size for f in tiny.glob("*.onnx"))
    with load(archive) as scorer:
        assert scorer.manifest.name == "tiny"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=2), "upgrade"),
        (lambda m: m.update(schema_version=True), "schema_version must be int"),
        (lambda m: m.pop("name"), "name must be str, not missing"),
        (lambda m: m.update(family="psychic"), "family 'psychic'"),
        (lambda m: m.update(sample_rate_hz=0), "sample_rate_hz must be from 4000"),
        (lambda m: m.update(domains=[]), "domains"),
        (lambda m: m.update(domains=["a", "a", "b"]), "none twice"),
        (lambda m: m.update(domains=[1, 2, 3]), r"domains\[0\] must be str"),
        (lambda m: m.update(default_domain="west"), "'west' is not among"),
        (lambda m: m.update(variants={}), "variants: number of items must be from 1"),
        (lambda m: m.update(variants=[]), "variants must be an object"),
        (lambda m: m.update(ssl=None), "ssl does not fit"),
        (lambda m: m["ssl"].update(crop_samples=47_999), "contradict the front end"),
        (lambda m: m["mel"].update(windows=[]), "mel.windows: number of items must be from 1"),
        (lambda m: m["mel"].update(windows=[4097]), "mel.windows must be at most n_fft"),
        (lambda m: m["mel"].update(windows=[True]), r"mel.windows\[0\] must be int, not bool"),
        (lambda m: m["mel"].update(image_height=256), "only time is resized"),
        (lambda m: m["mel"].update(floor_db=0), "floor_db > 0"),
        (lambda m: m.update(grid=[5.0, 1, 12]), "grid must be an object"),
        (lambda m: m["mel"].pop("n_fft"), "mel.n_fft must be int, not missing"),
        (lambda m: _grid(m, view_every_s="5"), "grid.view_every_s must be float, not str"),
        (lambda m: _grid(m, view_every_s=0), "grid.view_every_s must be from 0.1 to 3600"),
        (lambda m: _grid(m, view_every_s=float("nan")), "must be from 0.1 to 3600.0, not nan"),
        (lambda m: _grid(m, view_every_s=float("inf")), "must be from 0.1 to 3600.0, not inf"),
        (lambda m: _grid(m, min_views=0), "grid.min_views must be from 1"),
        (lambda m: _grid(m, min_views=1.5), "grid.min_views must be int"),
        (lambda m: _grid(m, max_views=True), "grid.max_views must be int"),
        (lambda m: _grid(m, min_views=3, max_views=2), "max_views is 2, less than min_views"),
        (lambda m: m["outputs"].reverse(), "first output must be the scores"),
        (
            lambda m: m["inputs"][0].update(shape=["batch", -1]),
            r"inputs\[0\].shape\[1\] must be from 1",
        ),
        (
            lambda m: m["variants"]["fp32"].update(members=[]),
            "members: number of items must be from 1",
        ),
        (lambda m: _file(m).update(sha256="zz"), "no SHA-256"),
        (lambda m: _file(m).update(path="gone.onnx"), "gone.onnx: missing"),
        (lambda m: _file(m).update(path="../manifest.json"), "leaves the bundle"),
        (lambda m: _file(m).update(path="/etc/passwd"), "leaves the bundle"),
        (lambda m: _file(m).update(path="a/../../b"), "leaves the bundle"),
        (lambda m: _file(m).update(path="..\\secret"), "leaves the bundle"),
        (lambda m: _file(m).update(path="C:secret"), "leaves the bundle"),
        (lambda m: _file(m).update(path=""), "leaves the bundle"),
        (lambda m: _file(m).update(bytes=1), "incomplete"),
    ],
)
def test_refuses_by_name(copy: Path, change: Change, message: str) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(copy)
    assert str(copy) in str(caught.value)


def _grid(manifest: dict[str, Any], **changes: object) -> None:
    manifest["grid"] = {"view_every_s": 5.0, "min_views": 1, "max_views": 12, **changes}


def _file(manifest: dict[str, Any]) -> dict[str, Any]:
    file: dict[str, Any] = manifest["variants"]["fp32"]["members"][0]["graph"]
    return file


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000, '{"a": 1'])
def test_refuses_what_is_no_manifest(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(copy)


def test_refuses_what_is_no_bundle(tmp_path: Path, clips: list[Path]) -> None:
    for path, message in [
        (tmp_path / "none", "no such bundle"),
        (tmp_path, "is this a bundle"),
        (clips[0], "neither a bundle directory nor a zip"),
    ]:
        with pytest.raises(BundleError, match=message):
            Bundle.open(path)


def test_damage_is_found(copy: Path, tmp_path: Path) -> None:
    model = copy / "model.fold0.fp32.onnx"
    data = bytearray(model.read_bytes())
    data[-100] ^= 1
    model.write_bytes(data)
    bundle = Bundle.open(copy)  # sizes are right
    with pytest.raises(BundleError, match="SHA-256"):
        bundle.verify()
    with pytest.raises(BundleError, match="SHA-256"):
        load(copy)
    model.write_bytes(b"\0" * len(data))
    with pytest.raises(BundleError, match="cannot load it"):
        load(resealed(copy))
    archive = zipped(copy, tmp_path / "cut.zip")
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(BundleError, match="neither|damaged zip"):
        Bundle.open(archive)


def test_links_must_stay_inside(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    model = copy / "model.fold0.fp32.onnx"
    model.rename(outside)
    model.symlink_to(outside)
    with pytest.raises(BundleError, match="link that leaves"):
        Bundle.open(copy)


def test_graph_must_be_what_the_manifest_says(copy: Path) -> None:
    edit(copy, lambda m: m["outputs"][2].update(name="other"))
    with pytest.raises(BundleError, match="output 'other'"):
        load(copy)


def test_unknown_variant_lists_the_known(tiny: Path) -> None:
    with pytest.raises(BundleError, match="it has: fp32"):
        load(tiny, variant="int4")
