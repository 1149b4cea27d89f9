"""The README's figures of the variants: speed, start, memory and size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["variants_section"]


def variants_section(results: Path) -> list[str]:
    """Lines of Markdown of the run `variants` in `results`; none without it."""
    path = results / "variants.json"
    if not path.exists():
        return []
    run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    machine = run["machine"]
    peaks = ", ".join(f"{peak:.0f} in {kind}" for kind, peak in run["peaks_gflops"].items())
    lines = [
        f"Variants: one view of a 4 s clip in memory, {run['clips']} clips, {run['threads']} "
        f"threads, {run['weights']} weights ({machine['cpu']}, {machine['usable_cores']} cores).",
        "",
        f"| variant, provider | p50 | p95 | p99 | times as fast | clips/s, {run['workers']} "
        "workers | cold start | peak memory | of the floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = run["rows"]
    reference_mb = rows[run["reference"]]["peak_mb"]
    for name, row in rows.items():
        faster, share = "1", ""
        if row["faster"] is not None:
            low, high = row["faster"]["interval_95"]
            faster = f"**{row['faster']['ratio']:.2f}** ({low:.2f} to {high:.2f})"
            share = f" ({row['peak_mb'] / reference_mb:.2f})"
        lines.append(
            f"| {name} | {row['p50_ms']:.0f} ms | {row['p95_ms']:.0f} ms | {row['p99_ms']:.0f} ms "
            f"| {faster} | {row['clips_per_s']:.2f} | {row['cold_start_s']:.2f} s "
            f"| {row['peak_mb']:.0f} MB{share} | {row['floors']:.1f} |"
        )
    return [
        *lines,
        "",
        f"The floor is {run['gflop']:g} GFLOP at this machine's peak in large matrix products, "
        f"GFLOP/s: {peaks}; the last column is how many times that long p50 is.",
        *(f"Left out: {name} ({reason})." for name, reason in run["left_out"].items()),
        f"Files: {_sizes(run['variant_bytes'])}.",
        "",
    ]


def _sizes(n_bytes: dict[str, int]) -> str:
    whole = n_bytes.get("fp32")
    return ", ".join(
        f"{name} {size / 1e6:.1f} MB" + (f" ({size / whole:.2f})" if whole else "")
        for name, size in n_bytes.items()
    )
