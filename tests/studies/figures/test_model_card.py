import json
from pathlib import Path

from click.testing import CliRunner

from mosrt_studies.figures.model_card import claims, main

LISTENING = {
    "defaults": ["nano overall", "DNSMOS P.808"],
    "looks": {"rated": 2},
    "listening": {
        "rated": {
            "systems": [{}, {}, {}],
            "agreement": {
                "nano overall": {
                    "concordance": 0.75,
                    "interval_95_tests": [0.5, 0.9],
                    "pairs": 3,
                },
                "DNSMOS P.808": {"concordance": 0.625, "interval_95_tests": [0.25, 1], "pairs": 3},
            },
        }
    },
}
ORDER = {
    "defaults": ["nano overall"],
    "order": {
        "sentences": ["a", "b"],
        "order": {"nano overall": {"x > y": {"holds": True}, "y > z": {"holds": False}}},
    },
}
OTHER = {
    "defaults": ["nano-uncertainty dense.entropy"],
    "ladder": {"overall": {"clips": {"nano-uncertainty dense.entropy": {}}}},
}


def test_claims_come_from_the_runs_that_are_there(tmp_path: Path) -> None:
    for name, run in (("_a", LISTENING), ("_b", ORDER), ("_c", OTHER)):
        (tmp_path / f"accuracy{name}.json").write_text(json.dumps(run))
    (listening, order) = claims(tmp_path, "nano").items()
    assert "of rated in the order of listeners (3 pairs of 3 systems" in listening[0]
    assert "2 times" in listening[0]
    assert listening[1] == "`overall` 0.75 (0.50 to 0.90), DNSMOS P.808 0.62 (0.25 to 1.00)"
    assert "2 sentences" in order[0]
    assert order[1] == "`overall` 1 of 2"


def test_no_runs_no_file(tmp_path: Path) -> None:
    out = tmp_path / "evaluation.json"
    result = CliRunner().invoke(main, [str(tmp_path), "--model", "nano", "--output", str(out)])
    assert result.exit_code == 1
    assert "no accuracy*.json of nano" in result.output
    assert not out.exists()
