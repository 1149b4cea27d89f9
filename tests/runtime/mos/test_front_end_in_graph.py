"""Bundles whose graphs take audio: what the runtime feeds them, and refuses."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import mosrt
from mosrt import BundleError, CropPlan, PlanError
from mosrt.audio.recording import Recording
from mosrt.audio.sources import ArraySource
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.manifest import Manifest
from mosrt.mos.scorer import FusionFrontEnd


@pytest.fixture
def facts(tiny: Path) -> dict[str, Any]:
    """A manifest of a model of both branches that takes audio."""
    facts: dict[str, Any] = json.loads((tiny / "manifest.json").read_text())
    facts["front_end"] = "graph"
    facts["mel"]["tensor"] = "crops"
    facts["inputs"][1] = {"name": "crops", "dtype": "float32", "shape": ["batch", 2, 22_400]}
    return facts


def test_crops_are_fed_as_they_are(facts: dict[str, Any], speech: npt.NDArray[np.float32]) -> None:
    front_end = FusionFrontEnd(Manifest.from_dict(facts))
    recording = Recording(ArraySource(speech, 16_000), 16_000)
    plan = CropPlan(np.array([7, 48_000]), np.array([[0, 100], [73_600, 100]]))
    views = list(front_end.views(recording, plan))
    assert len(views) == 2
    for view, start, starts in zip(views, plan.ssl_starts, plan.spec_starts, strict=True):
        assert set(view) == {"waveform", "crops"}
        np.testing.assert_array_equal(view["waveform"], speech[start : start + 48_000])
        wanted = np.stack([speech[first : first + 22_400] for first in starts])
        np.testing.assert_array_equal(view["crops"], wanted)
        assert view["crops"].dtype == np.float32


def test_images_that_the_graph_makes_cannot_be_mixed(facts: dict[str, Any]) -> None:
    geometry = FusionFrontEnd(Manifest.from_dict(facts)).geometry
    plan = CropPlan.reference(96_000, 0, geometry=geometry)
    with pytest.raises(PlanError, match="mixes images.*plan grid"):
        plan.check(96_000, geometry)
    plan.check(96_000, dataclasses.replace(geometry, can_mix=True))
    CropPlan.grid(96_000, geometry=geometry).check(96_000, geometry)


def test_the_manifest_round_trips(facts: dict[str, Any], tiny: Path) -> None:
    manifest = Manifest.from_dict(facts)
    assert manifest.front_end == "graph"
    assert manifest.to_dict()["front_end"] == "graph"
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    before = Bundle.open(tiny).manifest
    assert before.front_end == "numpy"
    assert "front_end" not in before.to_dict()


def test_a_manifest_that_contradicts_itself(facts: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="'quantum' is unknown.*numpy, graph.*upgrade"):
        Manifest.from_dict({**facts, "front_end": "quantum"})
    with pytest.raises(BundleError, match="contradict the front end"):
        Manifest.from_dict({**facts, "front_end": "numpy"})
    facts["inputs"][1]["shape"] = ["batch", 2, 22_401]
    with pytest.raises(BundleError, match="contradict the front end"):
        Manifest.from_dict(facts)


def test_graphs_that_take_something_else_are_refused(
    facts: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    """Only the manifest says that they take audio."""
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (copy / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(BundleError, match="input 'crops'"):
        mosrt.load(copy, threads=1)
