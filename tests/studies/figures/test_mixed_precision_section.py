from typing import Any

from mosrt_studies.figures.render import section


def _drift(mean: float) -> dict[str, float]:
    return {"mos_mean_abs": mean, "mos_max_abs": 2 * mean, "srcc": 1 - mean}


def test_the_curve_and_the_worst_blocks() -> None:
    trade_off = [
        {"left_float": names, "share_of_work": share, "drift": _drift(mean), "bytes": 25}
        for names, share, mean in (
            ([], 0, 0.2),
            (["a", "b.1", "b.2"], 0.12, 0.06),
            (["a", "b"], 0.3, 0.04),
        )
    ]
    run: dict[str, Any] = {
        "budget": {"max_drift": 0.05, "min_srcc": 0.9},
        "evaluation_clips": [{}] * 24,
        "fp32_bytes": 100,
        "variants": {
            "fp16": {},  # nothing to choose
            "int8-cpu": {
                "sensitivity": [
                    {"block": "a", "drift": _drift(0.1), "share_of_work": 0.04},
                    {"block": "b", "drift": _drift(0.1), "share_of_work": 0.26},
                ],
                "trade_off": trade_off,
                "left_float": ["a", "b"],
            },
        },
    }
    text = section("mixed_precision", run)
    assert "| 0 | 0% | 0.200 MOS | 0.400 | 0.800 | 0.250 |" in text
    assert "| 1 and 2 parts | 12% | 0.060 MOS |" in text
    assert "| **2** (chosen) | 30% | 0.040 MOS | 0.080 | 0.960 | 0.250 |" in text
    assert "24 clips, one view" in text
    assert ": `a` 0.100, `b` 0.100." in text
