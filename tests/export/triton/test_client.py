"""The client of model repositories, against a stand-in for the server; see triton_standin.py."""

import importlib.util
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy.special import entr, softmax

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.uncertainty.sampling import SeededSampler
from tests.conftest import DATA
from tests.standins.segments import write_segments_bundle

pytest.importorskip("tritonclient.grpc", reason="needs Triton's schema: tritonclient[grpc]")
from tests.fakes.triton_server import Repository, made, served
from tests.standins.heads import with_heads

CLIP = DATA / "flite_slt_16k_mono.wav"
# The same graphs, kernels and batch of one: nothing but the order of a sum could differ.
SAME = 1e-7


@pytest.fixture(scope="module", params=["nano", "nano-uncertainty", "tiny", "small-segments"])
def model(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    if request.param == "small-segments":
        return str(write_segments_bundle(tmp_path_factory.mktemp("segments") / request.param))
    return str(tiny) if request.param == "tiny" else str(request.param)


@pytest.fixture(scope="module")
def repository(model: str, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return made(tmp_path_factory.mktemp("client") / "repository", model, "--cpu")


@pytest.fixture
def url(repository: Repository) -> Iterator[str]:
    repository.requests.clear()
    with served(repository) as address:
        yield address


@pytest.fixture
def client(repository: Repository) -> Any:
    return opened_client(repository)


def opened_client(repository: Repository) -> Any:
    """The copy of the client that lies in a repository."""
    pytest.importorskip("gevent", reason="needs the HTTP client: tritonclient[http]")
    spec = importlib.util.spec_from_file_location("client", repository.path / "client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scores_are_those_of_mosrt(
    client: Any, url: str, model: str, repository: Repository
) -> None:
    with mosrt.load(model, provider="cpu", threads=1) as scorer:
        wanted = scorer.score_file(CLIP)
    with client.http.InferenceServerClient(url) as server, client.open_scorer(server) as scorer:
        found = scorer.score_file(CLIP)
    assert found.provider == "triton"
    assert (found.n_views, found.windows, found.flags) == (
        wanted.n_views,
        wanted.windows,
        wanted.flags,
    )
    if not wanted.domains:
        assert math.isnan(found.mos)
    else:
        np.testing.assert_allclose(found.views, wanted.views, rtol=SAME, atol=SAME)
        np.testing.assert_allclose(found.mos, wanted.mos, rtol=SAME, atol=SAME)
        np.testing.assert_allclose(
            [found.low, found.high], [wanted.low, wanted.high], rtol=SAME, atol=SAME
        )
    assert found.measures.keys() == wanted.measures.keys()
    for name, value in wanted.measures.items():
        np.testing.assert_allclose(found.measures[name], value, rtol=SAME, atol=SAME)
    steps = {name.rpartition("_")[2] for name in repository.requests}
    assert (
        steps
        == {
            "nano": {"nano"},
            "nano-uncertainty": {"encoder", "contrast", "dense"},
            "tiny": {"tiny", "fold0", "fold1", "mean"},
            "small-segments": {"small-segments"},
        }[Path(model).name]
    )


def test_the_command_prints_a_line_per_file(client: Any, url: str, repository: Repository) -> None:
    """As people run it, from another folder."""
    result = subprocess.run(
        [sys.executable, repository.path / "client.py", CLIP, CLIP, "--url", url],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["file"] == str(CLIP)
    assert first["mos"] == second["mos"]
    assert first["provider"] == "triton"
    assert repository.path == client.HERE


def test_a_refused_request_is_the_servers_error(client: Any, url: str) -> None:
    with client.http.InferenceServerClient(url) as server:
        backend = client.TritonBackend(server, "nothing")
        with pytest.raises(client.http.InferenceServerException, match="nothing"):
            backend.run({"images": np.zeros((1, 2), np.float32)}, ["mos"])


def test_the_ensemble_averages_its_networks(tiny: Path, tmp_path: Path) -> None:
    """Without a client of ours: any client that sends views is given the mean over networks."""
    repository = made(tmp_path / "repository", tiny, "--cpu")
    rng = np.random.default_rng(0)
    feeds = {
        "waveform": rng.standard_normal((3, 48_000), np.float32),
        "images": rng.random((3, 8, 512, 512), np.float32),
    }
    found = repository.infer("tiny", feeds, ["mos", "mos_networks"])
    apart = [repository.infer(f"tiny_fold{i}", feeds, ["mos"])["mos"] for i in range(2)]
    assert found["mos_networks"].shape == (3, 2, 3)
    np.testing.assert_array_equal(found["mos_networks"], np.stack(apart, axis=1))
    # Two float32 values of about 3: half a unit in the last place.
    np.testing.assert_allclose(found["mos"], np.mean(apart, axis=0, dtype=np.float64), atol=3e-7)


def test_the_mean_of_a_recordings_views(tiny: Path, tmp_path: Path) -> None:
    """The ensemble's mean over networks, averaged over views, is the score."""
    from mosrt.audio.recording import Recording
    from mosrt.audio.sources import FileSource
    from mosrt.mos.scorer import FusionFrontEnd

    repository = made(tmp_path / "repository", tiny, "--cpu")
    manifest = Bundle.open(tiny).manifest
    front_end = FusionFrontEnd(manifest)
    recording = Recording(FileSource(CLIP), manifest.sample_rate_hz, remove_silence=False)
    plan = mosrt.CropPlan.grid(recording.n_samples, geometry=front_end.geometry)
    views = list(front_end.views(recording, plan))
    feeds = {name: np.stack([view[name] for view in views]) for name in views[0]}
    column = manifest.domains.index(manifest.default_domain)
    found = repository.infer("tiny", feeds, ["mos"])["mos"][:, column]
    with mosrt.load(tiny, provider="cpu", threads=1) as scorer:
        wanted = scorer.score_file(CLIP).mos
    # Views in one batch and not one by one: other kernels, a few units in the last place of 3.
    np.testing.assert_allclose(found.mean(dtype=np.float64), wanted, atol=1e-5)


def test_the_stages_in_one_request(tmp_path: Path) -> None:
    """From a waveform and distractors to logits; the entropy is derived here, not by mosrt."""
    repository = made(tmp_path / "repository", "nano-uncertainty", "--cpu")
    spec = Bundle.open(find_bundle("nano-uncertainty")).manifest.uncertainty
    assert spec is not None
    assert spec.contrast is not None
    clip, rate_hz = soundfile.read(CLIP, dtype="float32")
    n_frames = (len(clip) - spec.receptive_samples) // spec.hop_samples + 1
    negatives = SeededSampler(spec.seed, 0).negatives(spec.contrast.n_negatives, n_frames)
    feeds = {"waveform": clip[np.newaxis], "negatives": negatives[np.newaxis]}
    logits = repository.infer("nano-uncertainty", feeds, ["logits"])["logits"][0]
    rows = np.concatenate(
        [
            logits[spec.contrast.first_horizon + step :, step]
            for step in range(spec.contrast.n_steps)
        ]
    )
    entropy = entr(softmax(rows.astype(np.float64), axis=1)).sum(axis=1).mean()
    with mosrt.load("nano-uncertainty", provider="cpu", threads=1) as scorer:
        wanted = scorer.score(clip, rate_hz).measures["contrastive.entropy"]
    # float64 from the same float32 logits on.
    assert entropy == pytest.approx(wanted, rel=1e-9)
    assert [re.sub(".*_", "", name) for name in repository.requests] == [
        "nano-uncertainty",
        "encoder",
        "contrast",
    ]


@pytest.mark.parametrize("source", ["nano", "tiny"])
def test_domains_outside_of_the_graph_become_part_of_it(
    source: str, tiny: Path, tmp_path: Path
) -> None:
    """Each network of an ensemble has them before the mean, as in mosrt."""
    adapted = with_heads(tiny if source == "tiny" else find_bundle("nano"), tmp_path / "adapted")
    repository = made(tmp_path / "repository", adapted, "--cpu")
    with mosrt.load(adapted, provider="cpu", threads=1) as scorer:
        wanted = scorer.score_file(CLIP)
    module = opened_client(repository)
    with (
        served(repository) as address,
        module.http.InferenceServerClient(address) as server,
        module.open_scorer(server) as scorer,
    ):
        found = scorer.score_file(CLIP)
    assert (found.domain, list(found.domains)) == ("sum", list(wanted.domains))
    np.testing.assert_allclose(found.views, wanted.views, atol=1e-5)
    assert found.domains["curve"] == pytest.approx(wanted.domains["curve"], abs=1e-2)
