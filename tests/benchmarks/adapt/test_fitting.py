"""Heads are fitted to simulated listening tests whose true map is known."""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import Manifest
from mosrt.cli.ratings import Rating
from mosrt_bench.adapt.fitting import RatedClips, fit_head, folds, grouped_mean
from mosrt_bench.adapt.validation import decide, predictions, report_text, validate

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
        accepted += not decide(clips, "ours")[1]["reasons"]
    assert accepted <= 1


def test_what_the_model_predicts_already_is_refused() -> None:
    _, noise, systems, outputs = simulated(200, 20)
    report = validate(rated(outputs["mos"][:, 3] + noise, systems, outputs), "ours")
    assert not report["accepted"]
    gains = report["decision"]["mse_gain"]
    assert list(gains) == ["fidelity", "mean rating"]
    assert gains["mean rating"]["interval"][0] > 0


def test_a_domain_that_orders_clips_worse_is_not_called_better() -> None:
    """One domain is close in all clips; another orders them better, with two outliers."""
    rng = np.random.default_rng(0)
    _, _, systems, outputs = simulated(18, 6)
    quality = np.linspace(-1, 1, 18)
    outputs["mos"] = np.full((18, 5), 2.0)
    outputs["mos"][:, 1] += 0.3 * quality + rng.normal(0, 0.1, 18)
    outputs["mos"][:, 2] += 0.3 * quality + rng.normal(0, 0.01, 18)
    outputs["mos"][[0, 17], 2] += [-0.8, 0.8]
    clips = rated(4 + 0.5 * quality, systems, outputs)
    free = predictions(clips, "ours")
    assert (
        np.argmin(
            [np.square(free.mos[f"{name}, affine"] - clips.mos).mean() for name in NANO.domains]
        )
        == 1
    )
    _, decision = decide(clips, "ours")
    assert (decision["best_order"], decision["order_of"], decision["reasons"]) == (
        "p808",
        "p808",
        [],
    )
    assert decision["ktau"]["ours"] == decision["ktau"]["p808"]
    assert "ours is a straight line of p808" in report_text(validate(clips, "ours"))


def test_a_head_that_keeps_the_order_of_a_domain() -> None:
    _, noise, systems, outputs = simulated(60, 12)
    clips = rated(1.0 + 0.6 * outputs["mos"][:, 2] + noise, systems, outputs)
    head = fit_head(clips, everything(clips), order_of="p808")
    assert (head.kind, list(head.weights)) == ("affine", ["mos"])
    assert np.array_equal(np.argsort(head(outputs)), np.argsort(outputs["mos"][:, 2]))
    kept = predictions(clips, "ours", order_of="p808")
    assert np.array_equal(kept.order["ours"], clips.scores["p808"])


def test_a_left_out_system_does_not_turn_the_order_round() -> None:
    """Straight lines of any domain that are fitted without a system order as the domain does."""
    _, noise, systems, outputs = simulated(12, 6, seed=3)
    clips = rated(3 + 0.05 * outputs["mos"][:, 2] + noise, systems, outputs)
    rows = validate(clips, "ours")["levels"]["utterance"]
    for name in NANO.domains:
        assert rows[f"{name}, affine"]["srcc"] == rows[name]["srcc"]
        assert rows[f"{name}, affine"]["mse"] != rows[name]["mse"]


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
    groups = np.array([4, 1, 4, 2, 2, 7, 1, 9])[:, None]
    found = list(folds(groups, 3))
    assert np.array_equal(np.sum([test for _, test in found], axis=0), np.ones(8))
    for fitted, test in found:
        assert np.array_equal(fitted, ~test)
        assert not set(groups[test, 0]) & set(groups[fitted, 0])
    assert len(list(folds(np.zeros((6, 1), int), 5))) == 5


def test_folds_keep_systems_and_speakers_apart() -> None:
    """Each of 6 systems with each of 5 speakers: neither of a tested clip is fitted to."""
    groups = np.stack(np.meshgrid(np.arange(6), np.arange(5)), axis=-1).reshape(-1, 2)
    found = list(folds(groups, 10))
    assert np.array_equal(np.sum([test for _, test in found], axis=0), np.ones(30))
    for fitted, test in found:
        assert fitted.sum() >= 12
        for column in groups.T:
            assert not set(column[test]) & set(column[fitted])


@pytest.mark.parametrize(
    ("speaker_of", "grouped_by"),
    [
        (lambda i: f"v{i % 7}", "system and speaker"),
        (lambda i: f"v{i % 20}", "system"),  # each speaker has one system
        (lambda i: f"v{i % 10 // 2}", "speaker"),  # each system has one speaker
        (lambda i: f"v{i % 10}", "system"),  # both
        (lambda i: f"v{i % 3}", "system"),  # too few to tell
        (lambda _: None, "system"),
    ],
)
def test_systems_and_speakers_are_kept_apart_where_both_tell_something(
    speaker_of: Callable[[int], str | None], grouped_by: str
) -> None:
    _, _, _, outputs = simulated(70, 10)
    ratings = [
        Rating(path=f"{i}.wav", mos=3 + i % 2, system=f"s{i % 10}", speaker=speaker_of(i))
        for i in range(70)
    ]
    clips = RatedClips(ratings, outputs, NANO)
    assert clips.grouped_by == grouped_by
    assert clips.groups.shape == (70, 2 if " and " in grouped_by else 1)


def test_a_speaker_that_leaks_does_not_flatter() -> None:
    """Ratings follow the speaker, whom features tell: other speakers cannot be predicted."""
    rng = np.random.default_rng(0)
    n, n_speakers = 120, 6
    speaker = np.arange(n) % n_speakers
    outputs = {"mos": rng.normal(3, 0.4, (n, 5)), "spec_features": np.zeros((n, 448))}
    outputs["spec_features"][:, :n_speakers] = np.eye(n_speakers)[speaker]
    mos = 3 + rng.permutation(np.linspace(-1, 1, n_speakers))[speaker] + rng.normal(0, 0.1, n)
    accepted = {}
    for known in (False, True):
        ratings = [
            Rating(path=f"{i}.wav", mos=float(value), system=f"s{i // n_speakers}",
                   speaker=f"v{who}" if known else None)
            for i, (value, who) in enumerate(zip(np.clip(mos, 1, 5), speaker, strict=True))
        ]  # fmt: skip
        accepted[known] = not decide(RatedClips(ratings, outputs, NANO), "ours")[1]["reasons"]
    assert accepted == {False: True, True: False}


def test_the_error_of_a_mean_is_that_of_groups() -> None:
    values, groups = np.array([1.0, 1, 1, 3, 3, 3]), np.array([0, 0, 0, 1, 1, 1])[:, None]
    assert grouped_mean(values, groups) == pytest.approx((2, 1))
    both = np.concatenate([np.arange(6)[:, None], groups], axis=1)
    assert grouped_mean(values, both) == pytest.approx((2, 1))  # the larger of the two
    alone = grouped_mean(values, np.arange(6)[:, None])
    assert alone == pytest.approx((2, values.std(ddof=1) / np.sqrt(6)))
