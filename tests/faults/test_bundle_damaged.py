"""Whatever a bundle is made of, opening it ends at once, with a score or a BundleError."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import mosrt
from mosrt import BundleError
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.writer import updated_bundle
from mosrt.cli.main import main
from tests.standins.resealed import resealed

GRAPH = "model.fold0.fp32.onnx"
Change = Callable[[dict[str, Any]], object]
posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def zipped(bundle: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    target = bundle.with_name("bundle.zip")
    with zipfile.ZipFile(target, "w", method) as archive:
        for file in sorted(bundle.iterdir()):
            archive.write(file, file.name)
    return target


def edit(bundle: Path, change: Change) -> Path:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return bundle


def score(model: Path, clip: Path) -> Result:
    return CliRunner().invoke(main, ["score", str(clip), "-m", str(model)])


def refused(model: Path, clip: Path, message: str) -> None:
    """`mosrt score` ends with status 3 and one line."""
    result = score(model, clip)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 3, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


# A cache of the Hugging Face Hub


@pytest.fixture
def snapshot(tiny: Path, tmp_path: Path) -> Path:
    """A revision in a cache of the Hub, whose files are links."""
    repository = tmp_path / "hub" / "models--some--one"
    revision = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    revision.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny.iterdir())):
        shutil.copy(file, repository / "blobs" / f"{number:040x}")
        (revision / file.name).symlink_to(f"../../blobs/{number:040x}")
    return revision


def test_a_revision_in_the_cache_of_the_hub(snapshot: Path, tiny: Path, clips: list[Path]) -> None:
    assert score(snapshot, clips[0]).stdout == score(tiny, clips[0]).stdout != ""
    Bundle.open(snapshot).verify()
    assert Bundle.open(snapshot).model_card()


def test_a_link_to_a_revision(snapshot: Path, tmp_path: Path, clips: list[Path]) -> None:
    (tmp_path / "link").symlink_to(snapshot, target_is_directory=True)
    assert score(tmp_path / "link", clips[0]).exit_code == 0


@pytest.mark.parametrize(
    "target", ["{tmp}/secret", "../../../models--some--two/blobs/0", "/etc/hostname"]
)
@pytest.mark.parametrize("name", ["manifest.json", GRAPH, "model-card.md"])
def test_no_link_leaves_the_repository(
    snapshot: Path, tmp_path: Path, target: str, name: str
) -> None:
    for secret in (tmp_path / "secret", snapshot.parents[2] / "models--some--two/blobs/0"):
        secret.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(snapshot / name, secret)
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(target.replace("{tmp}", str(tmp_path)))
    with pytest.raises(BundleError, match="a link that leaves the bundle"):
        Bundle.open(snapshot).model_card()


def test_only_snapshots_have_links(snapshot: Path) -> None:
    elsewhere = snapshot.parents[1] / "elsewhere" / "0123abc"
    elsewhere.parent.mkdir()
    snapshot.rename(elsewhere)
    with pytest.raises(BundleError, match="a link that leaves the bundle"):
        Bundle.open(elsewhere)


# Zips


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_zips(copy: Path, clips: list[Path], method: int) -> None:
    whole = zipped(copy, method)
    assert score(whole, clips[0]).exit_code == 0
    with zipfile.ZipFile(whole) as archive:
        info = archive.getinfo(GRAPH)
        manifest = archive.getinfo("manifest.json")
    data = bytearray(whole.read_bytes())
    for first, size in ((info.header_offset, info.compress_size),
                        (manifest.header_offset, manifest.compress_size)):  # fmt: skip
        for offset in (60, 70, size // 2, size - 1):
            damaged = data.copy()
            damaged[first + offset] ^= 0x55
            whole.write_bytes(damaged)
            with pytest.raises(BundleError):
                mosrt.load(whole)


@pytest.mark.parametrize("offset", range(4, 30))
def test_each_byte_of_a_zips_headers(copy: Path, offset: int) -> None:
    whole = zipped(copy)
    data = whole.read_bytes()
    for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"):
        for bit in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            position = data.rindex(mark) + offset
            if position < len(damaged):
                damaged[position] ^= bit
                whole.write_bytes(damaged)
                try:
                    Bundle.open(whole).verify()
                except BundleError as exc:
                    assert "\n" not in str(exc)


def test_a_file_twice(copy: Path, clips: list[Path]) -> None:
    whole = zipped(copy)
    with zipfile.ZipFile(whole, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(GRAPH, (copy / GRAPH).read_bytes())
    refused(whole, clips[0], f"has '{GRAPH}' twice")


def test_a_zip_that_fills_a_disk(copy: Path, clips: list[Path]) -> None:
    size = 300 * 1024 * 1024
    edit(copy, lambda m: m["variants"]["fp32"]["members"][0]["graph"].update(bytes=size))
    (copy / GRAPH).unlink()
    whole = zipped(copy)
    with (
        zipfile.ZipFile(whole, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(GRAPH, "w") as member,
    ):
        for _ in range(300):
            member.write(bytes(1024 * 1024))
    refused(whole, clips[0], "unpack to")


def test_a_card_of_gigabytes(copy: Path, clips: list[Path]) -> None:
    (copy / "model-card.md").unlink()
    whole = zipped(copy)
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("model-card.md", bytes(64 * 1024 * 1024))
    assert score(whole, clips[0]).exit_code == 0  # which needs no card
    with pytest.raises(BundleError, match="larger than"):
        Bundle.open(whole).model_card()
    with (copy / "model-card.md").open("wb") as card:
        card.truncate(2**40)
    with pytest.raises(BundleError, match="larger than"):
        Bundle.open(copy).model_card()
    with (copy / "manifest.json").open("r+b") as manifest:
        manifest.truncate(2**40)
    refused(copy, clips[0], "larger than")


def test_no_room_to_unpack(
    copy: Path, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = zipped(copy)
    usage = shutil._ntuple_diskusage(2**30, 2**30, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(whole, clips[0], "TMPDIR")
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    refused(whole, clips[0], "TMPDIR")


# What is neither a file nor a directory


@posix
@pytest.mark.parametrize("name", ["", "manifest.json", GRAPH, "model-card.md"])
@pytest.mark.parametrize("kind", ["pipe", "loop", "device", "directory", "dangling"])
def test_what_is_no_file(copy: Path, name: str, kind: str) -> None:
    path = copy / name
    if name:
        path.unlink()
    else:
        shutil.rmtree(path)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nothing")
    # In a process of its own, which can be ended if it hangs.
    code = (
        "import sys; from mosrt.bundle.bundle import Bundle; from mosrt import BundleError\n"
        "try: Bundle.open(sys.argv[1]).model_card()\n"
        "except BundleError as exc: print(exc, end='')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, copy], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    if (name, kind) != ("model-card.md", "dangling"):
        assert str(copy) in done.stdout
        assert "\n" not in done.stdout


def test_a_directory_of_the_right_size_as_graph(copy: Path, clips: list[Path]) -> None:
    (copy / GRAPH).unlink()
    (copy / GRAPH).mkdir()
    size = (copy / GRAPH).stat().st_size
    edit(copy, lambda m: m["variants"]["fp32"]["members"][0]["graph"].update(bytes=size))
    refused(copy, clips[0], "not a file")


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "nul\0byte", "\udcff"])
def test_names_that_no_file_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        mosrt.load(tmp_path / name)
    with pytest.raises(BundleError):
        mosrt.load(name)


# Manifests


def _graph(manifest: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = manifest["variants"]["fp32"]["members"][0]["graph"]
    return entry


def _section(name: str, **changes: object) -> Change:
    return lambda manifest: manifest[name].update(changes)


HUGE = 10**400


@pytest.mark.parametrize(
    "change",
    [
        _section("mel", n_fft=4_096_000_000), _section("mel", n_fft=65_536, n_mels=1024),
        _section("mel", n_crops=10**9), _section("mel", crop_samples=10**12),
        _section("mel", hop_length=HUGE), _section("mel", n_mels=10**7, image_height=10**7),
        _section("mel", image_width=10**8), _section("mel", windows=[512] * 1000),
        _section("mel", floor_db=HUGE), _section("mel", floor_db=float("nan")),
        _section("mel", f_max_hz=float("inf")), _section("mel", f_max_hz=8001),
        _section("mel", hop_length=1, crop_samples=4_000_000), _section("mel", f_min_hz=-HUGE),
        _section("ssl", crop_samples=2**62), _section("ssl", epsilon=HUGE),
        _section("ssl", epsilon=float("nan")), _section("ssl", epsilon=-1.0),
        _section("ssl", tensor="images"), _section("ssl", tensor="a\nb"),
        lambda m: m.update(sample_rate_hz=10**9), lambda m: m.update(sample_rate_hz=-HUGE),
        lambda m: m.update(schema_version=HUGE), lambda m: m.update(name="x" * 10**6),
        lambda m: m.update(name="a\x1b[2Jb"), lambda m: m.update(name="\ud800"),
        lambda m: m.update(domains=[str(i) for i in range(10**5 + 1)]),
        lambda m: m.update(grid={"view_every_s": 1.0, "min_views": 1, "max_views": 10**9}),
        lambda m: m.update(grid={"view_every_s": HUGE, "min_views": 1, "max_views": 2}),
        lambda m: m["inputs"].append(m["inputs"][0]),
        lambda m: m["outputs"].append(m["outputs"][0]),
        lambda m: m["outputs"][0].update(shape=["batch", 10**30]),
        lambda m: m["inputs"][0].update(shape=["batch"] * 10**4),
        lambda m: m["variants"]["fp32"].update(members=m["variants"]["fp32"]["members"] * 1000),
        lambda m: m["variants"].update({str(i): m["variants"]["fp32"] for i in range(1000)}),
        lambda m: m["variants"].update({"a\nb": m["variants"]["fp32"]}),
        lambda m: m["variants"]["fp32"].update(opset=HUGE),
        lambda m: m["variants"]["fp32"].update(fixed_batch=HUGE),
        lambda m: _graph(m).update(bytes=HUGE),
        lambda m: _graph(m).update(path="x" * 300 + ".onnx"),
        lambda m: _graph(m).update(path="x/" * 1000 + "x.onnx"),
        lambda m: _graph(m).update(path="a\0b.onnx"),
        lambda m: _graph(m).update(path="\ud800.onnx"),
        lambda m: _graph(m).update(path=f"./{GRAPH}"),
        lambda m: _graph(m).update(path=f"a//{GRAPH}"),
        lambda m: _graph(m).update(path="model.ort"), lambda m: _graph(m).update(path="model.xml"),
        lambda m: m["variants"]["fp32"]["members"][0].update(
            weights={"path": GRAPH, "sha256": "0" * 64, "bytes": 1}),
        lambda m: m["variants"]["fp32"]["members"][0].update(
            weights={"path": f"{GRAPH}/data", "sha256": "0" * 64, "bytes": 1}),
        lambda m: m.update(provenance=json.loads("[" * 100 + "]" * 100)),
        lambda m: m.update(provenance={"a": json.loads("[" * 100 + "]" * 100)}),
    ],
)  # fmt: skip
def test_absurd_and_inconsistent_fields(copy: Path, change: Change, clips: list[Path]) -> None:
    edit(copy, change)
    result = score(copy, clips[0])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 1500


@pytest.mark.parametrize(
    "changes",
    [
        {"window_samples": 10**9}, {"hop_samples": 1, "window_samples": 16_000_000}, {"seed": HUGE},
        {"zero_pad_below_samples": -1}, {"zero_pad_below_samples": 10**12}, {"sign": HUGE},
        {"contrast": {"n_steps": 12, "first_horizon": 3, "n_negatives": 10**9}},
        {"contrast": {"n_steps": 4096, "first_horizon": 3, "n_negatives": 4096}},
        {"contrast": {"n_steps": 12, "first_horizon": HUGE, "n_negatives": 10}},
        {"mos_map": {"kind": "linear", "uncertainty": [0, HUGE], "mos": [4, 1], "n_clips": 9,
                     "loo_rmse": 0.1, "description": ""}},
        {"mos_map": {"kind": "linear", "uncertainty": [0, 1], "mos": [4, float("nan")],
                     "n_clips": 9, "loo_rmse": 0.1, "description": ""}},
        {"mos_map": {"kind": "linear", "uncertainty": [0, 1], "mos": [4, 1], "n_clips": HUGE,
                     "loo_rmse": HUGE, "description": ""}},
    ],
)  # fmt: skip
def test_absurd_fields_of_uncertainty(
    tiny_wav2vec: Path, tmp_path: Path, changes: dict[str, object], clips: list[Path]
) -> None:
    copy = Path(shutil.copytree(tiny_wav2vec, tmp_path / "copy"))
    edit(copy, _section("uncertainty", **changes))
    result = score(copy, clips[0])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 3


@pytest.mark.parametrize(
    ("option", "value"),
    [("--views", "1000000000"), ("--threads", "100000"), ("--views", "9" * 5000),
     ("--plan", "reference:" + "9" * 5000), ("--plan", "reference:99999999999")],
)  # fmt: skip
def test_absurd_options(tiny: Path, clips: list[Path], option: str, value: str) -> None:
    result = CliRunner().invoke(main, ["score", str(clips[0]), "-m", str(tiny), option, value])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    ["gate x y --alpha nan", "gate x y --tolerance inf", "gate x y --views 1000000000",
     "gate x y --threads 100000", "quantize x --max-drift nan", "quantize x --min-srcc nan",
     "quantize x --threads 100000", "bench run --runs 1000000000", "bench run --threads 100000",
     "bench run --seconds nan", "build x --max-batch 1000000000", "build x --max-seconds nan",
     "export triton x -o y --max-batch 1000000000"],
)  # fmt: skip
def test_absurd_options_of_other_commands(arguments: str) -> None:
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code == 2, result.output


def test_absurd_arguments(tiny: Path) -> None:
    for options in ({"threads": 10**5}, {"batch_size": 10**9}):
        with pytest.raises(ValueError, match="must be from 1 to"):
            mosrt.load(tiny, **options)  # type: ignore[arg-type]
    with mosrt.load(tiny) as scorer, pytest.raises(mosrt.PlanError, match="from 1 to 10000"):
        scorer.score(np.zeros(16_000, np.float32), 16_000, views=10**9)


# Graphs that load, and fail or lie when they run


def _changed_graph(bundle: Path, change: Callable[[Any], object]) -> Path:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: it changes the graph")
    model = onnx.load(bundle / GRAPH)
    change(model)
    (bundle / GRAPH).write_bytes(model.SerializeToString())
    return resealed(bundle)


def _rewired(op: str, **attributes: object) -> Callable[[Any], None]:
    """Puts a node between the scores and the output, which declares the shape that it had."""

    def change(model: Any) -> None:
        import onnx

        name = model.graph.output[0].name
        for node in model.graph.node:
            node.output[:] = ["inner" if each == name else each for each in node.output]
        inputs = {
            "Reshape": ["inner", "one"],
            "Concat": ["inner", "inner"],
            "Tile": ["inner", "two"],
        }
        model.graph.initializer.extend([
            onnx.numpy_helper.from_array(np.array([7, 7], np.int64), "one"),
            onnx.numpy_helper.from_array(np.array([2, 1], np.int64), "two"),
        ])  # fmt: skip
        node = onnx.helper.make_node(op, inputs.get(op, ["inner"]), [name], **attributes)
        model.graph.node.append(node)
        del model.graph.value_info[:]

    return change


@pytest.mark.parametrize(
    "change",
    [_rewired("Reshape"), _rewired("Concat", axis=1), _rewired("Tile"), _rewired("Cast", to=11),
     _rewired("Cast", to=8), _rewired("Transpose"), _rewired("NonZero")],
)  # fmt: skip
def test_graphs_that_fail_at_run_time(copy: Path, change: Any, clips: list[Path]) -> None:
    result = score(_changed_graph(copy, change), clips[0])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_weights_that_are_not_finite(copy: Path, clips: list[Path]) -> None:
    def change(model: Any) -> None:
        import onnx

        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims:
                values = onnx.numpy_helper.to_array(tensor).copy()
                values.flat[0] = np.nan
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    result = score(_changed_graph(copy, change), clips[0])
    assert result.exit_code == 3, result.output


def test_a_hostile_bundle_is_not_copied(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (copy / "extra").mkdir()
    hostile: list[Callable[[Path], object]] = [
        lambda path: path.symlink_to(tmp_path / "secret"),
        lambda path: path.symlink_to(tmp_path, target_is_directory=True),
        lambda path: path.symlink_to("..", target_is_directory=True),
        lambda path: path.symlink_to(path.name),
        lambda path: path.symlink_to("nothing"),
    ]
    if hasattr(os, "mkfifo"):
        hostile.append(os.mkfifo)
    for number, make in enumerate(hostile):
        place = copy / "extra" / str(number)
        make(place)
        for out in (copy, tmp_path / "out"):
            with pytest.raises(BundleError), updated_bundle(copy, out):
                pass
        place.unlink()
    with updated_bundle(copy, copy):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_every_damaged_byte_of_a_graph(copy: Path, clips: list[Path]) -> None:
    """The manifest agrees with the damage, as if an exporter were broken."""
    whole = (copy / GRAPH).read_bytes()
    positions = np.random.default_rng(0).choice(len(whole), 60, replace=False).tolist()
    for position in [*range(0, 40, 3), *positions]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        (copy / GRAPH).write_bytes(damaged)
        result = score(resealed(copy), clips[0])
        assert result.exception is None or isinstance(result.exception, SystemExit), position
        assert result.exit_code in (0, 3), result.output


def test_one_bit_of_the_weights(copy: Path, clips: list[Path]) -> None:
    data = bytearray((copy / GRAPH).read_bytes())
    data[-100] ^= 1
    (copy / GRAPH).write_bytes(data)
    refused(copy, clips[0], "SHA-256")
