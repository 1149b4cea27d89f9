"""The README's figures of GPUs; where there is no run of one, that is what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .gpu.rows import titles
from .gpu.targets import NOT_MEASURED, TARGETS

__all__ = ["gpu_section"]

_HEADER = (
    "| contestant | p50 | p95 | times as fast | clips/s | batch | times as many | device memory "
    "| drift, MOS |",
    "|---|---|---|---|---|---|---|---|---|",
)
_UNMEASURED = "unmeasured"


def gpu_section(results: Path) -> list[str]:
    """Lines of Markdown of the run `gpu` in `results`, or of what is unmeasured without it.

    A quick run, and one on a CPU, is no run of a GPU.
    """
    path = results / "gpu.json"
    run: dict[str, Any] | None = None
    if path.exists():
        run = json.loads(path.read_text(encoding="utf-8"))
    if run is None or run["quick"] or run["device"] != "cuda" or not run["gpu"]:
        return [
            "GPUs: no run of all rows is at hand, so all of this is unmeasured.",
            "",
            *_HEADER,
            *(f"| {title} |{f' {_UNMEASURED} |' * 2}{' |' * 6}" for title in titles()),
            "",
            *_targets(
                [
                    {
                        "target": target.title,
                        "limit": target.limit,
                        "at_most": target.at_most,
                        "status": NOT_MEASURED,
                        "best": None,
                    }
                    for target in TARGETS
                ]
            ),
            "",
        ]
    return [
        f"GPU: one view of a 4 s clip in memory, front end included, {run['weights']} weights "
        f"({run['gpu']}; {run['machine']['cpu']}, {run['machine']['usable_cores']} cores); times "
        f"as fast as {run['baseline']}.",
        "",
        *_HEADER,
        *(
            _line(name, found, is_baseline=name == run["baseline"])
            for name, found in run["rows"].items()
        ),
        "",
        *(
            f"{found['status'].capitalize()}: {name} ({found['reason']})."
            for name, found in run["rows"].items()
            if found["reason"]
        ),
        *_targets(run["targets"]),
        "",
    ]


def _line(name: str, found: dict[str, Any], *, is_baseline: bool) -> str:
    if found["status"] not in ("measured", "failed"):
        return f"| {name} |{f' {_UNMEASURED} |' * 2}{' |' * 6}"
    quantiles, rate = found["latency"]["quantiles"], found["throughput"]
    memory = found.get("peak_device_mb")
    drift = max(
        (parity["max_abs_mos"] for parity in (found["parity"], rate["parity"])),
        key=lambda value: float("inf") if value is None else value,
    )
    cells = [
        name,
        f"{quantiles['p50']['ms']:.1f} ms",
        f"{quantiles['p95']['ms']:.1f} ms",
        _ratio(found["latency"].get("times_as_fast"), is_baseline=is_baseline),
        f"{rate['clips_per_s']:.0f}",
        str(rate["best_batch"]),
        _ratio(rate.get("times_as_fast"), is_baseline=is_baseline),
        _UNMEASURED if memory is None else f"{memory:.0f} MB",
        ("not finite" if drift is None else f"{drift:.1e}")
        + ("" if found["status"] == "measured" else " (**failed**)"),
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(figure: dict[str, Any] | None, *, is_baseline: bool) -> str:
    if figure is None:
        return "1" if is_baseline else _UNMEASURED
    low, high = figure["interval_95"]
    return f"**{figure['ratio']:.2f}** ({low:.2f} to {high:.2f})"


def _targets(targets: list[dict[str, Any]]) -> list[str]:
    said = [
        f"{target['target']} {'at most' if target['at_most'] else 'at least'} "
        f"{target['limit']:g}: {target['status']}"
        + ("" if target["best"] is None else f" ({target['best']:.3g})")
        for target in targets
    ]
    return [f"Targets on an H200, best row: {'; '.join(said)}."]
