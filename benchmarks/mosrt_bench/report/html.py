"""Render a report as one self-contained HTML page: no network, no library.

The page's content security policy forbids everything but its own script, by hash, and the embedded
clips. The template escapes all text from the report, file names included.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Final

import jinja2
import soundfile

from mosrt.audio.sources import FileSource
from mosrt.errors import AudioError
from mosrt_bench.clips import AudioFile

from .charts import charts, shown_domain, view_study_chart
from .sections import Row, sections

__all__ = ["TEMPLATES", "page"]

TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__),
    autoescape=jinja2.select_autoescape(["html.j2"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
"""The templates of reports; those of HTML escape what they are given."""

_MAX_CLIP_S: Final = 30.0
MAX_AUDIO_BYTES: Final = 8_000_000
_MAX_CLIPS: Final = 10
_SHORT: Final = re.compile(r"[:,].*| of a (clip|fresh).*| on the same.*")


def page(report: Row, clips: Sequence[AudioFile]) -> str:
    """The whole page.

    Args:
        report: The report of a `Bench`, its numbers finite or None.
        clips: The recordings; those with the largest differences are embedded.
    """
    script = TEMPLATES.get_template("page.js").render()
    shown = sections(report)
    studies = map(view_study_chart, report.get("estimator", []))
    return TEMPLATES.get_template("page.html.j2").render(
        report=report,
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        charts=charts(report),
        sections=[(s, next(studies) if s.key == "estimator" else None) for s in shown],
        contents={section.key: _SHORT.sub("", section.title) for section in shown},
        clips=_to_listen(report, clips),
    )


def _to_listen(report: Row, clips: Sequence[AudioFile]) -> Iterator[dict[str, str]]:
    """Clips to listen to: the largest drifts first, then the lowest scores of the reference."""
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
        domain = shown_domain(first, scores)
        sign = -1 if domain == "uncertainty" else 1
        scored = [(sign * f[domain], name) for name, f in scores.items() if f[domain] is not None]
        for value, name in sorted(scored):
            text = f"{first['reference']} scores it {sign * value:.3f} ({domain})"
            reasons.setdefault(name, text)
    by_name, room = {clip.name: clip for clip in clips}, MAX_AUDIO_BYTES
    for name, reason in list(reasons.items())[:_MAX_CLIPS]:
        flac, note = _flac(by_name[name], room) if name in by_name else (b"", "")
        room -= len(flac)
        encoded = base64.b64encode(flac).decode("ascii")
        yield {"name": name, "reason": reason, "flac_base64": encoded, "note": note}


def _flac(clip: AudioFile, room: int) -> tuple[bytes, str]:
    """A clip as FLAC of at most `room` bytes, or no bytes; and what to say about it."""
    try:
        rate_hz = FileSource(clip.path).sample_rate_hz
        samples, _ = soundfile.read(clip.path, frames=int(_MAX_CLIP_S * rate_hz), dtype="int16")
        stream = io.BytesIO()
        soundfile.write(stream, samples, rate_hz, format="FLAC", subtype="PCM_16")
    except (AudioError, OSError, RuntimeError, ValueError) as exc:
        return b"", f"not embedded: {exc}"
    data = stream.getvalue()
    if len(data) > room:
        return b"", "not embedded: the page already holds the most audio that it may"
    whole = len(samples) < _MAX_CLIP_S * rate_hz
    return data, "" if whole else f"its first {_MAX_CLIP_S:g} s"
