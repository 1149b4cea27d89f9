"""Makes a bundle of family "segments" of the tiny model; only its manifest is of that family."""

import json
import shutil
from pathlib import Path
from typing import Any

__all__ = ["with_segments"]


def with_segments(tiny: Path, out: Path) -> Path:
    """Copies the bundle `tiny` to `out`: segments of 3 s, at most 1 s apart, in steps of 0.1 s."""
    shutil.copytree(tiny, out)
    path = out / "manifest.json"
    facts: dict[str, Any] = json.loads(path.read_text())
    facts |= {"family": "segments", "mel": None, "front_end": "graph"}
    facts["ssl"] |= {"segment_hop_samples": 16_000, "segment_step_samples": 1_600}
    facts["inputs"] = [{"name": "waveform", "dtype": "float32", "shape": ["batch", "samples"]}]
    path.write_text(json.dumps(facts))
    return out
