from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import soundfile
from click.testing import CliRunner

from mosrt_bench.cli.gate import gate as command
from mosrt_bench.errors import BenchError
from mosrt_bench.gate.baseline import Baseline, ClipScore
from mosrt_bench.gate.decision import Verdict, gate
from mosrt_bench.gate.report import gate_text, junit
from tests.conftest import DATA

FloatArray = npt.NDArray[np.float64]

baseline_of = partial(
    Baseline, model="nano", bundle_sha256="ab" * 32, variant="fp32", provider="cpu",
    domain="overall", views=8,
)  # fmt: skip


def made(scores: FloatArray, *, take: str = "a", error: float = 0.03) -> Baseline:
    """A set of scores whose audio is told apart by `take`."""
    clips = {
        f"{i}.wav": ClipScore(sha256=f"{take}{i}", score=float(s), error=error, n_views=8)
        for i, s in enumerate(scores)
    }
    return baseline_of(clips=clips)


def decided(before: FloatArray, after: FloatArray) -> Verdict:
    return gate(made(before), made(after, take="b"))


def test_p_values_are_welchs() -> None:
    """Against scipy's test of the very views."""
    rng = np.random.default_rng(0)
    old, new = rng.normal(3, 0.2, 8), rng.normal(2.7, 0.1, 8)
    before, after = (
        baseline_of(
            clips={
                "x": ClipScore(
                    sha256=str(views[0]), score=views.mean(), error=views.std(ddof=1) / 8**0.5,
                    n_views=8,
                )
            },
        )
        for views in (old, new)
    )  # fmt: skip
    verdict = gate(before, after)
    wanted = scipy.stats.ttest_ind(new, old, equal_var=False, alternative="less").pvalue
    assert verdict.clips[0].p == pytest.approx(wanted, rel=1e-9)


def test_the_same_files_pass_and_have_no_noise() -> None:
    scores = np.linspace(2, 4, 40)
    verdict = gate(made(scores), made(scores), tolerance=0.0, clip_tolerance=0.0)
    assert verdict.passed
    assert all(clip.delta == clip.error == 0 and clip.p == 1 for clip in verdict.clips)
    assert "40 of 40 clips are identical to the recorded files" in verdict.notes


def test_noise_alone_hardly_ever_fails() -> None:
    """Clips that only differ by their noise, with no tolerance: at most alpha of the sets fail by
    a clip. 100 sets of 40 clips; 5 % of them plus three standard errors are 11."""
    rng = np.random.default_rng(0)
    failing = 0
    for _ in range(100):
        true = rng.uniform(2, 4, 40)
        before, after = (made(true + rng.normal(0, 0.03, 40), take=take) for take in "ab")
        verdict = gate(before, after, tolerance=5.0, clip_tolerance=0.0)
        failing += not verdict.passed
    assert failing <= 11


def test_one_bad_clip_of_many_is_named() -> None:
    rng = np.random.default_rng(1)
    before = rng.uniform(2.5, 4, 100)
    after = before + rng.normal(0, 0.02, 100)
    after[17] -= 0.8
    verdict = decided(before, after)
    assert not verdict.passed
    assert verdict.to_dict()["listen_to"] == ["17.wav"]
    assert verdict.clips[0].clip == "17.wav"
    assert not any(change.failed for change in verdict.summary)
    assert "17.wav" in gate_text(verdict)


def test_a_set_that_sinks_fails_as_a_set_only() -> None:
    rng = np.random.default_rng(2)
    before = rng.uniform(2.5, 4, 100)
    verdict = decided(before, before - 0.12 + rng.normal(0, 0.02, 100))
    assert [change.name for change in verdict.summary if change.failed] == [
        "mean", "median", "p5", "p95"
    ]  # fmt: skip
    assert not any(change.failed for change in verdict.clips)
    for change in verdict.summary:
        assert change.low < change.delta < change.high < 0


def test_what_is_certain_but_small_passes() -> None:
    before = np.linspace(2, 4, 200)
    verdict = decided(before, before - 0.04)
    assert verdict.passed
    assert verdict.summary[0].p < 0.01


def test_a_better_set_passes() -> None:
    before = np.linspace(2, 4, 50)
    assert decided(before, before + 0.5).passed


def uncertain(uncertainties: FloatArray, take: str = "a") -> Baseline:
    baseline = made(-uncertainties, take=take, error=0.0)
    return dataclasses.replace(baseline, domain="uncertainty", views=0)


@pytest.mark.parametrize("scale", [1e-4, 1.7])
def test_uncertainties_have_tolerances_of_their_own_scale(scale: float) -> None:
    """4 % passes as a clip and 6 % fails, whatever the unit; so do 1 % and 3 % of a whole set."""
    before = uncertain(np.full(20, scale))

    def judged(factors: FloatArray) -> Verdict:
        return gate(before, uncertain(scale * factors, "b"))

    one = np.ones(20)
    one[3] = 1.04
    close = judged(one)
    assert close.passed
    assert (close.tolerance, close.clip_tolerance) == (0.02, 0.05)
    in_mos = gate(made(one), made(one), clip_tolerance=0.3)
    assert (in_mos.tolerance, in_mos.clip_tolerance) == (0.05, 0.3)
    one[3] = 1.06
    verdict = judged(one)
    assert verdict.to_dict()["listen_to"] == ["3.wav"]
    assert f"{-1.06 * scale:.3g}" in gate_text(verdict)
    assert any(note.endswith(f"recorded clips, {scale:.4g}") for note in verdict.notes)
    assert judged(np.full(20, 1.01)).passed
    worse = judged(np.full(20, 1.03))
    assert [c.name for c in worse.summary if c.failed] == ["mean", "median", "p5", "p95"]
    assert not any(clip.failed for clip in worse.clips)
    assert judged(np.full(20, 0.5)).passed


def test_the_same_file_with_another_uncertainty_is_an_error() -> None:
    before = uncertain(np.full(3, 1e-4))
    before.check(uncertain(np.full(3, 1.005e-4)), Path("base.json"))
    with pytest.raises(
        BenchError, match=r"0\.wav is the recorded file.* scores -0\.000102 instead"
    ):
        before.check(uncertain(np.full(3, 1.02e-4)), Path("base.json"))


def test_a_model_without_noise_is_decided_by_the_tolerance() -> None:
    before, after = (
        made(np.full(3, -1.0), error=0.0),
        made(np.array([-1.0, -1.1, -1.3]), take="b", error=0.0),
    )
    verdict = gate(before, after, tolerance=1.0)
    assert [clip.clip for clip in verdict.clips if clip.failed] == ["2.wav"]
    assert any("the tolerance alone decides" in note for note in verdict.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle_sha256": "cd" * 32}, "recorded with bundle sha256 abab"),
        ({"variant": "fp16"}, "recorded with variant fp32, but this run has fp16"),
        ({"provider": "cuda"}, "recorded with provider cpu"),
        ({"domain": "bvcc"}, "recorded with domain overall"),
        ({"views": 4}, "recorded with views 8"),
    ],
)
def test_another_setup_is_an_error(change: dict[str, Any], message: str) -> None:
    before = made(np.ones(3))
    after = dataclasses.replace(before, **change)
    with pytest.raises(BenchError, match=message):
        before.check(after, Path("base.json"))


def test_other_clips_are_an_error() -> None:
    with pytest.raises(BenchError, match=r"3\.wav \(and 1 more\) has no baseline"):
        made(np.ones(3)).check(made(np.ones(5)), Path("base.json"))
    with pytest.raises(BenchError, match=r"2\.wav is in the baseline but not in this run"):
        made(np.ones(3)).check(made(np.ones(2)), Path("base.json"))


def test_the_same_file_with_another_score_is_an_error() -> None:
    with pytest.raises(
        BenchError, match=r"0\.wav is the recorded file.* scores 1\.5 instead of 1:"
    ):
        made(np.ones(1)).check(made(np.ones(1) + 0.5), Path("base.json"))
    made(np.ones(1)).check(made(np.ones(1) + 1e-5), Path("base.json"))


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    baseline = made(np.linspace(1, 2, 4))
    file = tmp_path / "base.json"
    baseline.write(file)
    assert Baseline.read(file) == baseline
    assert [path.name for path in tmp_path.iterdir()] == ["base.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "not a baseline of `mosrt gate`"),
        (
            '{"kind": "mosrt gate baseline", "schema_version": 9}',
            "schema version 9, but this mosrt reads version 1",
        ),
        ('{"kind": "mosrt gate baseline", "schema_version": 1}', "damaged"),
    ],
)
def test_a_damaged_baseline_is_reported(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "base.json"
    file.write_text(text)
    with pytest.raises(BenchError, match=message):
        Baseline.read(file)


def test_scores_must_be_numbers(tmp_path: Path) -> None:
    file = tmp_path / "base.json"
    made(np.ones(1)).write(file)
    file.write_text(file.read_text().replace('"score": 1.0', '"score": NaN'))
    with pytest.raises(BenchError, match="not a finite number"):
        Baseline.read(file)


def test_junit_holds_any_file_name() -> None:
    name = 'a<b>&"\x01\ud800.wav'
    before, after = (
        baseline_of(clips={name: ClipScore(sha256=take, score=s, error=0.01, n_views=8)})
        for take, s in (("a", 4.0), ("b", 2.0))
    )
    verdict = gate(before, after)
    root = ET.fromstring(junit(verdict))
    suites = {suite.get("name"): suite for suite in root}
    assert (suites["clips"].get("tests"), suites["clips"].get("failures")) == ("1", "1")
    (case,) = suites["clips"]
    assert case.get("name") == 'a<b>&"\ufffd\ufffd.wav'
    failure = case.find("failure")
    assert failure is not None
    assert "dropped by 2.000 from 4.000 to 2.000" in str(failure.get("message"))


def test_command(tmp_path: Path) -> None:
    """Record, pass on the same clips, fail on a spoilt one, and refuse what does not compare."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("flite_slt_16k_mono.wav", "flite_kal_8k_mono.wav"):
        samples, rate_hz = soundfile.read(DATA / name)
        soundfile.write(clips / name, samples, rate_hz)
    base, xml, figures = (tmp_path / name for name in ("base.json", "gate.xml", "gate.json"))

    def run(*arguments: str) -> tuple[int, str]:
        options = [str(clips), "-m", "nano", "--baseline", str(base), "--threads", "1", *arguments]
        result = CliRunner().invoke(command, options, catch_exceptions=False)
        return result.exit_code, result.output

    code, output = run()
    assert (code, "no baseline yet; record one with --update" in output) == (3, True)
    assert run("--update")[0] == 0
    recorded = json.loads(base.read_text())
    assert recorded["variant"] == "fp32"
    assert len(recorded["clips"]) == 2
    assert run()[0] == 0

    noise = np.random.default_rng(0).standard_normal(len(samples))
    soundfile.write(clips / name, samples + 0.1 * noise, rate_hz)
    code, output = run("--junit", str(xml), "--json", str(figures))
    assert code == 1
    assert json.loads(figures.read_text())["listen_to"] == [name]
    assert ET.parse(xml).getroot().find(".//failure") is not None

    code, output = run("--domain", "bvcc")
    assert (code, "recorded with domain overall, but this run has bvcc" in output) == (3, True)
    before = base.read_bytes()
    (clips / "empty.wav").write_bytes(b"")
    code, output = run("--update")
    assert code == 3
    assert base.read_bytes() == before
