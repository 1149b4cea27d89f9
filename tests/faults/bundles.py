"""What tests do to a copy of a bundle, and what `mosrt score` says to it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from mosrt.cli.main import main

GRAPH = "model.fold0.fp32.onnx"
Change = Callable[[dict[str, Any]], object]


def edit(bundle: Path, change: Change) -> Path:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return bundle


def score(model: Path, clip: Path) -> Result:
    return CliRunner().invoke(main, ["score", str(clip), "-m", str(model)])


def refused(model: Path, clip: Path, message: str) -> None:
    """`mosrt score` ends with status 3 and one line."""
    result = score(model, clip)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 3, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
