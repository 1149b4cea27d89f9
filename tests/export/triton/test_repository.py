"""Model repositories for Triton, held to Triton's own schema and to the graphs that they serve."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import TensorSpec
from mosrt_export.errors import TritonError
from mosrt_export.triton import repository
from mosrt_export.triton.config import Network, Serving, network_config, to_text
from mosrt_export.triton.plan import plan_repository
from mosrt_export.triton.repository import guide
from tests.standins.segments import with_segments, write_segments_bundle
from tests.standins.variants import with_variants

pytest.importorskip("tritonclient.grpc", reason="needs Triton's schema: tritonclient[grpc]")
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tests.fakes.triton_server import DTYPES, Repository, graph_of, made, read_config, run

ELEMENTS = {
    model_config_pb2.TYPE_FP32: TensorProto.FLOAT,
    model_config_pb2.TYPE_INT64: TensorProto.INT64,
}


@pytest.fixture(scope="module", params=["nano", "nano-uncertainty", "tiny"])
def served(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    """A MOS model, one that scores by its uncertainty, and an ensemble of two networks."""
    model = tiny if request.param == "tiny" else request.param
    return made(tmp_path_factory.mktemp("served") / "repository", model, "--cpu")


def test_every_configuration_is_what_triton_knows(served: Repository) -> None:
    """Reading them with the schema refuses unknown fields; here, what the schema cannot."""
    for name, config in served.configs.items():
        assert config.name == name
        version = served.path / name / "1"
        if config.HasField("ensemble_scheduling"):
            assert config.platform == "ensemble"
            assert not config.instance_group
            assert not list(version.iterdir())
        else:
            assert config.backend == "onnxruntime"
            (group,) = config.instance_group
            assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
            assert (version / "model.onnx").is_file()


def test_tensors_are_those_of_the_graphs(served: Repository) -> None:
    for name, config in served.configs.items():
        if config.HasField("ensemble_scheduling"):
            continue
        graph = graph_of(served, name)
        inside = {tensor.name for tensor in graph.initializer}
        for described, present in (
            (config.input, [tensor for tensor in graph.input if tensor.name not in inside]),
            (config.output, graph.output),
        ):
            assert [each.name for each in described] == [each.name for each in present]
            for each, own in zip(described, present, strict=True):
                assert own.type.tensor_type.elem_type == ELEMENTS[each.data_type]
                sizes = [
                    -1 if size.dim_param else size.dim_value
                    for size in own.type.tensor_type.shape.dim
                ]
                if config.max_batch_size:
                    assert sizes.pop(0) == -1
                    assert list(each.dims) == sizes
                else:
                    # One recording, where the graph would take several.
                    assert list(each.dims) == [1, *sizes[1:]]


def test_warm_up_runs(served: Repository) -> None:
    """With the stand-in's own checks of types, shapes and batch."""
    for name, config in served.configs.items():
        if config.HasField("ensemble_scheduling"):
            assert not config.model_warmup
            continue
        batches = [sample.batch_size for sample in config.model_warmup]
        assert batches == ([1, 8] if config.max_batch_size else [1])
        sample = config.model_warmup[0]
        feeds = {}
        for tensor, value in sample.inputs.items():
            assert value.zero_data
            shape = [1, *value.dims] if config.max_batch_size else list(value.dims)
            feeds[tensor] = np.zeros(shape, DTYPES[value.data_type])
        outputs = [tensor.name for tensor in config.output]
        found = served.infer(name, feeds, outputs)
        assert all(np.isfinite(values).all() for values in found.values())


def test_ensembles_join_tensors_of_one_kind(served: Repository) -> None:
    """As Triton checks: every input mapped, types and shapes alike, no batch over a step's."""
    for config in served.configs.values():
        if not config.HasField("ensemble_scheduling"):
            continue
        kinds: dict[str, Any] = {
            tensor.name: (tensor.data_type, list(tensor.dims))
            for tensor in (*config.input, *config.output)
        }
        for step in config.ensemble_scheduling.step:
            model = served.configs[step.model_name]
            assert model.max_batch_size == config.max_batch_size
            assert set(step.input_map) == {tensor.name for tensor in model.input}
            for tensors, names in ((model.input, step.input_map), (model.output, step.output_map)):
                for tensor in tensors:
                    if tensor.name in names:
                        kind = (tensor.data_type, list(tensor.dims))
                        assert kinds.setdefault(names[tensor.name], kind) == kind


def test_requests_are_joined_where_views_are_alike(tmp_path: Path) -> None:
    views = made(tmp_path / "a", "nano", "--instances", "3", "--max-batch", "5").configs["nano"]
    assert views.max_batch_size == 5
    assert views.dynamic_batching.max_queue_delay_microseconds > 0
    assert views.instance_group[0].count == 3
    assert views.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    single = made(tmp_path / "b", "nano", "--max-batch", "1").configs["nano"]
    assert not single.HasField("dynamic_batching")
    for config in made(tmp_path / "c", "nano-uncertainty").configs.values():
        assert config.max_batch_size == 0
        assert not config.HasField("dynamic_batching")


def test_a_variant_whose_views_need_to_be_alone(tiny: Path, tmp_path: Path) -> None:
    bundle = with_variants(tiny, tmp_path / "bundle", "int8-cpu")
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["variants"]["int8-cpu"]["fixed_batch"] = 1
    path.write_text(json.dumps(manifest))
    for name, config in made(tmp_path / "repository", bundle, "--cpu").configs.items():
        assert config.max_batch_size == 1, name
        assert not config.HasField("dynamic_batching")
    result = run(bundle, "--cpu", "--max-batch", "2", "--output", tmp_path / "other")
    assert result.exit_code == 3
    assert "--max-batch 2 is over 1" in result.output


def test_a_graph_that_takes_audio(tmp_path: Path) -> None:
    """Shapes come from the manifest, and the guide says what computes the images."""
    bundle = Bundle.open(find_bundle("nano"))
    crops = TensorSpec(name="images", dtype="float32", shape=("batch", 1, 80_000))
    manifest = dataclasses.replace(bundle.manifest, inputs=(crops,), front_end="graph")
    serving = Serving()
    plan = plan_repository(
        manifest, bundle.variant("fp32"), serving=serving, engines={}, max_batch=None
    )
    path = tmp_path / "config.pbtxt"
    path.write_text(to_text(plan.configs["nano"]))
    config = read_config(path)
    assert list(config.input[0].dims) == [1, 80_000]
    assert list(config.model_warmup[0].inputs["images"].dims) == [1, 80_000]
    text = guide(manifest, "fp32", plan, serving, None)
    assert "images: 1 crop of 80000 samples, unscaled" in text
    assert "Hann" not in text
    assert "Hann" in guide(bundle.manifest, "fp32", plan, serving, None)


def test_types_that_are_not_served() -> None:
    tensor = TensorSpec(name="x", dtype="uint8", shape=("batch", 3))
    network = Network(
        name="n", backend="onnxruntime", inputs=(tensor,), outputs=(), max_batch=1, usual={}
    )
    with pytest.raises(TritonError, match="'x' has dtype uint8"):
        network_config(network, Serving())
    unbatched = dataclasses.replace(tensor, dtype="float32", shape=("frames", 3))
    with pytest.raises(TritonError, match="does not start with the batch"):
        network_config(dataclasses.replace(network, inputs=(unbatched,)), Serving())


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    """Surrogates are left out: they are no text that UTF-8 could hold."""
    config = text_format.Parse(to_text({"name": text}), model_config_pb2.ModelConfig())
    assert config.name == text


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(text_format.ParseError, match="max_batch"):
        text_format.Parse(to_text({"max_batch": 1}), model_config_pb2.ModelConfig())


def test_the_folder_holds_what_it_needs(served: Repository) -> None:
    names = {path.name for path in served.path.iterdir()}
    files = {"README.md", "client.py", "model-card.md", "mosrt-model.json"}
    assert names == files | set(served.configs)
    guide_text = (served.path / "README.md").read_text()
    assert "tritonserver --model-repository" in guide_text
    for name in served.configs:
        assert f"| {name} " in guide_text or f"| {name} (ensemble)" in guide_text
    everything = guide_text + (served.path / "mosrt-model.json").read_text()
    assert str(served.path) not in everything
    assert str(Path(mosrt.__file__).parent) not in everything


def test_the_readme_tells_clients_of_range_and_deviation(tmp_path: Path) -> None:
    served = made(tmp_path / "repository", write_segments_bundle(tmp_path / "bundle"), "--cpu")
    text = " ".join((served.path / "README.md").read_text().split())
    assert "The score of each view is limited to 1 to 5 first." in text
    assert "deviations of the MOS, for noise (times 1.5), overall (times 2)." in text
    assert "mos_deviation FP32 (batch, 2)" in text


def test_the_readme_tells_clients_how_to_cut_segments(tiny: Path, tmp_path: Path) -> None:
    served = made(tmp_path / "repository", with_segments(tiny, tmp_path / "segments"), "--cpu")
    text = " ".join((served.path / "README.md").read_text().split())
    assert "segments of 48000 samples that start at most 16000 samples apart" in text
    assert "Zeros follow a recording that is shorter" in text
    assert "repeated" not in text
    assert "one per" not in text


@pytest.mark.parametrize("blocked", [("torch", "onnx"), ("torch", "google.protobuf")])
def test_it_needs_no_torch(blocked: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from mosrt_export.cli.export import export\n"
        f"export(['triton', 'nano', '--output', {str(tmp_path / 'out')!r}])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "models nano" in found.stdout


def test_from_a_zip(tiny: Path, tmp_path: Path) -> None:
    path = shutil.make_archive(str(tmp_path / "bundle"), "zip", tiny)
    repository = made(tmp_path / "repository", path, "--cpu")
    for name in ("tiny_fold0", "tiny_fold1", "tiny_mean"):
        graph_of(repository, name)


def test_a_repository_and_nothing_else_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = made(out, "nano")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = run("nano", "--output", out)
    assert result.exit_code == 3
    assert "exists already" in result.output
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    second = made(out, "nano-uncertainty", "--force")
    assert set(second.configs).isdisjoint(first.configs)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # A bundle is no repository, nor the other way round.
    bundle = tmp_path / "bundle"
    shutil.copytree(find_bundle("nano"), bundle)
    result = run("nano", "--output", bundle, "--force")
    assert result.exit_code == 3
    assert "is not a model repository of mosrt" in result.output
    Bundle.open(bundle).verify()
    assert not (out / "manifest.json").exists()


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def fail(*_: object) -> str:
        raise TritonError("the disk is full")

    monkeypatch.setattr(repository, "guide", fail)
    assert run("nano", "--output", out).exit_code == 3
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    made(out, "nano")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(repository, "guide", fail)
    result = run("nano-uncertainty", "--output", out, "--force")
    assert result.exit_code == 3
    assert "the disk is full" in result.output
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["nowhere"], 3, "no such bundle"),
        (["nano", "--variant", "fp8"], 3, "no variant 'fp8'; it has: fp32"),
        (["nano-uncertainty", "--max-batch", "4"], 3, "leave --max-batch out"),
        (["nano", "--cpu", "--engine", "a.engine"], 2, "TensorRT engines run on GPUs"),
        (["nano", "--instances", "0"], 2, "--instances"),
        (["nano", "--engine", "a.engine"], 3, "that `mosrt build` prints"),
    ],
)
def test_options_that_do_not_fit(options: list[str], code: int, words: str, tmp_path: Path) -> None:
    result = run(*options, "--output", tmp_path / "out")
    assert result.exit_code == code
    assert words in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("variant", "options", "words"),
    [
        ("int8-cpu", [], "use --cpu, or choose another variant"),
        ("int8-trt", [], "use --engine, or choose another variant"),
        ("int8-trt", ["--cpu"], "use --engine, or choose another variant"),
    ],
)
def test_variants_that_are_made_for_something_else(
    variant: str, options: list[str], words: str, tiny: Path, tmp_path: Path
) -> None:
    """The graph with unsigned values does not go to a GPU, whoever asks."""
    bundle = with_variants(tiny, tmp_path / "bundle", "fp32", "int8-cpu", "int8-trt")
    result = run(bundle, "--variant", variant, *options, "--output", tmp_path / "out")
    assert result.exit_code == 3
    assert f"variant {variant!r} cannot be served like this; {words}" in result.output
    assert "fp32, int8-cpu, int8-trt" in result.output


def test_a_damaged_file_is_not_served(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(find_bundle("nano"), bundle)
    weights = bundle / "model.fp32.onnx.data"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    result = run(bundle, "--output", tmp_path / "out")
    assert result.exit_code == 3
    assert "model.fp32.onnx.data: SHA-256 is" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../nano", "a b", "", ".nano", "nano/x"])
def test_names_that_are_no_folders(name: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(find_bundle("nano"), bundle)
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": name}))
    result = run(bundle, "--output", tmp_path / "out")
    assert result.exit_code == 3
    assert "cannot be the name of a folder" in result.output
