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
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

import soundfile

from mosrt.audio.sources import FileSource
from mosrt.errors import AudioError
from mosrt_bench.clips import AudioFile

from .sections import Section, sections, view_study_title
from .svg import Axis, Series, chart

__all__ = ["page"]

_MAX_CLIP_S: Final = 30.0
_MAX_AUDIO_BYTES: Final = 8_000_000
_MAX_CLIPS: Final = 10
_FLOOR: Final = 1e-8
_SHORT: Final = re.compile(r"[:,].*| of a (clip|fresh).*| on the same.*")


def page(report: Mapping[str, Any], clips: Sequence[AudioFile]) -> str:
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
        notes="".join(f"<li>{html.escape(note)}</li>" for note in report["notes"]),
    )


def _facts(report: Mapping[str, Any]) -> str:
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


def _verdict(report: Mapping[str, Any]) -> str:
    problems = [
        f"{row['contestant']}: {problem}"
        for row in report["parity"]
        if row["passed"] is False
        for problem in row["problems"]
    ]
    if not problems:
        return '<p class="verdict pass">All configurations that ran are within their tolerance.</p>'
    items = "".join(f"<li>{html.escape(problem)}</li>" for problem in problems)
    return f'<div class="verdict fail"><p>Parity failed:</p><ul>{items}</ul></div>'


def _section(section: Section, chart_beside: str) -> str:
    head = "".join(
        f'<th scope="col"><button type="button">{html.escape(name)}</button></th>'
        for name in section.header
    )
    rows = "".join(
        "<tr>"
        + f'<th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in section.rows
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in section.notes)
    return (
        f'<section id="{html.escape(section.key)}"><h2>{html.escape(section.title)}</h2>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f"</div>{f'<ul class=notes>{notes}</ul>' if notes else ''}{chart_beside}</section>"
    )


def _plots(report: Mapping[str, Any]) -> Iterator[str]:
    latency = report.get("latency", [])
    places = _places(report)
    yield _latency_and_drift(report, places)
    by_name: dict[str, list[tuple[float, float, str]]] = {}
    for row in latency:
        p50 = row["quantiles"]["p50"]["ms"]
        text = f"{row['contestant']}: {row['clip_s']:g} s in {p50:.1f} ms"
        by_name.setdefault(row["contestant"], []).append((row["clip_s"], p50, text))
    yield chart(
        "Latency by length",
        _lines(by_name, places),
        Axis(title="clip, s", log=True),
        Axis(title="p50, ms", log=True),
    )
    for kind, counted in (("batch", "batch size"), ("callers", "concurrent callers")):
        rates: dict[str, list[tuple[float, float, str]]] = {}
        for row in report.get("throughput", []):
            if row["kind"] == kind:
                text = f"{row['contestant']}, {row['count']}: {row['clips_per_s']:.2f} clips per s"
                point = (row["count"], row["clips_per_s"], text)
                rates.setdefault(row["contestant"], []).append(point)
        yield chart(
            f"Throughput by {counted}",
            _lines(rates, places),
            Axis(title=counted, whole=True),
            Axis(title="clips of 5 s per s", zero=True),
        )
    yield from _score_against_score(report, places)


def _places(report: Mapping[str, Any]) -> dict[str, int]:
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
    by_name: Mapping[str, Sequence[tuple[float, float, str]]], places: Mapping[str, int]
) -> list[Series]:
    return [
        Series(name=name, points=points, joined=True, place=places[name])
        for name, points in by_name.items()
    ]


def _latency_and_drift(report: Mapping[str, Any], places: Mapping[str, int]) -> str:
    """Median latency of a 5 s clip against mean drift; zero drift is drawn at the bottom."""
    drift = {
        row["contestant"]: row["mae"] / row["scale"]
        for row in report["parity"]
        if row.get("mae") is not None and row["against"] != "torch checkpoint"
    }
    found = []
    for row in report.get("latency", []):
        name = _without_threads(row["contestant"])
        if row["clip_s"] != 5.0:
            continue
        mae = drift.get(name, 0.0)
        p50 = row["quantiles"]["p50"]["ms"]
        text = f"{row['contestant']}: {p50:.1f} ms, drift {mae:.1e}"
        points = [(p50, max(mae, _FLOOR), text)]
        place = places[row["contestant"]]
        found.append(Series(name=row["contestant"], points=points, place=place))
    return chart(
        "Latency against drift (1e-8 or less is drawn at the bottom; uncertainty: relative drift)",
        found,
        Axis(title="p50 of 5 s, ms", zero=True),
        Axis(title="mean |Δ|", log=True),
    )


def _spread(study: Mapping[str, Any]) -> str:
    """Spread around the mean over seeds of the public code's crops, against cost."""
    reference = study["reference"]
    draws = [
        (
            k * reference["ms"],
            reference["sd"] / math.sqrt(k),
            f"mean of {k} draws: sd {reference['sd'] / math.sqrt(k):.3f}, "
            f"{k * reference['ms']:.1f} ms",
        )
        for k in range(1, len(study["grid"]) + 1)
    ]
    grid = [
        (row["ms"], row["sd"], f"{row['views']} views: sd {row['sd']:.3f}, {row['ms']:.1f} ms")
        for row in study["grid"]
        if row["sd"] is not None
    ]
    counts = f"1 to {len(study['grid'])}"
    return chart(
        f"{study['model']}: spread against cost",
        [
            Series(name=f"reference, mean of {counts} draws", points=draws, joined=True),
            Series(name=f"grid, {counts} views", points=grid, joined=True),
        ],
        Axis(title="ms per score", zero=True),
        Axis(title="sd of the difference, MOS", zero=True),
    )


def _score_against_score(report: Mapping[str, Any], places: Mapping[str, int]) -> Iterator[str]:
    """Each bundle's reference against its other variants and against published models."""
    for bundle in report["bundles"]:
        reference = report["scores"].get(bundle["reference"])
        if reference is None:
            continue
        others = {
            name: scores
            for name, scores in report["scores"].items()
            if name.startswith(f"{bundle['name']} ") and name != bundle["reference"]
        }
        domain = _domain(bundle, reference)
        drawn = [
            Series(
                name=name,
                points=_pairs(reference, scores, domain, domain),
                place=places[_without_threads(name)],
            )
            for name, scores in others.items()
        ]
        drawn += [
            Series(
                name=peer["peer"],
                points=_pairs(reference, {c: {"": s} for c, s in peer["scores"].items()}, domain),
                place=len(places) + i,
            )
            for i, peer in enumerate(report.get("peers", []))
        ]
        yield chart(
            f"Scores against those of {bundle['reference']}",
            [each for each in drawn if each.points],
            Axis(title=f"{bundle['reference']}, {domain}"),
            Axis(title="score"),
            diagonal=True,
        )


def _domain(bundle: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> str:
    names = next(iter(scores.values()))
    return bundle["default_domain"] if bundle["default_domain"] in names else next(iter(names))


def _pairs(
    reference: Mapping[str, Mapping[str, Any]],
    other: Mapping[str, Mapping[str, Any]],
    domain: str,
    other_domain: str = "",
) -> list[tuple[float, float, str]]:
    found = []
    for clip, scores in reference.items():
        x, y = scores.get(domain), other.get(clip, {}).get(other_domain)
        if x is not None and y is not None:
            found.append((x, y, f"{clip}: {x:.3f}, {y:.3f}"))
    return found


def _listening(report: Mapping[str, Any], clips: Sequence[AudioFile]) -> str:
    """Clips to listen to: the largest drifts first, then the lowest scores of the reference."""
    by_name = {clip.name: clip for clip in clips}
    reasons: dict[str, str] = {}
    drifting = [
        (abs(worst["difference"]), worst["clip"], row["contestant"], worst)
        for row in report["parity"]
        for worst in row.get("worst", [])
        if row.get("tolerance") and abs(worst["difference"]) > row["tolerance"] / 10
    ]
    for _, name, configuration, worst in sorted(drifting, key=lambda item: -item[0]):
        text = f"{configuration} differs by {worst['difference']:+.3g} in domain {worst['domain']}"
        reasons.setdefault(name, text)
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
