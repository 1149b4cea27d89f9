"""Models that predict their own error, and models whose scores the runtime limits to a range."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.deviation_spec import DeviationSpec
from mosrt.bundle.domain_head import DomainHead
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.writer import write_manifest
from mosrt.cli.main import main
from tests.conftest import DATA
from tests.standins.segments import SEGMENT, write_segments_bundle

CLIP = DATA / "flite_kal_8k_mono.wav"
RATE_HZ = 16_000
Z = 1.959964


def noise(n_samples: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(0, 0.1, n_samples).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segments_bundle(tmp_path_factory.mktemp("segments") / "bundle")


def with_fields(bundle: Path, out: Path, **fields: Any) -> Path:
    """A copy of a bundle with other fields in its manifest."""
    out.mkdir()
    for file in bundle.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    write_manifest(out, dataclasses.replace(Bundle.open(bundle).manifest, **fields))
    return out


def as_json(manifest: Manifest) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(manifest.to_dict()))
    return plain


def test_one_view_has_the_interval_of_its_domain(bundle: Path) -> None:
    clip = noise(SEGMENT)
    with mosrt.load(bundle, threads=1) as scorer:
        overall, codec, loud = (
            scorer.score(clip, RATE_HZ, domain=name) for name in ("overall", "codec", "noise")
        )
        (of_noise, of_overall), *_ = scorer.features(clip, RATE_HZ)["mos_deviation"][0].tolist()
    assert overall.n_views == codec.n_views == loud.n_views == 1
    assert overall.high - overall.mos == pytest.approx(Z * 2.0 * of_overall, rel=1e-5)
    assert loud.mos - loud.low == pytest.approx(Z * 1.5 * of_noise, rel=1e-5)
    assert math.isnan(codec.low)  # nothing is predicted for it
    assert math.isnan(codec.high)
    assert overall.domains == codec.domains == loud.domains


def test_several_views_add_their_spread(bundle: Path, tmp_path: Path) -> None:
    clip = np.concatenate([noise(SEGMENT), 0.1 * np.sin(np.arange(SEGMENT, dtype=np.float32))])
    plain = with_fields(bundle, tmp_path / "plain", deviation=None)
    halves = {}
    for path in (bundle, plain):
        with mosrt.load(path, threads=1) as scorer:
            score = scorer.score(clip, RATE_HZ)
            deviation = 2.0 * scorer.features(clip, RATE_HZ)["mos_deviation"][0, :, 1].mean()
        assert score.n_views == 4
        halves[path] = score.high - score.mos
    assert min(halves.values()) > 0
    assert halves[bundle] == pytest.approx(math.hypot(halves[plain], Z * deviation), rel=1e-5)


def test_scores_and_intervals_stay_in_the_range(bundle: Path, tmp_path: Path) -> None:
    with mosrt.load(bundle, threads=1) as scorer:
        free = scorer.score(noise(SEGMENT), RATE_HZ)
    least, most = (round(free.mos + by, 2) for by in (0.1, 0.2))
    head = DomainHead(
        kind="affine", weights={"mos": (1.0, 0.0, 0.0)}, bias=0.0, n_clips=9, description="ours"
    )
    other = with_fields(
        bundle, tmp_path / "other", mos_range=(least, most), heads={"ours": head},
        default_domain="ours",
    )  # fmt: skip
    with mosrt.load(other, threads=1) as scorer:
        ours = scorer.score(noise(SEGMENT), RATE_HZ)
        limited = scorer.score(noise(SEGMENT), RATE_HZ, domain="overall")
    assert (limited.mos, limited.views, limited.low) == (least, (least,), least)
    assert limited.high <= most
    # A domain that the runtime computes reads what the graph gives, and has no deviation.
    assert ours.mos == pytest.approx(free.mos)
    assert math.isnan(ours.low)


@pytest.mark.parametrize("n_samples", [1_700, 16_000, 17_000, 47_000])
def test_a_short_clip_costs_what_it_is_long_and_scores_the_same(
    bundle: Path, n_samples: int
) -> None:
    """In batches, all inputs have the length of a segment."""
    found = []
    for batch_size in (1, 2):
        with mosrt.load(bundle, threads=1, batch_size=batch_size) as scorer:
            found.append(scorer.score(noise(n_samples), RATE_HZ))
    for field in ("mos", "low", "high"):
        first, second = (getattr(score, field) for score in found)
        assert first == pytest.approx(second, abs=1e-5)


def test_the_manifest_tells_both(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert as_json(manifest)["deviation"] == {
        "tensor": "mos_deviation",
        "domains": ["noise", "overall"],
        "factors": [1.5, 2.0],
    }
    assert Manifest.from_dict(as_json(manifest)) == manifest
    plain = dataclasses.replace(manifest, deviation=None, mos_range=()).to_dict()
    assert not {"deviation", "mos_range"} & plain.keys()
    shown = CliRunner().invoke(main, ["info", str(bundle)], catch_exceptions=False).stdout
    lines = dict(line.split("  ", 1) for line in shown.splitlines() if "  " in line)
    assert lines["scores"].strip() == "limited to 1 to 5"
    assert "deviation for noise (times 1.5), overall (times 2)" in lines["interval"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"deviation": {"tensor": "mos", "domains": ["codec"], "factors": [1.0]}}, "be an output"),
        (
            {"deviation": {"tensor": "mos_deviation", "domains": ["a", "b"], "factors": [1, 1]}},
            "among domains",
        ),
        (
            {"deviation": {"tensor": "mos_deviation", "domains": ["codec"], "factors": [1, 1]}},
            "a factor for each",
        ),
        (
            {"deviation": {"tensor": "mos", "domains": ["codec", "noise"], "factors": [1, 0]}},
            "above 0",
        ),
        ({"mos_range": [5, 1]}, "smallest"),
        ({"mos_range": [3]}, "smallest"),
    ],
)
def test_what_contradicts_itself_is_refused(
    bundle: Path, fields: dict[str, Any], message: str
) -> None:
    plain = as_json(Bundle.open(bundle).manifest)
    with pytest.raises(mosrt.BundleError, match=message):
        Manifest.from_dict(plain | fields)


def test_models_that_give_no_mos_have_neither() -> None:
    plain = Bundle.open(Path(mosrt.__file__).parent / "models" / "nano-uncertainty").manifest
    spec = DeviationSpec(tensor="features", domains=("zero-shot",), factors=(1.0,))
    for fields in ({"deviation": spec}, {"mos_range": (1.0, 5.0)}):
        with pytest.raises(mosrt.BundleError, match="predict MOS"):
            Manifest.from_dict(as_json(dataclasses.replace(plain, **fields)))
