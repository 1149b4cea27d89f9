import json
from pathlib import Path

from click.testing import CliRunner

from mosrt_studies.figures.model_card import claims, main

LISTENING = {
    "systems": [{}, {}, {}],
    "looks": 2,
    "agreement": {
        "nano overall": {"concordance": 0.75, "interval_95": [0.5, 0.875], "pairs": 3},
        "DNSMOS P.808": {"concordance": 0.625, "interval_95": [0.25, 0.75], "pairs": 3},
    },
}
ORDER = {
    "sentences": ["a", "b"],
    "order": {"nano overall": {"x > y": {"holds": True}, "y > z": {"holds": False}}},
}


def test_claims_come_from_the_runs_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "listening.json").write_text(json.dumps(LISTENING))
    (tmp_path / "order.json").write_text(json.dumps(ORDER))
    (listening, order) = claims(tmp_path, "nano").items()
    assert "3 pairs of 3 systems" in listening[0]
    assert "2 times" in listening[0]
    assert listening[1] == "`overall` 0.75 (0.50 to 0.88), DNSMOS P.808 0.62 (0.25 to 0.75)"
    assert "2 sentences" in order[0]
    assert order[1] == "`overall` 1 of 2"


def test_no_runs_no_file(tmp_path: Path) -> None:
    out = tmp_path / "evaluation.json"
    result = CliRunner().invoke(main, [str(tmp_path), "--model", "nano", "--output", str(out)])
    assert result.exit_code == 1
    assert "no listening.json" in result.output
    assert not out.exists()
