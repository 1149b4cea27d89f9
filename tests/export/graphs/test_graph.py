import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from mosrt.bundle.bundle import Bundle
from mosrt_export.utmosv2.config import Kind
from tests.export.conftest import Exported
from tests.standins.utmosv2 import small_config, small_feeds, small_model

KINDS: tuple[Kind, ...] = ("fusion", "spec", "ssl")
SCRIPT = """
import torch
from mosrt.cli.main import main
torch.set_num_threads(3)
main()
"""


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture(scope="module")
def graph(kind: Kind, request: pytest.FixtureRequest) -> Path:
    bundle = {"fusion": "fusion", "spec": "spec", "ssl": "ssl_pair"}[kind]
    exported: Exported = request.getfixturevalue(bundle)
    assert exported.result.exit_code == 0, exported.result.output
    return exported.bundle / "model.network0.fp32.onnx"


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_onnxruntime_equals_torch(kind: Kind, graph: Path, batch: int) -> None:
    model = small_model(kind)
    feeds = small_feeds(small_config(), kind, batch=batch, seed=batch)
    with torch.inference_mode():
        features = model.features({name: torch.from_numpy(value) for name, value in feeds.items()})
        domains = torch.eye(3)[torch.arange(3)]
        mos = torch.stack([model.score(features, d.expand(batch, -1)) for d in domains], dim=1)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["mos", *features]
    found: list[NDArray[np.float32]] = session.run(None, feeds)
    for one, other in zip(found, (mos, *features.values()), strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-5)


def test_batch_members_do_not_mix(kind: Kind, graph: Path) -> None:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feeds = small_feeds(small_config(), kind, batch=3)
    together = session.run(["mos"], feeds)[0]
    for i in range(3):
        alone = session.run(["mos"], {name: value[i : i + 1] for name, value in feeds.items()})[0]
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-6, atol=1e-6)


def test_interface_and_opset(kind: Kind, graph: Path) -> None:
    model = onnx.load(graph, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not model.functions
    found = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    shapes = {
        "waveform": ["batch", 3200],
        "images": ["batch", 4, 64, 96],
        "mos": ["batch", 3],
        "ssl_features": ["batch", 64],
        "spec_features": ["batch", 1024],
    }
    dropped = {
        "fusion": (),
        "spec": ("waveform", "ssl_features"),
        "ssl": ("images", "spec_features"),
    }
    assert found == {name: shapes[name] for name in shapes if name not in dropped[kind]}
    onnx.checker.check_model(onnx.load(graph), full_check=True)


def test_the_promised_simplifications_are_there(kind: Kind, graph: Path) -> None:
    model = onnx.load(graph, load_external_data=False)
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"BatchNormalization", "Shape", "Where", "Expand", "If", "Loop", "Pad"}
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    if kind != "ssl":
        stems = [shape for name, shape in weights.items() if name.endswith("conv_stem.weight")]
        assert len(stems) == 2
        assert all(shape[1] == 1 for shape in stems)
    if kind != "spec":
        assert not any("parametrizations" in name or "weight_g" in name for name in weights)
    # a weight that must be transposed at load time could not be mapped from the file
    assert not any(
        node.op_type == "Transpose" and node.input[0] in weights for node in model.graph.node
    )


def test_nothing_of_the_machine_is_in_the_files(graph: Path) -> None:
    model = onnx.load(graph, load_external_data=False)
    assert not model.metadata_props
    assert not model.doc_string
    assert not model.graph.doc_string
    for node in model.graph.node:
        assert not node.doc_string
        assert not node.metadata_props
        assert node.name
    everything = graph.read_bytes()
    root = str(Path(__file__).parents[3]).encode()
    for word in (b".py", b"site-packages", b"stack_trace", b"torch", root, sys.prefix.encode()):
        assert word not in everything


def test_weights_are_one_aligned_file(graph: Path) -> None:
    model = onnx.load(graph, load_external_data=False)
    data = graph.with_name(f"{graph.name}.data")
    written = sorted(path.name for path in graph.parent.glob("model.network0.*"))
    assert written == [graph.name, data.name]
    ends = [0]
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            assert tensor.ByteSize() < 1500
            continue
        assert place["location"] == data.name
        offset, length = int(place["offset"]), int(place["length"])
        assert offset % (4096 if length >= 4096 else 64) == 0
        assert offset >= ends[-1]
        ends.append(offset + length)
    assert len(ends) > 10
    assert ends[-1] == data.stat().st_size


@pytest.mark.full
def test_same_bytes_in_another_process_and_place(
    fusion: Exported, inputs: Path, tmp_path: Path
) -> None:
    """Another hash seed, number of threads and directory must not show."""
    again = tmp_path / "elsewhere"
    command = [
        sys.executable, "-c", SCRIPT, "export", "utmosv2", inputs / "fusion.pth",
        "--config", inputs / "small.toml", "--parity-audio", inputs / "clip.wav", "--output", again,
    ]  # fmt: skip
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    files = Bundle.open(fusion.bundle).manifest.variants["fp32"].files
    assert len(files) == 2
    for file in files:
        assert (again / file.path).read_bytes() == (fusion.bundle / file.path).read_bytes()


def test_a_graph_may_be_moved(graph: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(graph.parent, moved)
    onnxruntime.InferenceSession(moved / graph.name, providers=["CPUExecutionProvider"])
