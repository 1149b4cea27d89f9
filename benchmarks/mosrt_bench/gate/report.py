"""Gate reports: for the terminal, and as JUnit XML, which every CI shows."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from mosrt_bench.output import save_text, table

from .decision import ClipChange, SetChange, Verdict

__all__ = ["gate_text", "junit", "write_junit"]

_SHOWN: Final = 20
# What XML 1.0 cannot hold, not even escaped; file names can.
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def gate_text(verdict: Verdict) -> str:
    """The set's figures, and the clips to listen to."""
    digits = _digits(verdict)
    rows = [
        [
            change.name,
            f"{change.before:.{digits}f}",
            f"{change.after:.{digits}f}",
            f"{change.delta:+.{digits}f}",
            f"{change.low:+.{digits}f} to {change.high:+.{digits}f}",
            f"{change.p:.3f}",
            "FAIL" if change.failed else "ok",
        ]
        for change in verdict.summary
    ]
    lines = [table(["set", "before", "after", "change", "95 %", "p", ""], rows)]
    failed = [change for change in verdict.clips if change.failed]
    if failed:
        lines += ["", "listen to:"]
        rows = [
            [c.clip, f"{c.before:.{digits}f}", f"{c.after:.{digits}f}", f"{c.delta:+.{digits}f}",
             f"{c.error:.{digits}f}", f"{c.p:.4f}"]
            for c in failed[:_SHOWN]
        ]  # fmt: skip
        lines.append(table(["clip", "before", "after", "change", "error", "p"], rows))
        if len(failed) > _SHOWN:
            lines.append(f"and {len(failed) - _SHOWN} more")
    lines += verdict.notes
    lines.append(f"gate: {'passed' if verdict.passed else 'FAILED'}")
    return "\n".join(lines)


def junit(verdict: Verdict) -> str:
    """JUnit XML: a suite of the set's figures, and one of the clips."""
    root = ET.Element("testsuites", name="mosrt gate")
    for name, changes in (("set", verdict.summary), ("clips", verdict.clips)):
        suite = ET.SubElement(
            root,
            "testsuite",
            name=name,
            tests=str(len(changes)),
            failures=str(sum(change.failed for change in changes)),
            errors="0",
            skipped="0",
        )
        for change in changes:
            called = change.clip if isinstance(change, ClipChange) else change.name
            case = ET.SubElement(
                suite, "testcase", classname=f"mosrt.gate.{name}", name=_xml(called)
            )
            if change.failed:
                message = _xml(_message(called, change, _digits(verdict)))
                failure = ET.SubElement(case, "failure", type="regression", message=message)
                failure.text = "\n".join(verdict.notes)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(verdict: Verdict, file: Path) -> None:
    """Writes JUnit XML, complete or not at all."""
    save_text(junit(verdict), file)


def _digits(verdict: Verdict) -> int:
    """Decimals that show a thousandth of the scores' scale: uncertainties may be tiny."""
    return max(3, 3 - math.floor(math.log10(verdict.scale))) if verdict.scale else 3


def _message(called: str, change: ClipChange | SetChange, digits: int) -> str:
    verb = "listen to it" if isinstance(change, ClipChange) else "of the set"
    return (
        f"{called} dropped by {-change.delta:.{digits}f} from {change.before:.{digits}f} to "
        f"{change.after:.{digits}f} (adjusted p = {change.p:.4f}); {verb}"
    )


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
