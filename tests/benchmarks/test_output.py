import json
from pathlib import Path

import pytest

from mosrt_bench.output import save, table


def test_save_is_json_and_short(tmp_path: Path) -> None:
    run = {
        "a": [1, -2.5, 1e-7],
        "b": [[1.0, 2.0], [3.0]],
        "c": ["[ 1,\n 2 ]", "x"],
        "d": {"e": []},
        "f": [None, 1],
    }
    out = tmp_path / "run.json"
    save(run, out)
    assert json.loads(out.read_text()) == run
    assert ' "a": [1, -2.5, 1e-07],\n' in out.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    with pytest.raises(ValueError, match="JSON compliant"):
        save({"a": float("nan")}, out)
    assert json.loads(out.read_text()) == run


def test_table_lines_up() -> None:
    assert table(["name", "b"], [["x", "1.00"], ["long name", "10.00"]]) == (
        "name           b\nx           1.00\nlong name  10.00"
    )
