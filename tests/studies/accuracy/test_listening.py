import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from mosrt_studies.accuracy.listening import (
    ListeningError,
    ListeningTest,
    System,
    agreement,
    by_test,
    concordance,
    measure,
    read_systems,
)

HEADER = "set\tsystem\tmos\tfolder\n"


def made_up(seed: int) -> dict[str, ListeningTest]:
    """Three tests; MOS in steps of 0.05, so that gaps of exactly 0.15 and 0.40 are common.

    Scores are whole numbers, whose sums are exact, so that ties are ties whoever adds them up.
    """
    rng = np.random.default_rng(seed)
    tests = {}
    for name, n_systems, n_clips in (("a", 7, 5), ("b", 6, 5), ("c", 4, 3)):
        mos = rng.choice(np.arange(60, 90) * 0.05, n_systems)
        noise = rng.normal(0, 8, (n_systems, n_clips))
        tests[name] = ListeningTest(mos, np.floor(10 * mos[:, None] + noise).astype(np.float64))
    return tests


def brute_force(tests: Iterable[ListeningTest], gap: float) -> tuple[float, int]:
    """The definition, pair by pair, with MOS in whole hundredths."""
    points, pairs = 0.0, 0
    for test in tests:
        hundredths = [round(100 * mos) for mos in test.mos]
        totals = [sum(int(score) for score in row) for row in test.scores]
        for i, j in itertools.combinations(range(len(totals)), 2):
            if abs(hundredths[i] - hundredths[j]) < round(100 * gap):
                continue
            pairs += 1
            if totals[i] == totals[j]:
                points += 0.5
            elif (totals[i] > totals[j]) == (hundredths[i] > hundredths[j]):
                points += 1
    return points / pairs, pairs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("gap", [0.15, 0.40])
def test_concordance_is_what_its_definition_says(seed: int, gap: float) -> None:
    tests = list(made_up(seed).values())
    share, pairs = concordance(tests, gap)
    wanted, wanted_pairs = brute_force(tests, gap)
    assert share == pytest.approx(wanted)
    assert pairs == wanted_pairs


def test_a_tie_counts_one_half_and_close_systems_do_not_count() -> None:
    mos = np.array([4.10, 3.95, 3.90])  # gaps 0.15, 0.20 and 0.05
    assert concordance([ListeningTest(mos, np.zeros((3, 2)))]) == (0.5, 2)
    right_and_tie = np.array([[2.0, 2.0], [2.0, 2.0], [1.0, 1.0]])
    assert concordance([ListeningTest(mos, right_and_tie)]) == (0.75, 2)
    assert math.isnan(concordance([ListeningTest(np.array([4.0, 4.1]), np.zeros((2, 2)))])[0])


def test_interval_resamples_clips() -> None:
    tests = made_up(0)
    figure = agreement(tests, resamples=400)
    low, high = figure["interval_95"]
    assert low < figure["concordance"] < high
    assert figure == agreement(tests, resamples=400)
    # Where all clips of a system score alike, it does not matter which are drawn.
    flat = {
        name: ListeningTest(t.mos, np.repeat(t.scores[:, :1], t.scores.shape[1], axis=1))
        for name, t in tests.items()
    }
    figure = agreement(flat, resamples=50)
    assert figure["interval_95"] == [figure["concordance"]] * 2


def test_all_systems_of_a_test_are_drawn_alike() -> None:
    # Clip j lifts every system by j: whatever is drawn, the order stays.
    mos = np.array([4.0, 3.5, 3.0])
    scores = np.array([[0.2], [0.1], [0.0]]) + 10.0 * np.arange(6)
    assert agreement({"a": ListeningTest(mos, scores)})["interval_95"] == [1.0, 1.0]


def test_agreement_names_every_test() -> None:
    tests = made_up(1)
    figure = agreement(tests, resamples=2)
    assert sum(alone["pairs"] for alone in figure["tests"].values()) == figure["pairs"]
    for name, test in tests.items():
        ranks = [np.argsort(np.argsort(v)) for v in (test.mos, test.scores.mean(axis=1))]
        if len(set(test.mos)) == len(test.mos):
            wanted = np.corrcoef(ranks[0], ranks[1])[0, 1]
            assert figure["tests"][name]["srcc"] == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(ListeningError, match=r"differ by 0\.15 MOS"):
        agreement({"a": ListeningTest(np.array([4.0, 4.1]), np.zeros((2, 2)))})


def test_by_test_keeps_systems_and_order() -> None:
    systems = [System(t, s, m, ()) for t, s, m in (("z", "1", 4), ("a", "2", 3), ("z", "3", 2))]
    tests = by_test(systems, [[1.0, 2.0], [3.0], [4.0, 5.0]])
    assert list(tests) == ["z", "a"]
    np.testing.assert_array_equal(tests["z"].mos, [4, 2])
    np.testing.assert_array_equal(tests["z"].scores, [[1, 2], [4, 5]])


def write_systems(folder: Path, rows: list[str], clips: dict[str, int]) -> None:
    (folder / "systems.tsv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    for place, count in clips.items():
        (folder / place).mkdir(parents=True)
        for i in range(count):
            # What a clip "scores" with the loudness model below: its level.
            samples = np.full(1600, 0.01 * (i + 1) + 0.1 * len(place), np.float32)
            soundfile.write(folder / place / f"{i}.flac", samples, 22_050)


@pytest.mark.parametrize(
    ("rows", "clips", "message"),
    [
        (["t\ta\tgood\ta"], {"a": 1}, "line 2: needs set, system, mos, folder"),
        (["t\ta\t4.0"], {}, "line 2: no FLAC clips"),
        (["t\ta\t4.0\ta", "t\tb\t3.0\tb"], {"a": 2, "b": 1}, "systems of t differ"),
        ([], {}, "no systems"),
    ],
)
def test_refuses_by_name(
    tmp_path: Path, rows: list[str], clips: dict[str, int], message: str
) -> None:
    write_systems(tmp_path, rows, clips)
    with pytest.raises(ListeningError, match=message):
        read_systems(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ListeningError, match=r"systems\.tsv: No such file .*; pass --systems"):
        read_systems(tmp_path)


def loud_and_quiet(waveform: npt.NDArray[np.float32], rate_hz: int) -> dict[str, float]:
    """Two models: the mean sample, and its opposite."""
    assert rate_hz == 22_050
    return {"loud": float(waveform.mean()), "quiet": -float(waveform.mean())}


def test_measure_tells_folders_tests_and_parts_apart(tmp_path: Path) -> None:
    rows = ["t\tbest\t4.5\tlllll", "t\tmiddle\t4.0\tmmm", "t\tworst\t2.0\ts", "u\tx\t3\txx"]
    clips = {"lllll": 2, "mmm": 2, "s": 2, "xx": 3, "y": 3}
    for name, suffixes in (("plain", [""] * 5), ("known", ["\ten\ttts"] * 3 + ["\tde\ttts"] * 2)):
        (tmp_path / name).mkdir()
        lines = [f"{r}{s}" for r, s in zip([*rows, "u\ty\t2.7\ty"], suffixes, strict=True)]
        write_systems(tmp_path / name, lines, clips)
    table = tmp_path / "known" / "systems.tsv"
    text = table.read_text(encoding="utf-8").replace("folder", "folder\tlanguage\tkind", 1)
    table.write_text(text, encoding="utf-8")
    found = measure([tmp_path / "plain", tmp_path / "known"], loud_and_quiet)
    assert list(found) == ["plain", "known"]
    assert found["plain"]["parts"] == {}
    shares = {n: a["concordance"] for n, a in found["plain"]["agreement"].items()}
    assert shares == {"loud": 1.0, "quiet": 0.0}
    assert found["plain"]["scores"]["loud"][0] == pytest.approx([0.51, 0.52], abs=1e-3)
    assert list(found["known"]["parts"]) == ["de", "en"]  # there is one kind only
    pairs = {part: of["loud"]["pairs"] for part, of in found["known"]["parts"].items()}
    assert pairs == {"de": 1, "en": 3}


def test_interval_over_tests_draws_whole_tests() -> None:
    """Of two tests, one is all right and one all wrong; a draw may have either one twice."""
    mos, scores = np.array([4.0, 3.5, 3.0]), np.array([[3.0] * 4, [2.0] * 4, [1.0] * 4])
    tests = {"right": ListeningTest(mos, scores), "wrong": ListeningTest(mos, -scores)}
    figure = agreement(tests, resamples=200)
    assert figure["concordance"] == 0.5
    assert figure["interval_95"] == [0.5, 0.5]
    assert figure["interval_95_tests"] == [0.0, 1.0]
