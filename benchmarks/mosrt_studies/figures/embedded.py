"""The README's figures of the embedded models: agreement with listeners, ladders, order, cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["embedded_sections"]

Run = dict[str, Any]


def embedded_sections(results: Path) -> list[str]:
    """Lines of Markdown, a section for each run that is in `results`, and none for the others."""
    lines: list[str] = []
    for name, section in _SECTIONS.items():
        path = results / f"{name}.json"
        if path.exists():
            lines += [*section(json.loads(path.read_text(encoding="utf-8"))), ""]
    return lines


def _listening(run: Run) -> list[str]:
    agreements = run["agreement"]
    first = next(iter(agreements.values()))
    looks = f"{run['looks']} time{'s' if run['looks'] > 1 else ''}"
    lines = [
        f"Real TTS systems: share of pairs in the listeners' order, {len(run['systems'])} systems "
        f"of {len(first['tests'])} listening tests, {first['pairs']} pairs; guessing has 0.50. "
        f"The systems were looked at {looks} while the model was chosen.",
        "",
        "| score | in order | 95 % interval | wide pairs |",
        "|---|---|---|---|",
    ]
    for name, figure in agreements.items():
        low, high = figure["interval_95"]
        wide = figure["concordance_wide"]
        lines.append(
            f"| {_named(name, run)} | {figure['concordance']:.2f} | {low:.2f} to {high:.2f} "
            f"| {'-' if wide is None else f'{wide:.2f}'} |"
        )
    return lines


def _ladder(run: Run) -> list[str]:
    overall = run["overall"]
    kinds = list(next(iter(run["kinds"].values())))
    lines = [
        f"Degradations ({', '.join(kinds)}): rank correlation of severity and score on a clip's "
        "own ladder / share of degraded clips below their clean version.",
        "",
        f"| score | {' | '.join(overall)} |",
        "|---" * (1 + len(overall)) + "|",
    ]
    for name in next(iter(overall.values())):
        cells = (
            f"{figures[name]['srcc']:.2f} / {figures[name]['below_clean']:.2f}"
            for figures in overall.values()
        )
        lines.append(f"| {_named(name, run)} | {' | '.join(cells)} |")
    return lines


def _order(run: Run) -> list[str]:
    readers = list(next(iter(run["means"].values())))
    lines = [
        f"Recordings and synthesisers whose order no listener doubts: means over "
        f"{len(run['sentences'])} sentences, and how many of the comparisons come out right "
        f"({'; '.join(next(iter(run['order'].values())))}).",
        "",
        f"| score | {' | '.join(readers)} | right |",
        "|---" * (2 + len(readers)) + "|",
    ]
    for name, means in run["means"].items():
        cells = " | ".join(f"{means[reader]['mean']:.2f}" for reader in readers)
        verdicts = run["order"][name].values()
        held = sum(verdict["holds"] for verdict in verdicts)
        lines.append(f"| {_named(name, run)} | {cells} | {held} of {len(verdicts)} |")
    return lines


def _embedded(run: Run) -> list[str]:
    timings = dict(run["timings"])
    process = timings.pop(run["process"])
    machine = run["machine"]
    lines = [
        "Cost of a 5 s clip: CPU time on one thread, front end included "
        f"({machine['cpu']}, {machine['usable_cores']} cores).",
        "",
        "| score | median | 95 % interval |",
        "|---|---|---|",
    ]
    for name, times in timings.items():
        low, high = times["interval_95_ms"]
        shown = f"**{name}**" if name == run["model"] else name
        lines.append(f"| {shown} | {times['median_ms']:.1f} ms | {low:.1f} to {high:.1f} ms |")
    return [
        *lines,
        "",
        f"`mosrt score` in a fresh process, {run['files']} files: "
        f"{process['median_ms'] / 1e3:.2f} s on the clock, {run['peak_mb']:.0f} MB at the peak.",
    ]


def _named(name: str, run: Run) -> str:
    return f"**{name}**" if name in run["defaults"] else name


_SECTIONS: Final[Mapping[str, Callable[[Run], list[str]]]] = {
    "listening": _listening,
    "ladder": _ladder,
    "order": _order,
    "embedded": _embedded,
}
