"""Domains that mosrt computes from the outputs of graphs, put into the graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt_export.cli.export import export
from mosrt_export.graphs.heads import fold_graph
from tests.conftest import DATA
from tests.standins.heads import with_heads

CLIPS = sorted(DATA.glob("*_16k_mono.wav"))[:2]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(export, [*map(str, arguments)])


@pytest.fixture(scope="module", params=["nano", "tiny"])
def folded(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A bundle with heads, and its folded copy; "tiny" is an ensemble of two networks."""
    folder = tmp_path_factory.mktemp("folded")
    source = tiny if request.param == "tiny" else find_bundle("nano")
    adapted = with_heads(source, folder / "adapted")
    result = run("folded", adapted, "-o", folder / "folded", "--parity-audio", CLIPS[0])
    assert result.exit_code == 0, result.output
    return adapted, folder / "folded"


def test_a_folded_bundle_scores_alike_in_every_variant(folded: tuple[Path, Path]) -> None:
    """Domains that the graphs had are bit-identical, those that mosrt computed are within 1e-5."""
    before, after = (Bundle.open(path) for path in folded)
    after.verify()
    assert after.manifest.heads == {}
    assert after.manifest.domains == before.manifest.all_domains
    assert after.manifest.default_domain == "sum"
    assert after.manifest.provenance["folded_heads"]["curve"]["kind"] == "monotone"
    for variant in ("fp32", "copy"):
        scores = []
        for path in folded:
            with mosrt.load(path, variant=variant, threads=1) as scorer:
                scores.append([scorer.score_file(clip) for clip in CLIPS])
        for old, new in zip(*scores, strict=True):
            assert list(new.domains) == list(old.domains)
            for name in before.manifest.domains:
                assert new.domains[name] == old.domains[name]
            # The steep step of the curve turns a float32's rounding into 19 000 times as much.
            for name in ("line", "sum", "point", "low"):
                assert new.domains[name] == pytest.approx(old.domains[name], abs=1e-5)
            assert new.views == pytest.approx(old.views, abs=1e-5)


def test_a_folded_head_is_the_head(tmp_path: Path) -> None:
    """On values all over the scale, the steep step included, and for any number of views."""
    bundle = Bundle.open(with_heads(find_bundle("nano"), tmp_path / "adapted"))
    features = {each.name: int(each.shape[1]) for each in bundle.manifest.outputs[1:]}
    sizes = {"mos": len(bundle.manifest.domains), **features}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [f"in/{name}"], [name]) for name in sizes],
        "outputs",
        *[
            [
                onnx.helper.make_tensor_value_info(f"{prefix}{name}", 1, ["batch", size])
                for name, size in sizes.items()
            ]
            for prefix in ("in/", "")
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    folder = tmp_path / "identity"
    folder.mkdir()
    (path,) = {each.graph.path for each in bundle.variant("fp32").members}
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / path)
    model = onnx.load(folder / path)
    fold_graph(model.graph, "mos", bundle.manifest.heads)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(1)
    outputs = {
        name: rng.uniform(0, 5, (200, size)).astype(np.float32) for name, size in sizes.items()
    }
    found = session.run(["mos"], {f"in/{name}": values for name, values in outputs.items()})[0]
    for column, (name, one) in enumerate(bundle.manifest.heads.items(), sizes["mos"]):
        error = np.abs(found[:, column] - one(outputs))
        assert error.max() <= (0.01 if name == "curve" else 1e-5), name
        assert np.median(error) <= 1e-6
    alone = [
        session.run(["mos"], {f"in/{name}": values[[i]] for name, values in outputs.items()})[0]
        for i in range(200)
    ]
    assert np.array_equal(np.concatenate(alone), found)


def test_what_cannot_be_folded(tmp_path: Path) -> None:
    result = run("folded", find_bundle("nano"), "-o", tmp_path / "out")
    assert (result.exit_code, "all of its domains already" in result.output) == (3, True)
    adapted = with_heads(find_bundle("nano"), tmp_path / "adapted")
    engine = tmp_path / "some.engine"
    engine.write_bytes(b"")
    result = run("triton", adapted, "--engine", engine, "-o", tmp_path / "out")
    assert (result.exit_code, "mosrt export folded" in result.output) == (3, True)
    assert not (tmp_path / "out").exists()
