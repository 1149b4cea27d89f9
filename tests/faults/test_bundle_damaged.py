"""Whatever the files of a bundle say, scoring ends at once, with a score or a BundleError."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import mosrt
from mosrt.cli.main import main
from tests.standins.resealed import resealed

from .bundles import GRAPH, Change, edit, refused, score

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
