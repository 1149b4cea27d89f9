import json
from pathlib import Path

from click.testing import CliRunner

from mosrt_bench.bias import main
from tests.conftest import DATA

ROOT = Path(__file__).parents[2]


def test_identical_variants_on_a_real_machine() -> None:
    """The committed run: at least 18 of 20 intervals hold 1, and the README says how many."""
    run = json.loads((ROOT / "benchmarks" / "results" / "bias.json").read_text())
    held = sum(low <= 1 <= high for low, high in (r["interval_95"] for r in run["repetitions"]))
    assert len(run["repetitions"]) == 20
    assert held == run["held"] >= 18
    assert f"holds 1 in {held} of\n20 repetitions" in (ROOT / "README.md").read_text()


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "bias.json"
    clip = str(DATA / "flite_kal_8k_mono.wav")
    options = ["--audio", clip, "--runs", "5", "--repetitions", "1", "--out", str(out)]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    assert result.exit_code == 0
    (row,) = json.loads(out.read_text())["repetitions"]
    low, high = row["interval_95"]
    assert 0 < low <= row["ratio"] <= high
