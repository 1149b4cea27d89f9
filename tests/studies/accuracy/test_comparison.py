import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from click.testing import CliRunner

from mosrt_studies.accuracy import comparison, scorers
from mosrt_studies.accuracy.comparison import main
from mosrt_studies.accuracy.heldout import Speech, levelled
from mosrt_studies.figures.render import render

Float32Array = npt.NDArray[np.float32]


class Loudness:
    """Two models: the level, and its opposite, which is flagged."""

    defaults = ("tiny loud",)
    cpu_ms: Mapping[str, float] = {"tiny loud": 12.34, "quiet": 456.7}

    def __init__(
        self, models: tuple[str, ...], teachers: Path | None, peers: tuple[str, ...]
    ) -> None:
        assert models == ("nano",)
        assert teachers is None
        assert peers == tuple(scorers.PEERS)

    def __call__(self, waveform: Float32Array, _: int) -> dict[str, float]:
        level = float(np.abs(waveform).mean())
        return {"tiny loud": level, "quiet": -level}

    def with_flags(
        self, waveform: Float32Array, rate_hz: int
    ) -> tuple[dict[str, float], dict[str, frozenset[str]]]:
        scores = self(waveform, rate_hz)
        return scores, dict.fromkeys(scores, frozenset())


@pytest.fixture
def systems(tmp_path: Path) -> Path:
    """Three systems of two clips each, the better the louder."""
    folder = tmp_path / "rated"
    folder.mkdir()
    rows = ["set\tsystem\tmos\tfolder"]
    for name, mos, level in (("a", 4.5, 0.3), ("b", 3.5, 0.2), ("c", 2.5, 0.1)):
        (folder / name).mkdir()
        for i in range(2):
            soundfile.write(folder / name / f"{i}.flac", np.full(1600, level), 16_000)
        rows.append(f"t\t{name}\t{mos}\t{name}")
    (folder / "systems.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    return result.exit_code, result.output


def test_looks_are_counted(
    systems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speech: Float32Array
) -> None:
    clips = [Speech("ann", levelled(speech[:16_000])), Speech("bob", levelled(speech[16_000:]))]
    monkeypatch.setattr(scorers, "Scorers", Loudness)
    monkeypatch.setattr(comparison, "recorded_clips", lambda _, count: clips[:count])
    monkeypatch.setattr(comparison, "unseen_clips", lambda count, _: clips[::-1][:count])
    out = tmp_path / "accuracy.json"
    listening = ("--part", "listening", "--systems", str(systems), "--output", str(out))
    assert run(*listening)[0] == 0
    changes = ("--part", "invariance", "--speech", str(tmp_path), "--clips", "2")
    assert run(*changes, "--output", str(out))[0] == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["looks"] == {"rated": 1}  # another part is no look at the listening tests
    assert "listening" not in found
    assert found["invariance"]["voices"] == ["ann", "bob", "bob", "ann"]
    text = render(tmp_path)
    assert "## Accuracy: invariance of tiny\n" in text
    assert "| peak at -40 dBFS | **" in text
    assert "| opposite polarity | 0.00 / 0.00 |\n" in text
    code, output = run(*listening)
    assert code == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["looks"] == {"rated": 2}
    assert found["listening"]["rated"]["agreement"]["tiny loud"]["concordance"] == 1.0
    assert "evaluated rated 2 times" in output
    text = render(tmp_path)
    assert "| **tiny loud** | 1.00 | 1.00 to 1.00 | 1.00 | 12.3 ms |\n" in text
    assert "| quiet | 0.00 | 0.00 to 0.00 | 0.00 | 457 ms |\n" in text


def test_what_is_missing_is_named(
    systems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorers, "Scorers", Loudness)
    out = tmp_path / "accuracy.json"
    code, output = run("--part", "listening", "--output", str(out))
    assert (code, "need --systems" in output) == (2, True)
    code, output = run("--part", "order", "--output", str(out))
    assert (code, "need --speech" in output) == (2, True)
    out.write_text("[]", encoding="utf-8")
    code, output = run("--part", "listening", "--systems", str(systems), "--output", str(out))
    assert (code, "accuracy.json: not the result of this study" in output) == (2, True)
    assert out.read_text(encoding="utf-8") == "[]"
