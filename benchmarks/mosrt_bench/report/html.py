"""Render a report as one self-contained HTML page: no network, no library.

The page's content security policy forbids everything but its own script, by hash, and the embedded
clips. All text from the report is escaped, file names included.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

import soundfile

from mosrt.audio.sources import FileSource
from mosrt.errors import AudioError
from mosrt_bench.clips import AudioFile

from .sections import Section, sections, view_study_title
from .svg import Axis, Series, chart

__all__ = ["page"]

Row = Mapping[str, Any]
"""A report, or an object of one."""
Point = tuple[float, float, str]
"""x, y and the tooltip."""

_MAX_CLIP_S: Final = 30.0
_MAX_AUDIO_BYTES: Final = 8_000_000
_MAX_CLIPS: Final = 10
_FLOOR: Final = 1e-8
_SHORT: Final = re.compile(r"[:,].*| of a (clip|fresh).*| on the same.*")


def page(report: Row, clips: Sequence[AudioFile]) -> str:
    """The whole page.

    Args:
        report: The report of a `Bench`, its numbers finite or None.
        clips: The recordings; those with the largest differences are embedded.
    """
    folder = files("mosrt_bench") / "page"
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = string.Template((folder / "page.html").read_text(encoding="utf-8"))
    shown = sections(report)
    charts = {view_study_title(study): _spread(study) for study in report.get("estimator", [])}
    return template.substitute(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; media-src data:; img-src data:; "
        f"script-src 'sha256-{digest}'",
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=script,
        title=html.escape(f"mosrt bench: {', '.join(b['name'] for b in report['bundles'])}"),
        facts=_facts(report),
        verdict=_verdict(report),
        plots="".join(_plots(report)),
        clips=_listening(report, clips),
        contents="".join(
            f'<a href="#{html.escape(s.key)}">{html.escape(_SHORT.sub("", s.title))}</a>'
            for s in {s.key: s for s in shown}.values()
        ),
        sections="".join(_section(each, charts.get(each.title, "")) for each in shown),
        notes=_items(report["notes"]),
    )


def _facts(report: Row) -> str:
    machine = report["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["packages"].items() if v)
    facts = {
        "measured": report["created"],
        "machine": f"{machine['cpu']}, {machine['usable_cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB; {machine['platform']}",
        "load": "load average when measuring began: "
        + ", ".join(f"{value:.1f}" for value in machine["load_average"]),
        "versions": f"Python {machine['python']}, {versions}",
        "bundles": "; ".join(f"{b['name']} {b['sha256'][:16]}…" for b in report["bundles"]),
        "clips": f"{len(report['audio'])}",
        "command": report["command"],
    }
    return "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in facts.items()
    )


def _verdict(report: Row) -> str:
    problems = [
        f"{row['contestant']}: {problem}"
        for row in report["parity"]
        if row["passed"] is False
        for problem in row["problems"]
    ]
    if not problems:
        return '<p class="verdict pass">All configurations that ran are within their tolerance.</p>'
    return f'<div class="verdict fail"><p>Parity failed:</p><ul>{_items(problems)}</ul></div>'


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{html.escape(text)}</li>" for text in texts)


def _section(section: Section, chart_beside: str) -> str:
    head = "".join(
        f'<th scope="col"><button type="button">{html.escape(name)}</button></th>'
        for name in section.header
    )
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        f"{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in section.rows
    )
    notes = f"<ul class=notes>{_items(section.notes)}</ul>" if section.notes else ""
    return (
        f'<section id="{html.escape(section.key)}"><h2>{html.escape(section.title)}</h2>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f"</div>{notes}{chart_beside}</section>"
    )


def _plots(report: Row) -> Iterator[str]:
    def latency(row: Row) -> Point:
        return row["clip_s"], _p50(row), f": {row['clip_s']:g} s in {_p50(row):.1f} ms"

    places = _places(report)
    yield _latency_and_drift(report, places)
    yield chart(
        "Latency by length",
        _lines(report.get("latency", []), places, latency),
        Axis(title="clip, s", log=True),
        Axis(title="p50, ms", log=True),
    )

    def throughput(row: Row) -> Point:
        rate = row["clips_per_s"]
        return row["count"], rate, f", {row['count']}: {rate:.2f} clips per s"

    for kind, counted in (("batch", "batch size"), ("callers", "concurrent callers")):
        rows = [row for row in report.get("throughput", []) if row["kind"] == kind]
        yield chart(
            f"Throughput by {counted}",
            _lines(rows, places, throughput),
            Axis(title=counted, whole=True),
            Axis(title="clips of 5 s per s", zero=True),
        )
    yield from _score_against_score(report, places)


def _p50(row: Row) -> float:
    return float(row["quantiles"]["p50"]["ms"])


def _places(report: Row) -> dict[str, int]:
    """The colour of each configuration, the same in all charts.

    The name without its number of threads has the colour of the first thread count.
    """
    places: dict[str, int] = {}
    for row in (*report.get("latency", []), *report.get("throughput", [])):
        places.setdefault(row["contestant"], len(places))
    for name in (*places, *report["scores"]):
        places.setdefault(_without_threads(name), places.get(name, len(places)))
    return places


def _without_threads(configuration: str) -> str:
    """The name of a configuration without its number of threads."""
    return configuration.rsplit(" x", 1)[0]


def _lines(
    rows: Sequence[Row], places: Mapping[str, int], point_of: Callable[[Row], Point]
) -> list[Series]:
    """A line for each configuration, with a point for each of its rows."""
    by_name: dict[str, list[Point]] = {}
    for row in rows:
        x, y, text = point_of(row)
        by_name.setdefault(row["contestant"], []).append((x, y, f"{row['contestant']}{text}"))
    return [
        Series(name=name, points=points, joined=True, place=places[name])
        for name, points in by_name.items()
    ]


def _latency_and_drift(report: Row, places: Mapping[str, int]) -> str:
    """Median latency of a 5 s clip against mean drift; zero drift is drawn at the bottom."""
    drift = {
        row["contestant"]: row["mae"] / row["scale"]
        for row in report["parity"]
        if row.get("mae") is not None and row["against"] != "torch checkpoint"
    }
    found = []
    for row in report.get("latency", []):
        if row["clip_s"] == 5.0:
            name = row["contestant"]
            mae = drift.get(_without_threads(name), 0.0)
            text = f"{name}: {_p50(row):.1f} ms, drift {mae:.1e}"
            points = [(_p50(row), max(mae, _FLOOR), text)]
            found.append(Series(name=name, points=points, place=places[name]))
    return chart(
        "Latency against drift (1e-8 or less is drawn at the bottom; uncertainty: relative drift)",
        found,
        Axis(title="p50 of 5 s, ms", zero=True),
        Axis(title="mean |Δ|", log=True),
    )


def _spread(study: Row) -> str:
    """Spread around the mean over seeds of the public code's crops, against cost."""
    reference, grid = study["reference"], study["grid"]
    draws = []
    for k in range(1, len(grid) + 1):
        sd, ms = reference["sd"] / math.sqrt(k), k * reference["ms"]
        draws.append((ms, sd, f"mean of {k} draws: sd {sd:.3f}, {ms:.1f} ms"))
    views = [
        (row["ms"], row["sd"], f"{row['views']} views: sd {row['sd']:.3f}, {row['ms']:.1f} ms")
        for row in grid
        if row["sd"] is not None
    ]
    counts = f"1 to {len(grid)}"
    return chart(
        f"{study['model']}: spread against cost",
        [
            Series(name=f"reference, mean of {counts} draws", points=draws, joined=True),
            Series(name=f"grid, {counts} views", points=views, joined=True),
        ],
        Axis(title="ms per score", zero=True),
        Axis(title="sd of the difference, MOS", zero=True),
    )


def _score_against_score(report: Row, places: Mapping[str, int]) -> Iterator[str]:
    """Each bundle's reference against its other variants and against published models."""
    for bundle in report["bundles"]:
        name = bundle["reference"]
        reference = report["scores"].get(name)
        if reference is None:
            continue
        domain = _domain(bundle, reference)
        others = {
            (other, places[_without_threads(other)]): {
                clip: of_domain.get(domain) for clip, of_domain in scores.items()
            }
            for other, scores in report["scores"].items()
            if other.startswith(f"{bundle['name']} ") and other != name
        }
        for i, peer in enumerate(report.get("peers", [])):
            others[peer["peer"], len(places) + i] = peer["scores"]
        drawn = []
        for (other, place), scores in others.items():
            pairs = [
                (c, of_domain.get(domain), scores.get(c)) for c, of_domain in reference.items()
            ]
            points = [
                (x, y, f"{clip}: {x:.3f}, {y:.3f}")
                for clip, x, y in pairs
                if x is not None and y is not None
            ]
            if points:
                drawn.append(Series(name=other, points=points, place=place))
        yield chart(
            f"Scores against those of {name}",
            drawn,
            Axis(title=f"{name}, {domain}"),
            Axis(title="score"),
            diagonal=True,
        )


def _domain(bundle: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> str:
    names = next(iter(scores.values()))
    return bundle["default_domain"] if bundle["default_domain"] in names else next(iter(names))


def _listening(report: Row, clips: Sequence[AudioFile]) -> str:
    """Clips to listen to: the largest drifts first, then the lowest scores of the reference."""
    by_name = {clip.name: clip for clip in clips}
    reasons: dict[str, str] = {}
    drifting = [
        (worst, row["contestant"])
        for row in report["parity"]
        for worst in row.get("worst", [])
        if row.get("tolerance") and abs(worst["difference"]) > row["tolerance"] / 10
    ]
    for worst, name in sorted(drifting, key=lambda item: -abs(item[0]["difference"])):
        text = f"{name} differs by {worst['difference']:+.3g} in domain {worst['domain']}"
        reasons.setdefault(worst["clip"], text)
    first = report["bundles"][0]
    scores = report["scores"].get(first["reference"], {})
    if scores:
        domain = _domain(first, scores)
        sign = -1 if domain == "uncertainty" else 1
        scored = [(sign * f[domain], name) for name, f in scores.items() if f[domain] is not None]
        for value, name in sorted(scored):
            text = f"{first['reference']} scores it {sign * value:.3f} ({domain})"
            reasons.setdefault(name, text)
    items, room = [], _MAX_AUDIO_BYTES
    for name, reason in list(reasons.items())[:_MAX_CLIPS]:
        player, size = _player(by_name[name], room) if name in by_name else ("", 0)
        room -= size
        items.append(
            f"<li><strong>{html.escape(name)}</strong> <span>{html.escape(reason)}</span>"
            f"{player}</li>"
        )
    return "".join(items)


def _player(clip: AudioFile, room: int) -> tuple[str, int]:
    """A player with the clip embedded as FLAC, and the size of the FLAC in bytes."""
    try:
        rate_hz = FileSource(clip.path).sample_rate_hz
        samples, _ = soundfile.read(clip.path, frames=int(_MAX_CLIP_S * rate_hz), dtype="int16")
        stream = io.BytesIO()
        soundfile.write(stream, samples, rate_hz, format="FLAC", subtype="PCM_16")
    except (AudioError, OSError, RuntimeError, ValueError) as exc:
        return f"<em>not embedded: {html.escape(str(exc))}</em>", 0
    data = stream.getvalue()
    if len(data) > room:
        return "<em>not embedded: the page already holds the most audio that it may</em>", 0
    encoded = base64.b64encode(data).decode("ascii")
    cut = f" <em>its first {_MAX_CLIP_S:g} s</em>" if len(samples) == _MAX_CLIP_S * rate_hz else ""
    return (
        f'<audio controls preload="metadata" src="data:audio/flac;base64,{encoded}"></audio>{cut}',
        len(data),
    )
