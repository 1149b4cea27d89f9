"""The run as the terminal shows it."""

from __future__ import annotations

from typing import Any

from mosrt_bench.output import table

__all__ = ["terminal"]


def terminal(run: dict[str, Any]) -> str:
    """A table of all rows, and the targets."""
    header = ["", "p50 ms", "p95 ms", "faster", "clips/s", "batch", "drift", "status"]
    lines = [[name, *_cells(found)] for name, found in run["rows"].items()]
    reasons = [
        f"{name}: {found['reason']}" for name, found in run["rows"].items() if found["reason"]
    ]
    targets = [
        f"target: {target['target']}: {'at most' if target['at_most'] else 'at least'} "
        f"{target['limit']:g}: {target['status']}"
        + ("" if target["best"] is None else f" ({target['best']:.3g}, {target['row']})")
        for target in run["targets"]
    ]
    return "\n".join([table(header, lines), *reasons, *targets])


def _cells(found: dict[str, Any]) -> list[str]:
    cells = ["-"] * 6
    if "latency" in found:
        quantiles = found["latency"]["quantiles"]
        cells[0] = f"{quantiles['p50']['ms']:.1f}"
        cells[1] = f"{quantiles['p95']['ms']:.1f}"
        if "times_as_fast" in found["latency"]:
            cells[2] = f"{found['latency']['times_as_fast']['ratio']:.2f}"
    if "throughput" in found:
        cells[3] = f"{found['throughput']['clips_per_s']:.1f}"
        cells[4] = str(found["throughput"]["best_batch"])
    if "parity" in found:
        largest = found["parity"]["max_abs_mos"]
        cells[5] = "nan" if largest is None else f"{largest:.2g}"
    return [*cells, found["status"]]
