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


def read(name: str) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return run


def test_order() -> None:
    run = read("order")
    for name, by_reader in run["scores"].items():
        scores = {reader: np.array(values) for reader, values in by_reader.items()}
        for pair, found in verdicts(scores).items():
            wanted = run["order"][name][pair]
            # scores were rounded to 4 digits
            assert found["interval_95"] == pytest.approx(wanted["interval_95"], abs=3e-4)
        for reader, values in scores.items():
            wanted = run["means"][name][reader]["interval_95"]
            assert mean(values)["interval_95"] == pytest.approx(wanted, abs=3e-4)


def test_listening() -> None:
    run = read("listening")
    systems = [System(s["test"], s["system"], s["mos"], ()) for s in run["systems"]]
    name = run["defaults"][0]
    found = agreement(by_test(systems, run["scores"][name]))
    assert json_ready(found) == run["agreement"][name]
