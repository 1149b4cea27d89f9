"""A graph reads no file but the one that the manifest lists for it, on any ONNX Runtime."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import mosrt
from mosrt import BundleError
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.onnx_header import check_external_data
from tests.standins.resealed import resealed

onnx = pytest.importorskip("onnx", reason="onnx is not installed: it makes the graphs")

DATA = np.arange(8, dtype=np.float32)


def external(name: str, location: str, **more: object) -> Any:
    """A tensor (8,) whose data is said to be in a file."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[8])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 0, "length": 32, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def graph(nodes: list[Any] | None = None, **more: Any) -> Any:
    nodes = nodes or [onnx.helper.make_node("Identity", ["x"], ["y"])]
    floats = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [8])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [8])
    return onnx.helper.make_graph(nodes, "g", [floats], [out], **more)


def in_initializer(tensor: Any) -> Any:
    return onnx.helper.make_model(graph(initializer=[tensor]))


def in_sparse_initializer(tensor: Any) -> Any:
    model = in_initializer(onnx.TensorProto())
    sparse = onnx.SparseTensorProto(dims=[8])
    sparse.values.CopyFrom(tensor)
    model.graph.sparse_initializer.append(sparse)
    return model


def in_constant(tensor: Any) -> Any:
    return onnx.helper.make_model(
        graph([onnx.helper.make_node("Constant", [], ["y"], value=tensor)])
    )


def in_attribute_list(tensor: Any) -> Any:
    node = onnx.helper.make_node("Custom", ["x"], ["y"], domain="own")
    node.attribute.append(onnx.helper.make_attribute("many", [tensor]))
    return onnx.helper.make_model(graph([node]))


def in_subgraph(tensor: Any) -> Any:
    inner = in_constant(tensor).graph
    del inner.input[:]
    flag = onnx.helper.make_tensor("flag", onnx.TensorProto.BOOL, [], [True])
    branch = onnx.helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner)
    return onnx.helper.make_model(graph([branch], initializer=[flag]))


def in_function(tensor: Any) -> Any:
    model = onnx.helper.make_model(graph([onnx.helper.make_node("F", ["x"], ["y"], domain="own")]))
    node = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    opset = [onnx.helper.make_opsetid("", 17)]
    model.functions.append(onnx.helper.make_function("own", "F", ["x"], ["y"], [node], opset))
    return model


def in_training(tensor: Any) -> Any:
    model = onnx.helper.make_model(graph())
    model.training_info.add().initialization.CopyFrom(graph(initializer=[tensor]))
    return model


PLACES = [in_initializer, in_sparse_initializer, in_constant, in_attribute_list, in_subgraph,
          in_function, in_training]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with weights, and a secret outside of it."""
    (tmp_path / "secret.bin").write_bytes(DATA.tobytes())
    inside = tmp_path / "bundle"
    (inside / "deep").mkdir(parents=True)
    for name in ("weights.bin", "other.bin", "deep/weights.bin"):
        (inside / name).write_bytes(DATA.tobytes())
    return inside


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "other.bin", "./weights.bin", "weights.bin/", "deep/../weights.bin", "{root}",
     "deep/weights.bin", "", "weights.bin\0x", "*/_ORT_MEM_ADDR_/*", "WEIGHTS.BIN",
     "\\weights.bin"],
)  # fmt: skip
def test_only_the_listed_file(folder: Path, place: Callable[[Any], Any], location: str) -> None:
    path = folder / "graph.onnx"
    path.write_bytes(place(external("w", "weights.bin")).SerializeToString())
    check_external_data(path, folder / "weights.bin")
    location = location.replace("{root}", str(folder.parent / "secret.bin"))
    path.write_bytes(place(external("w", location)).SerializeToString())
    with pytest.raises(BundleError, match="which the manifest does not list"):
        check_external_data(path, folder / "weights.bin")
    with pytest.raises(BundleError, match="which the manifest does not list"):
        check_external_data(path, None)


@pytest.mark.parametrize(
    "more", [{"length": 33}, {"offset": 1}, {"offset": -4}, {"length": -1}, {"offset": "one"},
             {"offset": 10**30}, {"length": ""}]
)  # fmt: skip
def test_only_within_the_file(folder: Path, more: dict[str, object]) -> None:
    path = folder / "graph.onnx"
    path.write_bytes(in_initializer(external("w", "weights.bin", **more)).SerializeToString())
    with pytest.raises(BundleError, match="beyond its end|damaged"):
        check_external_data(path, folder / "weights.bin")


def test_the_last_of_two_locations_counts(folder: Path) -> None:
    """Readers differ in which one they take, so both must be right."""
    path = folder / "graph.onnx"
    for first, second in (("weights.bin", "other.bin"), ("other.bin", "weights.bin")):
        tensor = external("w", first)
        tensor.external_data.add(key="location", value=second)
        path.write_bytes(in_initializer(tensor).SerializeToString())
        with pytest.raises(BundleError, match="does not list"):
            check_external_data(path, folder / "weights.bin")


def varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def field(number: int, content: bytes, *, tag: bytes = b"", size: bytes = b"") -> bytes:
    return (tag or varint(number << 3 | 2)) + (size or varint(len(content))) + content


@pytest.mark.parametrize(
    "entry",
    [
        field(1, b"location") + field(2, b"weights.bin") + field(2, b"other.bin"),
        field(2, b"other.bin") + field(1, b"location"),
        field(1, b"offset") + field(1, b"location") + field(2, b"other.bin"),
        field(1, b"location", size=b"\x88\x00") + field(2, b"other.bin", size=b"\x89\x80\x00"),
        field(1, b"location", tag=b"\x8a\x00") + field(2, b"other.bin", tag=b"\x92\x80\x80\x00"),
        b"\x7d" + field(1, b"\x0a\x08") + field(1, b"location") + field(2, b"other.bin"),
        # 32 bits are kept of a tag of 35: another reader sees field 2.
        field(1, b"location") + field(2, b"other.bin", tag=b"\x92\x80\x80\x80\x10"),
    ],
)
def test_unusual_encodings_do_not_hide_a_location(folder: Path, entry: bytes) -> None:
    path = folder / "graph.onnx"
    tensor = field(8, b"w") + field(13, entry) + b"\x70\x01"
    path.write_bytes(b"\x08\x08" + field(7, field(5, tensor)))
    with pytest.raises(BundleError, match="does not list|damaged"):
        check_external_data(path, folder / "weights.bin")


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 20, b"\x3a\x05ab", b"<?xml version='1.0'?>", b"\x0b\x0c", b"location\x3a",
     b"\x3a" + b"\xff" * 9 + b"\x01"],
)  # fmt: skip
def test_what_is_no_graph(folder: Path, content: bytes) -> None:
    path = folder / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="damaged"):
        check_external_data(path, None)


def test_deep_nesting_ends(folder: Path) -> None:
    message = field(13, field(1, b"location") + field(2, b"other.bin"))
    message = field(1, field(5, field(5, message)))  # an attribute of a node of a graph
    for _ in range(2000):
        message = field(1, field(5, field(6, message)))
    path = folder / "graph.onnx"
    path.write_bytes(field(7, message))
    with pytest.raises(BundleError, match="does not list"):
        check_external_data(path, None)


def test_a_graph_compiled_for_some_hardware(folder: Path) -> None:
    """Such a node makes an engine read the file that it names."""
    node = onnx.helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")
    path = folder / "graph.onnx"
    path.write_bytes(onnx.helper.make_model(graph([node])).SerializeToString())
    with pytest.raises(BundleError, match="compiled"):
        check_external_data(path, None)


def with_functions(**calls: list[str]) -> Any:
    """A model of functions by name, each of which calls others one after the other."""
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("own", 1)]
    functions = []
    for name, others in calls.items():
        values = ["a", *map(str, range(len(others) - 1)), "b"]
        nodes = [
            onnx.helper.make_node(other, [values[i]], [values[i + 1]],
                                  domain="own" if other in calls else "")
            for i, other in enumerate(others)
        ]  # fmt: skip
        functions.append(onnx.helper.make_function("own", name, ["a"], ["b"], nodes, opsets))
    node = onnx.helper.make_node(next(iter(calls)), ["x"], ["y"], domain="own")
    return onnx.helper.make_model(graph([node]), functions=functions, opset_imports=opsets)


@pytest.mark.parametrize(
    "calls",
    [
        {"F": ["F"]}, {"F": ["G"], "G": ["Relu", "F"]}, {"F": ["Relu"], "G": ["G"]},
        {**{f"F{i}": [f"F{i + 1}"] * 2 for i in range(40)}, "F40": ["Relu"]},
        {**{f"F{i}": [f"F{i + 1}"] for i in range(5000)}, "F5000": ["Relu"]},
    ],
)  # fmt: skip
def test_functions_without_an_end(folder: Path, calls: dict[str, list[str]]) -> None:
    """ONNX Runtime 1.18 crashes over the first, and any version takes all memory for the last."""
    path = folder / "graph.onnx"
    path.write_bytes(with_functions(**calls).SerializeToString())
    with pytest.raises(BundleError, match="call themselves"):
        check_external_data(path, None)


def test_functions_that_call_functions(folder: Path) -> None:
    path = folder / "graph.onnx"
    model = with_functions(Relu=["F", "F"], F=["G", "Abs"], G=["Relu"])
    model.functions[2].node[0].domain = ""  # ONNX's own Relu
    path.write_bytes(model.SerializeToString())
    check_external_data(path, None)


@pytest.fixture
def hostile(tiny: Path, tmp_path: Path) -> Path:
    """A bundle whose graph reads a file beside the bundle, and that is consistent otherwise."""
    bundle = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    path = bundle / "model.fold0.fp32.onnx"
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    data = onnx.numpy_helper.to_array(tensor).tobytes()
    (tmp_path / "secret.bin").write_bytes(data)
    shape, name, kind = list(tensor.dims), tensor.name, tensor.data_type
    tensor.CopyFrom(external(name, "../secret.bin", length=len(data)))
    tensor.dims[:] = shape
    tensor.data_type = kind
    path.write_bytes(model.SerializeToString())
    return resealed(bundle)


@pytest.mark.parametrize("provider", ["cpu", "openvino-fp32"])
@pytest.mark.parametrize("cached", [True, False])
def test_no_engine_sees_it(
    hostile: Path, provider: str, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if provider != "cpu":
        pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setattr("mosrt.backends.ort.WORTH_CACHING_BYTES", 0)
    with pytest.raises(BundleError, match=r"its weights are in '\.\./secret\.bin'"):
        mosrt.load(hostile, provider=provider, cache=cached)
    with (
        pytest.raises(BundleError, match="does not list"),
        Bundle.open(hostile).extracted(Bundle.open(hostile).variant("fp32")),
    ):
        pass
    with pytest.raises(BundleError, match="does not list"):
        Bundle.open(hostile).verify()


def test_own_weights_beside_the_graph(
    tiny: Path, tmp_path: Path, speech: npt.NDArray[np.float32]
) -> None:
    bundle = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    path = bundle / "model.fold0.fp32.onnx"
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="w.data", size_threshold=256)
    manifest = (bundle / "manifest.json").read_text()
    entry = '"weights": {"path": "w.data", "sha256": "' + "0" * 64 + '", "bytes": 1}'
    assert manifest.count('"weights": null') >= 2
    (bundle / "manifest.json").write_text(manifest.replace('"weights": null', entry, 1))
    with mosrt.load(resealed(bundle)) as changed, mosrt.load(tiny) as plain:
        assert changed.score(speech, 16_000).mos == plain.score(speech, 16_000).mos
    Bundle.open(bundle).verify()
