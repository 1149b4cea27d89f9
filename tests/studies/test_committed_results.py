"""The committed intervals follow from the committed measurements: the resamples are still those."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mosrt_studies.accuracy.listening import System, agreement, by_test
from mosrt_studies.accuracy.order import mean, verdicts
from mosrt_studies.publish import json_ready

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def runs_of(part: str) -> list[dict[str, Any]]:
    """The committed runs that have a part of the study of accuracy."""
    runs = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("accuracy*"))]
    found = [run for run in runs if part in run]
    assert found, part
    return found


@pytest.mark.parametrize("run", runs_of("order"))
def test_order(run: dict[str, Any]) -> None:
    order = run["order"]
    for name, by_reader in order["scores"].items():
        scores = {reader: np.array(values) for reader, values in by_reader.items()}
        for pair, found in verdicts(scores).items():
            wanted = order["order"][name][pair]
            # scores were rounded to 4 digits
            assert found["interval_95"] == pytest.approx(wanted["interval_95"], abs=3e-4)
        for reader, values in scores.items():
            wanted = order["means"][name][reader]["interval_95"]
            assert mean(values)["interval_95"] == pytest.approx(wanted, abs=3e-4)


@pytest.mark.parametrize("run", runs_of("listening"))
def test_listening(run: dict[str, Any]) -> None:
    name = run["defaults"][0]
    for tests, listening in run["listening"].items():
        assert run["looks"][tests] >= 1
        systems = [System(s["test"], s["system"], s["mos"], ()) for s in listening["systems"]]
        found = json_ready(agreement(by_test(systems, listening["scores"][name])))
        del found["tests"]
        for key, value in found.items():  # of scores that were rounded to 4 digits
            assert value == pytest.approx(listening["agreement"][name][key], abs=3e-4), key
