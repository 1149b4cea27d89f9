"""Heads are fitted to simulated listening tests whose true map is known."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import Manifest
from mosrt.cli.ratings import Rating
from mosrt_bench.adapt.fitting import RatedClips, fit_head, folds, grouped_mean
from mosrt_bench.adapt.validation import gains, predictions, report_text, validate

NANO = Bundle.open(find_bundle("nano")).manifest
Array = npt.NDArray[np.float64]


def simulated(
    n_clips: int, n_systems: int, seed: int = 0, noise: float = 0.1, manifest: Manifest = NANO
) -> tuple[Array, Array, list[str], dict[str, Array]]:
    """Quality and noise of clips, their systems, and outputs of a model that follow the quality."""
    rng = np.random.default_rng(seed)
    system = rng.permutation(np.arange(n_clips) % n_systems)
    quality = rng.normal(0, 1, n_systems)[system] + rng.normal(0, 0.5, n_clips)
    mos = 3 + 0.4 * (quality[:, None] + rng.normal(0, 0.7, (n_clips, len(manifest.domains))))
    features = rng.normal(0, 1, (n_clips, 448))
    features[:, :100] += quality[:, None]
    names = [f"s{each}" for each in system]
    outputs = {"mos": mos, "spec_features": features}
    return quality, rng.normal(0, noise, n_clips), names, outputs


def rated(mos: Array, systems: list[str], outputs: dict[str, Array]) -> RatedClips:
    ratings = [
        Rating(path=f"clips/{i}.wav", mos=float(value), system=system)
        for i, (value, system) in enumerate(zip(np.clip(mos, 1, 5), systems, strict=True))
    ]
    return RatedClips(ratings, outputs, NANO)


def everything(clips: RatedClips) -> npt.NDArray[np.intp]:
    return np.arange(len(clips.mos))


@pytest.mark.parametrize("n_clips", [6, 15, 300])
def test_an_affine_map_of_one_domain_is_recovered(n_clips: int) -> None:
    _, noise, systems, outputs = simulated(n_clips, 10, noise=0.02)
    clips = rated(1.0 + 0.6 * outputs["mos"][:, 2] + noise, systems, outputs)
    head = fit_head(clips, everything(clips))
    assert head.kind == "affine"
    assert list(head.weights) == ["mos"]
    assert np.allclose(head.weights["mos"], [0, 0, 0.6, 0, 0], atol=0.05)
    assert head.bias == pytest.approx(1.0, abs=0.15)


def test_a_combination_of_domains_is_recovered() -> None:
    _, noise, systems, outputs = simulated(300, 20, noise=0.05)
    clips = rated(0.5 + outputs["mos"] @ [0.4, 0, 0, 0.4, 0] + noise, systems, outputs)
    head = fit_head(clips, everything(clips))
    assert head.kind == "domains"
    assert np.allclose(head.weights["mos"], [0.4, 0, 0, 0.4, 0], atol=0.05)


def test_a_bend_needs_a_monotone_map() -> None:
    _, noise, systems, outputs = simulated(300, 20, noise=0.05)
    clips = rated(np.where(outputs["mos"][:, 1] > 3, 4.0, 2.0) + noise, systems, outputs)
    head = fit_head(clips, everything(clips))
    assert head.kind == "monotone"
    assert np.abs(head(outputs) - clips.mos).mean() < 0.1


def test_features_are_used_where_they_tell_more() -> None:
    quality, noise, systems, outputs = simulated(300, 30)
    clips = rated(3 + 0.7 * quality + noise, systems, outputs)
    report = validate(clips, "ours")
    assert fit_head(clips, everything(clips)).kind == "features"
    assert report["accepted"]
    rows = report["levels"]["utterance"]
    assert rows["ours"]["mse"] < 0.5 * min(rows[f"{name}, affine"]["mse"] for name in NANO.domains)
    assert report["learning_curve"][0][1] > report["learning_curve"][-1][1]


def test_features_of_an_ensemble_are_left_out() -> None:
    quality, noise, systems, outputs = simulated(100, 20)
    fp32 = NANO.variants["fp32"]
    other = dataclasses.replace(fp32.members[0], name="other")
    fp32 = dataclasses.replace(fp32, members=(*fp32.members, other))
    manifest = dataclasses.replace(NANO, variants={"fp32": fp32})
    clips = rated(3 + 0.7 * quality + noise, systems, outputs)
    clips = RatedClips(clips.ratings, outputs, manifest)
    assert list(fit_head(clips, everything(clips)).weights) == ["mos"]


def test_few_clips_take_the_simplest_map() -> None:
    for seed in range(5):
        quality, noise, systems, outputs = simulated(12, 6, seed)
        clips = rated(3 + 0.7 * quality + noise, systems, outputs)
        assert fit_head(clips, everything(clips)).kind == "affine"


@pytest.mark.parametrize(("n_clips", "n_systems"), [(12, 6), (60, 12)])
def test_shuffled_ratings_are_refused(n_clips: int, n_systems: int) -> None:
    accepted = 0
    for seed in range(20):
        quality, noise, systems, outputs = simulated(n_clips, n_systems, seed)
        ratings = np.random.default_rng(seed).permutation(3 + 0.7 * quality + noise)
        clips = rated(ratings, systems, outputs)
        better = gains(clips, predictions(clips, "ours")).values()
        accepted += all(gain["interval"][0] > 0 for gain in better)
    assert accepted <= 1


def test_what_the_model_predicts_already_is_refused() -> None:
    _, noise, systems, outputs = simulated(200, 20)
    report = validate(rated(outputs["mos"][:, 3] + noise, systems, outputs), "ours")
    assert not report["accepted"]
    assert list(report["better"]) == ["fidelity", "mean rating"]
    assert report["better"]["mean rating"]["interval"][0] > 0
    assert "ours orders clips worse than fidelity" in report["warnings"][-1]


def test_leakage_and_few_ratings_are_warned_of() -> None:
    quality, noise, systems, outputs = simulated(12, 6)
    outputs["mos"][3] = outputs["mos"][7]
    systems[3], systems[7] = "s0", "s1"
    clips = rated(3 + 0.7 * quality + noise, systems, outputs)
    text = report_text(validate(clips, "ours"))
    assert "clips/3.wav and clips/7.wav are identical" in text
    assert "few ratings: 12 clips in 6 groups" in text
    assert "no 5 systems are named" not in text
    alone = [dataclasses.replace(rating, system=None) for rating in clips.ratings]
    report = validate(RatedClips(alone, outputs, NANO), "ours")
    assert report["grouped_by"] == "clip"
    assert "no 5 systems are named, so folds keep clips apart" in report_text(report)
    folders = [dataclasses.replace(each, path=f"{i % 6}/{i}") for i, each in enumerate(alone)]
    assert RatedClips(folders, outputs, NANO).grouped_by == "folder"


def test_folds_keep_groups_whole() -> None:
    groups = np.array([4, 1, 4, 2, 2, 7, 1, 9])
    tests = list(folds(groups, 3))
    assert np.array_equal(np.sum(tests, axis=0), np.ones(8))
    for test in tests:
        assert not set(groups[test]) & set(groups[~test])
    assert len(list(folds(np.zeros(6, int), 5))) == 5


def test_the_error_of_a_mean_is_that_of_groups() -> None:
    values, groups = np.array([1.0, 1, 1, 3, 3, 3]), np.array([0, 0, 0, 1, 1, 1])
    assert grouped_mean(values, groups) == pytest.approx((2, 1))
    alone = grouped_mean(values, np.arange(6))
    assert alone == pytest.approx((2, values.std(ddof=1) / np.sqrt(6)))
