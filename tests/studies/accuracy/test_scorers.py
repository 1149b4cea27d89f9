import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import mosrt
from mosrt_studies.accuracy import scorers as scorers_module
from mosrt_studies.accuracy.scorers import PEERS, ScorerError, Scorers, open_peer

Float32Array = npt.NDArray[np.float32]


def test_every_domain_of_a_model_is_scored(tiny: Path, speech: Float32Array) -> None:
    scorers = Scorers([str(tiny)], None)
    assert scorers.defaults == ("tiny south",)
    found = scorers(speech, 16_000)
    assert tuple(found) == ("tiny north", "tiny south", "tiny east")
    with mosrt.load(tiny, threads=1) as scorer:
        for domain in scorer.domains:
            assert found[f"tiny {domain}"] == scorer.score(speech, 16_000, domain=domain).mos


def test_one_name_twice_is_refused(tiny: Path) -> None:
    with pytest.raises(ScorerError, match="cannot be told apart: tiny, tiny"):
        Scorers([str(tiny), str(tiny)], None)


def test_a_variant_is_a_model_of_its_own(tmp_path: Path, speech: Float32Array) -> None:
    """A variant with the files of "fp32" gives its scores, under its own name."""
    bundle = tmp_path / "model"
    shutil.copytree(Path(mosrt.__file__).parent / "models" / "nano", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["variants"]["fp16"] = manifest["variants"]["fp32"]
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    scorers = Scorers(["nano", f"{bundle}@fp16"], None)
    assert scorers.defaults == ("nano overall", "nano fp16 overall")
    scores, flags = scorers.with_flags(speech, 16_000)
    assert scores["nano bvcc"] == scores["nano fp16 bvcc"]
    assert flags["nano bvcc"] == frozenset()
    _, flags = scorers.with_flags(np.clip(speech * 100, -1, 1), 16_000)
    assert flags["nano bvcc"] == {"clipped"}


def test_an_uncertainty_model_gives_its_measures(speech: Float32Array) -> None:
    scorers = Scorers(["nano-uncertainty"], None)
    assert scorers.defaults == ("nano-uncertainty contrastive.entropy",)
    found = scorers(speech, 16_000)
    with mosrt.load("nano-uncertainty", threads=1) as scorer:
        measures = scorer.score(speech, 16_000).measures
    assert len(found) == len(measures) - 1  # "uncertainty" is one of the others
    assert found["nano-uncertainty paper.max"] == measures["paper.max"]
    assert found["nano-uncertainty contrastive.entropy"] == -measures["uncertainty"]


def test_missing_peers_are_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match="dnsmospro_bvcc.pt is missing; pass --teachers"):
        open_peer("DNSMOS Pro BVCC", tmp_path)
    with pytest.raises(ScorerError, match="dnsmospro_nisqa.pt is missing; pass --teachers"):
        Scorers([str(tiny)], tmp_path / "none", ["DNSMOS Pro NISQA"])


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """A fake peer that records the length and the level of what it scores."""
    heard: list[tuple[int, float]] = []

    def open_peer(_: Path) -> Callable[[Float32Array], float]:
        def score(waveform: Float32Array) -> float:
            heard.append((len(waveform), float(waveform.std())))
            return float("nan") if len(waveform) < 8_000 else 3.0

        return score

    (tmp_path / "fake.onnx").touch()
    monkeypatch.setattr(scorers_module, "PEERS", {"fake": ("fake.onnx", open_peer)})
    return heard


def test_peers_score_at_16_khz(
    tiny: Path, tmp_path: Path, recorded: list[tuple[int, float]]
) -> None:
    scorers = Scorers([str(tiny)], tmp_path, ["fake"])
    waveform = 0.1 * np.sin(np.arange(48_000) / 20).astype(np.float32)
    found = scorers(waveform, 48_000)
    assert found["fake"] == 3.0
    assert tuple(found)[-1] == "fake"
    ((n_samples, rms),) = recorded
    assert n_samples == 16_000
    assert rms == pytest.approx(0.1 / np.sqrt(2), rel=1e-2)
    assert scorers.cpu_ms.keys() == found.keys()
    assert scorers.cpu_ms["tiny north"] == scorers.cpu_ms["tiny south"] > 0


def test_no_score_stops(tiny: Path, tmp_path: Path, recorded: list[tuple[int, float]]) -> None:
    waveform = np.sin(np.arange(4_000) / 5).astype(np.float32)
    with pytest.raises(ScorerError, match="fake gives no score for a clip of 4000 samples"):
        Scorers([str(tiny)], tmp_path, ["fake"])(waveform, 16_000)
    assert len(recorded) == 1


def test_dnsmos_pro_scores_whole_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    class Model:
        def __init__(self, path: Path) -> None:
            assert path == Path("x")

        def __call__(self, waveform: Float32Array) -> float:
            lengths.append(len(waveform))
            return 0.0

    monkeypatch.setattr(scorers_module, "DnsmosPro", Model)
    _, open_peer = PEERS["DNSMOS Pro BVCC"]
    model = open_peer(Path("x"))
    for n_samples in (80_000, 60_000, 160_000, 200_000):
        model(np.zeros(n_samples, np.float32))
    assert lengths == [160_000, 180_000, 160_000, 200_000]
