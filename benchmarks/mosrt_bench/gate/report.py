"""Show a gate's decision: as text for the terminal, and as JUnit XML for CI.

JUnit XML has a test case for each statistic of the set and for each clip.
"""

from __future__ import annotations

import math
import re
from typing import Final
from xml.etree import ElementTree as ET

from mosrt_bench.output import table

from .decision import ClipDelta, SetDelta, Verdict

__all__ = ["gate_text", "junit"]

_SHOWN: Final = 20
# Characters that XML 1.0 cannot hold, not even escaped, but file names can.
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def gate_text(verdict: Verdict) -> str:
    """The statistics of the set, and the clips to listen to."""
    digits = _digits(verdict)

    def scores(delta: ClipDelta | SetDelta) -> list[str]:
        change = f"{delta.delta:+.{digits}f}"
        return [f"{delta.before:.{digits}f}", f"{delta.after:.{digits}f}", change]

    rows = [
        [delta.name, *scores(delta), f"{delta.low:+.{digits}f} to {delta.high:+.{digits}f}",
         f"{delta.p:.3f}", "FAIL" if delta.failed else "ok"]
        for delta in verdict.summary
    ]  # fmt: skip
    lines = [table(["set", "before", "after", "delta", "95 %", "p", ""], rows)]
    failed = [delta for delta in verdict.clips if delta.failed]
    if failed:
        lines += ["", "listen to:"]
        rows = [
            [delta.clip, *scores(delta), f"{delta.error:.{digits}f}", f"{delta.p:.4f}"]
            for delta in failed[:_SHOWN]
        ]
        lines.append(table(["clip", "before", "after", "delta", "error", "p"], rows))
        if len(failed) > _SHOWN:
            lines.append(f"and {len(failed) - _SHOWN} more")
    lines += verdict.notes
    lines.append(f"gate: {'passed' if verdict.passed else 'FAILED'}")
    return "\n".join(lines)


def junit(verdict: Verdict) -> str:
    """JUnit XML with a suite for the statistics of the set and a suite for the clips."""
    root = ET.Element("testsuites", name="mosrt gate")
    for name, changes in (("set", verdict.summary), ("clips", verdict.clips)):
        suite = ET.SubElement(
            root,
            "testsuite",
            name=name,
            tests=str(len(changes)),
            failures=str(sum(delta.failed for delta in changes)),
            errors="0",
            skipped="0",
        )
        for delta in changes:
            called = delta.clip if isinstance(delta, ClipDelta) else delta.name
            case = ET.SubElement(
                suite, "testcase", classname=f"mosrt.gate.{name}", name=_xml(called)
            )
            if delta.failed:
                message = _xml(_message(called, delta, _digits(verdict)))
                failure = ET.SubElement(case, "failure", type="regression", message=message)
                failure.text = "\n".join(verdict.notes)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _digits(verdict: Verdict) -> int:
    """Decimals that show a thousandth of the scale; uncertainties may be tiny."""
    return max(3, 3 - math.floor(math.log10(verdict.scale))) if verdict.scale else 3


def _message(called: str, delta: ClipDelta | SetDelta, digits: int) -> str:
    verb = "listen to it" if isinstance(delta, ClipDelta) else "of the set"
    return (
        f"{called} dropped by {-delta.delta:.{digits}f} from {delta.before:.{digits}f} to "
        f"{delta.after:.{digits}f} (adjusted p = {delta.p:.4f}); {verb}"
    )


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
