from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import mosrt
from mosrt_studies.accuracy import peers as peers_module
from mosrt_studies.accuracy.peers import PeerError, Peers

Float32Array = npt.NDArray[np.float32]


def test_every_domain_of_a_model_is_scored(tiny: Path, speech: Float32Array) -> None:
    peers = Peers([str(tiny)], None)
    assert peers.defaults == ("tiny south",)
    found = peers(speech, 16_000)
    assert tuple(found) == ("tiny north", "tiny south", "tiny east")
    with mosrt.load(tiny, threads=1) as scorer:
        for domain in scorer.domains:
            assert found[f"tiny {domain}"] == scorer.score(speech, 16_000, domain=domain).mos


def test_one_name_twice_is_refused(tiny: Path) -> None:
    with pytest.raises(PeerError, match="cannot be told apart: tiny, tiny"):
        Peers([str(tiny), str(tiny)], None)


def test_missing_teachers_are_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="dnsmospro_nisqa.pt missing; pass --teachers"):
        Peers([str(tiny)], tmp_path / "none")


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Fake teachers that record the length and the level of what they score."""
    recorded: list[tuple[int, float]] = []

    def load(_: Path) -> dict[str, Callable[[Float32Array], float]]:
        def score(waveform: Float32Array) -> float:
            recorded.append((len(waveform), float(waveform.std())))
            return float("nan") if len(waveform) < 8_000 else 3.0

        return {"fake": score}

    monkeypatch.setattr(peers_module, "_load_teachers", load)
    return recorded


def test_teachers_score_at_16_khz(
    tiny: Path, tmp_path: Path, teachers: list[tuple[int, float]]
) -> None:
    peers = Peers([str(tiny)], tmp_path)
    waveform = 0.1 * np.sin(np.arange(48_000) / 20).astype(np.float32)
    found = peers(waveform, 48_000)
    assert found["fake"] == 3.0
    assert tuple(found)[-1] == "fake"
    ((n_samples, rms),) = teachers
    assert n_samples == 16_000
    assert rms == pytest.approx(0.1 / np.sqrt(2), rel=1e-2)


def test_no_score_stops(tiny: Path, tmp_path: Path, teachers: list[tuple[int, float]]) -> None:
    waveform = np.sin(np.arange(4_000) / 5).astype(np.float32)
    with pytest.raises(PeerError, match="fake gives no score for a clip of 4000 samples"):
        Peers([str(tiny)], tmp_path)(waveform, 16_000)
    assert len(teachers) == 1


def test_dnsmos_pro_scores_whole_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    class Model:
        def __init__(self, path: Path) -> None:
            assert path == Path("x")

        def __call__(self, waveform: Float32Array) -> float:
            lengths.append(len(waveform))
            return 0.0

    monkeypatch.setattr(peers_module, "DnsmosPro", Model)
    model = peers_module._Repeated(Path("x"))
    for n_samples in (80_000, 60_000, 160_000, 200_000):
        model(np.zeros(n_samples, np.float32))
    assert lengths == [160_000, 180_000, 160_000, 200_000]
