"""What once failed, and a bounded number of new hostile inputs for everything that reads."""

import sys

import pytest

from tests.conftest import HANG_S

from .runner import fuzz
from .targets import TARGETS

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(sys.platform != "linux", reason="needs limits of memory"),
]

# About ten seconds each.
COUNTS = {
    "audio": 10_000,
    "arrays": 2_000,
    "manifests": 20_000,
    "zips": 3_000,
    "graphs": 1_000,
    "caches": 300,
}


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_inputs(target: str) -> None:
    report = fuzz(target, count=COUNTS[target], seconds=HANG_S)
    assert report.findings == []
    assert report.inputs >= COUNTS[target]
