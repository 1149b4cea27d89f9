"""Engines in model repositories: what is in them does not matter here, only what headers say."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from mosrt.backends.engine_file import EngineFiles, EngineKey, Profile, Target
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import Member
from mosrt_export.trt.shapes import profile_of, size_ranges

pytest.importorskip("tritonclient.grpc", reason="needs Triton's schema: tritonclient[grpc]")

from tests.fakes.triton_server import graph_of, made, run

TARGET = Target(module="tensorrt", version="10.3.0", compute_capability="8.7")


def engine(
    directory: Path, member: Member, profile: Profile, *, target: Target = TARGET
) -> tuple[Path, bytes]:
    content = b"engine of " + member.name.encode()
    key = EngineKey(graph=member.sha256, target=target, profile=profile)
    return EngineFiles(directory).write(key, content, {}), content


def batches(model: str, smallest: int = 1, usual: int = 4, largest: int = 6) -> Profile:
    manifest = Bundle.open(find_bundle(model)).manifest
    return profile_of(manifest.inputs, size_ranges(manifest, batch=(smallest, usual, largest)))


def only(model: str | Path) -> Member:
    (member,) = Bundle.open(find_bundle(model)).variant("fp32").members
    return member


def test_an_engine_is_served_as_it_was_built(tmp_path: Path) -> None:
    path, content = engine(tmp_path / "cache", only("nano"), batches("nano"))
    served = made(tmp_path / "out", "nano", "--engine", path)
    assert (tmp_path / "out" / "nano" / "1" / "model.plan").read_bytes() == content
    assert not list((tmp_path / "out").rglob("*.onnx*"))
    config = served.configs["nano"]
    assert config.backend == "tensorrt"
    assert config.max_batch_size == 6
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert [sample.batch_size for sample in config.model_warmup] == [1, 6]
    assert list(config.input[0].dims) == [2, 120, 501]
    assert str(TARGET) in (tmp_path / "out" / "README.md").read_text()
    fewer = made(tmp_path / "fewer", "nano", "--engine", path, "--max-batch", "3").configs["nano"]
    assert fewer.max_batch_size == 3
    assert list(fewer.dynamic_batching.preferred_batch_size) == [3]
    result = run("nano", "--engine", path, "--max-batch", "7", "--output", tmp_path / "more")
    assert "--max-batch 7 is over 6" in result.output


def test_engines_of_an_ensemble_come_in_any_order(tiny: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny)
    profile = profile_of(bundle.manifest.inputs, size_ranges(bundle.manifest))
    engines = [
        engine(tmp_path / "cache", member, profile) for member in bundle.variant("fp32").members
    ]
    (first, _), (second, _) = engines
    served = made(tmp_path / "out", tiny, "--engine", second, "--engine", first)
    for fold, (_, content) in enumerate(engines):
        name = f"tiny_fold{fold}"
        assert served.configs[name].backend == "tensorrt"
        assert (tmp_path / "out" / name / "1" / "model.plan").read_bytes() == content
    # TensorRT has nothing to do with the mean.
    assert served.configs["tiny_mean"].backend == "onnxruntime"
    graph_of(served, "tiny_mean")


def test_engines_of_stages_start_with_shapes_that_they_take(tmp_path: Path) -> None:
    bundle = Bundle.open(find_bundle("nano-uncertainty"))
    ranges = size_ranges(bundle.manifest, max_seconds=3.0)
    manifest_inputs = {tensor.name: tensor for tensor in bundle.manifest.inputs}
    outputs = {tensor.name: tensor for tensor in bundle.manifest.outputs}
    taken = {
        "encoder": ["waveform"],
        "contrast": ["features", "predictions", "negatives"],
        "dense": ["queries", "features"],
    }
    paths: list[str] = []
    for member in bundle.variant("fp32").members:
        tensors = [{**outputs, **manifest_inputs}[name] for name in taken[member.name]]
        path, _ = engine(tmp_path / "cache", member, profile_of(tensors, ranges))
        paths += ["--engine", str(path)]
    served = made(tmp_path / "out", "nano-uncertainty", *paths)
    warmup = served.configs["nano-uncertainty_encoder"].model_warmup[0]
    assert list(warmup.inputs["waveform"].dims) == [1, 48_000]


def shorten(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-1])
    return path


def rename(path: Path) -> Path:
    return path.rename(path.with_name("nano.engine"))


def plain(path: Path) -> Path:
    path.write_bytes(b"engine of nano")
    return path


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shorten, "bytes; build it again"),
        (rename, "its name does not match"),
        (plain, "not an engine file"),
    ],
)
def test_engines_that_are_damaged(
    damage: Callable[[Path], Path], words: str, tmp_path: Path
) -> None:
    path, _ = engine(tmp_path / "cache", only("nano"), batches("nano"))
    result = run("nano", "--engine", damage(path), "--output", tmp_path / "out")
    assert result.exit_code == 3
    assert words in result.output
    assert not (tmp_path / "out").exists()


def test_engines_that_do_not_belong(tiny: Path, tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    nano, _ = engine(cache, only("nano"), batches("nano"))
    one, two = Bundle.open(tiny).variant("fp32").members
    manifest = Bundle.open(tiny).manifest
    profile = profile_of(manifest.inputs, size_ranges(manifest))
    first, _ = engine(cache, one, profile)
    second, _ = engine(cache, two, profile, target=dataclasses.replace(TARGET, version="10.4.0"))
    rtx, _ = engine(
        cache,
        only("nano"),
        batches("nano"),
        target=dataclasses.replace(TARGET, module="tensorrt_rtx"),
    )
    pairs, _ = engine(cache, only("nano"), batches("nano", smallest=2))
    for model, engines, words in (
        ("nano", [first], "which is not in this variant"),
        (tiny, [first], "no engine of fold1"),
        (tiny, [first, first], "a second engine of fold0"),
        (tiny, [first, second], "different targets"),
        ("nano", [rtx], "was built by tensorrt_rtx"),
        ("nano", [pairs], "needs at least 2 views"),
        ("nano", [nano, cache / "missing.engine"], "No such file"),
    ):
        options = [each for path in engines for each in ("--engine", path)]
        result = run(model, *options, "--output", out)
        assert result.exit_code == 3
        assert words in result.output
        assert not out.exists()
