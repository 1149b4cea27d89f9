"""Shapes that engines are built for."""

import pytest

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import TensorSpec
from mosrt_export.errors import EngineError
from mosrt_export.trt.shapes import profile_of, size_ranges


def test_shapes_of_uncertainty_models() -> None:
    manifest = Bundle.open(find_bundle("nano-uncertainty")).manifest
    ranges = size_ranges(manifest)
    # A frame per 160 samples of at least 465; 945 are the fewest and 20 s the most in one chunk.
    assert ranges["samples"] == (945, 80_000, 320_000)
    assert ranges["frames"] == (4, 498, 1_998)
    assert size_ranges(manifest, max_seconds=2.0)["samples"] == (945, 32_000, 32_000)
    assert size_ranges(manifest, max_seconds=100.0) == ranges
    profile = profile_of(manifest.inputs, ranges)
    assert profile["negatives"] == ((1, 10, 4), (1, 10, 498), (1, 10, 1_998))
    with pytest.raises(EngineError, match="raise --max-seconds"):
        size_ranges(manifest, max_seconds=0.05)
    with pytest.raises(EngineError, match="one recording at a time"):
        size_ranges(manifest, batch=(1, 1, 1))
    strange = TensorSpec(name="x", dtype="float32", shape=("batch", "rows"))
    with pytest.raises(EngineError, match="'x' has a dimension 'rows'"):
        profile_of([strange], ranges)


def test_shapes_of_mos_models() -> None:
    manifest = Bundle.open(find_bundle("nano")).manifest
    assert size_ranges(manifest)["batch"] == (1, 4, 4)
    with pytest.raises(EngineError, match="views of one length"):
        size_ranges(manifest, max_seconds=3.0)
    with pytest.raises(EngineError, match="do not ascend"):
        size_ranges(manifest, batch=(2, 1, 4))
