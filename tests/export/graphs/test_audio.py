"""Bundles whose graphs take audio score as those do that are fed by the NumPy front end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner

import mosrt
from mosrt.backends import OrtBackend
from mosrt.bundle.bundle import Bundle
from mosrt.cli.main import main
from mosrt.scorer import Item
from mosrt_export.graphs.front_end import with_front_end
from tests.conftest import noise
from tests.export.conftest import Exported
from tests.standins.utmosv2 import SMALL

# Rounding through ten layers; what the front end adds is a tenth of that, on speech.
TOLERANCE_MOS = 1e-4

# Every one of them is in the list of operators that TensorRT's parser takes from version 8 on.
FRONT_END_OPERATORS = {
    "Add", "Clip", "Concat", "Div", "Gather", "Log", "MatMul", "Max", "Mul", "Pad", "ReduceMax",
    "ReduceMean", "Reshape", "Slice", "Sqrt", "Sub", "Transpose", "Unsqueeze",
}  # fmt: skip


def scored(scorer: mosrt.Scorer, item: Item, plan: mosrt.PlanRule) -> dict[str, mosrt.Score]:
    """Scores by domain of a file or of a waveform and its rate."""
    return {
        domain: scorer.score_many([item], domain=domain, plan=plan)[0] for domain in scorer.domains
    }


def same_scores(bundle: Path, other: Path | str, items: Sequence[Item], views: int) -> None:
    """Every view, in every domain, within the tolerance; flags and windows too."""
    with mosrt.load(bundle, threads=1) as audio, mosrt.load(other, threads=1) as features:
        assert audio.domains == features.domains
        for item in items:
            plan = mosrt.PlanRule(kind="grid", views=views)
            found, wanted = (scored(scorer, item, plan) for scorer in (audio, features))
            for domain in audio.domains:
                one, two = found[domain], wanted[domain]
                assert (one.flags, one.windows) == (two.flags, two.windows)
                np.testing.assert_allclose(one.views, two.views, atol=TOLERANCE_MOS, rtol=0)
                assert all(map(math.isfinite, one.views))


def test_images_score_the_same(spec_graph: Exported, spec: Exported, clips: list[Path]) -> None:
    """On all sample clips, short ones that are repeated among them."""
    assert spec_graph.result.exit_code == 0, spec_graph.result.output
    same_scores(spec_graph.bundle, spec.bundle, list(clips), views=2)


CROP = SMALL["spectrogram"]["crop_samples"]
EXTREMES = {
    "silence": np.zeros(CROP),
    "constant": np.full(CROP, 0.5),
    "clipped": np.sign(np.sin(np.arange(CROP) / 7)),
    "quiet": 1e-5 * noise(CROP),
    "loud": noise(CROP).clip(-0.05, 0.05) * 19.9,
    "short": noise(600),
}


def test_extremes_score_the_same(spec_graph: Exported, spec: Exported) -> None:
    items = [(wave.astype(np.float32), 16_000) for wave in EXTREMES.values()]
    same_scores(spec_graph.bundle, spec.bundle, items, views=1)


def test_a_batch_of_crops(spec_graph: Exported, speech: npt.NDArray[np.float32]) -> None:
    bundle = Bundle.open(spec_graph.bundle)
    manifest = bundle.manifest
    backend = OrtBackend(
        bundle.path, bundle.variant("fp32"), inputs=manifest.inputs, outputs=manifest.outputs
    )
    views = np.stack([speech[4_000 : 4_000 + CROP], noise(CROP), np.zeros(CROP, np.float32)])
    crops = np.stack([views, views], axis=1)
    try:
        # The score of random weights hardly depends on the clip; the embedding does.
        (name,) = (each.name for each in manifest.outputs if each.name != "mos")
        together = backend.run({"crops": crops}, [name])[name][0]
        alone = [backend.run({"crops": crop[None]}, [name])[name][0, 0] for crop in crops]
    finally:
        backend.close()
    # kernels for another batch size may round otherwise
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.ptp(together, axis=0).max() > 5e-5


def test_both_branches_score_the_same(
    fusion_graph: Exported, fusion: Exported, clips: list[Path]
) -> None:
    """Of UTMOSv2's shape: two crops, resized, and a waveform that the graph normalises."""
    assert fusion_graph.result.exit_code == 0, fusion_graph.result.output
    same_scores(fusion_graph.bundle, fusion.bundle, list(clips[:4]), views=3)


def test_what_the_manifest_says(
    spec_graph: Exported, spec: Exported, fusion_graph: Exported
) -> None:
    manifest = Bundle.open(spec_graph.bundle).manifest
    assert (manifest.front_end, manifest.sample_rate_hz) == ("graph", 16_000)
    (crops,) = manifest.inputs
    assert (crops.name, crops.dtype, crops.shape) == ("crops", "float32", ("batch", 2, CROP))
    assert manifest.mel is not None
    assert (manifest.mel.tensor, manifest.mel.crop_samples) == ("crops", CROP)
    shapes = {t.name: t.shape for t in Bundle.open(fusion_graph.bundle).manifest.inputs}
    assert shapes == {"waveform": ("batch", 3200), "crops": ("batch", 2, 2400)}
    images = Bundle.open(spec.bundle).manifest
    converted = with_front_end(images, "graph")
    assert converted.inputs == manifest.inputs
    assert with_front_end(converted, "numpy") == images
    assert with_front_end(images, "numpy") == images


def test_plain_operators_in_modules_of_their_own(
    spec_graph: Exported, fusion_graph: Exported
) -> None:
    """By their names calibration knows what has to stay float32."""
    for directory in (spec_graph.bundle, fusion_graph.bundle):
        (path,) = directory.glob("*.onnx")
        graph = onnx.load(path, load_external_data=False).graph
        scopes = {node.name: node.name.partition("/")[0].partition(".")[0] for node in graph.node}
        assert set(scopes.values()) <= {"front_end", "network", ""}
        front_end = [node for node in graph.node if scopes[node.name] == "front_end"]
        assert {node.op_type for node in front_end} <= FRONT_END_OPERATORS
        inputs = {value.name for value in graph.input}
        readers = {scopes[node.name] for node in graph.node if inputs & set(node.input)}
        assert readers == {"front_end"}


def test_info_tells_who_makes_the_images(
    spec_graph: Exported, spec: Exported, student: Path
) -> None:
    for model, words in (
        (str(spec_graph.bundle), "in the graph, which takes crops"),
        (str(student), "in the graph, which takes crops"),
        (str(spec.bundle), "in mosrt"),
    ):
        result = CliRunner().invoke(main, ["info", model])
        assert result.exit_code == 0, result.output
        (line,) = (line for line in result.output.splitlines() if line.startswith("front end"))
        assert words in line


def test_mixing_is_refused(fusion_graph: Exported, clips: list[Path]) -> None:
    with (
        mosrt.load(fusion_graph.bundle, threads=1) as scorer,
        pytest.raises(mosrt.PlanError, match="choose plan grid"),
    ):
        scorer.score_file(clips[0], plan="reference:0")
