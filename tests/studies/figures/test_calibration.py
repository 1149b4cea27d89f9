import json
from pathlib import Path
from typing import Any

from mosrt_studies.figures.calibration import calibration_section


def _drift(mean: float) -> dict[str, float]:
    return {"mos_mean_abs": mean, "mos_max_abs": 2 * mean, "srcc": 1 - mean}


def test_the_curve_and_the_worst_blocks(tmp_path: Path) -> None:
    assert calibration_section(tmp_path) == []
    trade_off = [
        {"left_float": names, "share_of_work": share, "drift": _drift(mean), "bytes": 25}
        for names, share, mean in (
            ([], 0, 0.2),
            (["a", "b.1", "b.2"], 0.12, 0.06),
            (["a", "b"], 0.3, 0.04),
        )
    ]
    run: dict[str, Any] = {
        "machine": {"cpu": "one", "usable_cores": 2},
        "budget": {"max_drift": 0.05, "min_srcc": 0.9},
        "evaluation_clips": [{}] * 24,
        "fp32_bytes": 100,
        "variants": {
            "int8-cpu": {
                "sensitivity": [
                    {"block": "a", "drift": _drift(0.1), "share_of_work": 0.04},
                    {"block": "b", "drift": _drift(0.1), "share_of_work": 0.26},
                ],
                "trade_off": trade_off,
                "left_float": ["a", "b"],
            }
        },
    }
    (tmp_path / "calibration_utmosv2.json").write_text(json.dumps(run))
    text = "\n".join(calibration_section(tmp_path))
    assert "| 0 | 0% | 0.200 MOS | 0.400 | 0.800 | 0.250 |" in text
    assert "| 1 and 2 parts | 12% | 0.060 MOS |" in text
    assert "| **2** (taken) | 30% | 0.040 MOS | 0.080 | 0.960 | 0.250 |" in text
    assert "24 clips, one view; budget 0.05 MOS and rank correlation 0.9 (one, 2 cores)" in text
    assert "the worst: `a` 0.100, `b` 0.100." in text
    assert "int8-trt" not in text

    run["variants"] = {"int8-trt": run["variants"]["int8-cpu"]}
    (tmp_path / "calibration_utmosv2_trt.json").write_text(json.dumps(run))
    other = "\n".join(calibration_section(tmp_path)).removeprefix(text)
    assert other.strip() == text.replace("int8-cpu", "int8-trt").strip()
