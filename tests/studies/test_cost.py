import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mosrt.bundle.bundle import Bundle
from mosrt_studies.accuracy.scorers import ScorerError
from mosrt_studies.cost import fresh_process, main, timings
from tests.conftest import DATA


def test_the_warm_up_does_not_count() -> None:
    found = timings([900.0, 800.0, 700.0, 3.0, 1.0, 2.0])
    assert found["times_ms"] == [3.0, 1.0, 2.0]
    assert found["median_ms"] == 2.0
    assert found["interval_95_ms"][0] >= 1.0
    assert found["interval_95_ms"][1] <= 3.0


def test_a_process_that_fails_is_named(tiny: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "gone"
    shutil.copytree(tiny, bundle)
    process = fresh_process(str(bundle), "tiny south")
    shutil.rmtree(bundle)
    with pytest.raises(ScorerError, match="tiny south: a fresh process failed: .*gone"):
        process.start(DATA / "flite_slt_16k_mono.wav")


def test_command(tiny: Path, tmp_path: Path) -> None:
    out, wheel = tmp_path / "cost.json", tmp_path / "mosrt.whl"
    wheel.write_bytes(bytes(2_500_000))
    clip = str(DATA / "flite_slt_16k_mono.wav")
    options = ["--rounds", "15", "--starts", "1", "--wheel", str(wheel), "--output", str(out)]
    arguments = ["--audio", clip, "--model", str(tiny), *options]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    run = json.loads(out.read_text(encoding="utf-8"))
    assert len(run["timings"]["tiny south"]["times_ms"]) == 15
    found = run["processes"]["tiny south"]
    assert (found["model"], found["variant"]) == ("tiny", "fp32")
    bundle = Bundle.open(tiny)
    assert found["bytes"] == sum(file.bytes for file in bundle.variant("fp32").files)
    assert found["cpu_s"] > 0
    assert found["first_score_s"] > 0
    assert found["peak_mb"] > 10
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    assert "has 2.5 MB" in result.output
    assert "\n| tiny south | " in result.output
