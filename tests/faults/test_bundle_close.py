"""A scorer that is closed while it scores lets the calls end, and takes no others."""

import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

import mosrt
from mosrt import ClosedError
from mosrt.backends.ort import OrtBackend
from mosrt.backends.trt import TrtBackend
from mosrt.host.thread_pool import Calls
from mosrt.scorer import Scorer
from tests.conftest import HANG_S

PROVIDERS = ["cpu", "openvino-fp32"]


def opened(bundle: Path, provider: str) -> Scorer:
    if provider != "cpu":
        pytest.importorskip("openvino", reason="openvino is not installed")
    return mosrt.load(bundle, provider=provider, threads=1)


@pytest.fixture(params=["tiny", "tiny_wav2vec"])
def bundle(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("provider", PROVIDERS)
def test_calls_that_run_end_with_their_score(
    bundle: Path, provider: str, speech: npt.NDArray[np.float32]
) -> None:
    with opened(bundle, provider) as scorer:
        right = scorer.score(speech, 16_000).to_dict()
    right.pop("timings_ms", None)
    outcomes: list[Any] = []
    for _ in range(6):
        scorer = opened(bundle, provider)
        start = threading.Barrier(4)

        def score(scorer: Scorer = scorer, start: threading.Barrier = start) -> Any:
            start.wait()
            try:
                return scorer.score(speech, 16_000).to_dict()
            except ClosedError as exc:
                return exc

        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(score) for _ in range(3)]
            start.wait()
            scorer.close()
            outcomes += [call.result() for call in calls]
    for outcome in outcomes:
        if not isinstance(outcome, ClosedError):
            outcome.pop("timings_ms", None)
            assert outcome == right


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_use_after_close_says_so(
    bundle: Path, provider: str, speech: npt.NDArray[np.float32], clips: list[Path]
) -> None:
    scorer = opened(bundle, provider)
    begun = scorer.iter_scores(clips[:3])
    next(begun)
    scorer.close()
    scorer.close()
    uses: list[Callable[[], object]] = [
        lambda: scorer.score(speech, 16_000),
        lambda: scorer.score_file(clips[0]),
        lambda: scorer.score_many(clips[:2]),
        lambda: scorer.iter_scores(clips[:2]),
        lambda: scorer.features(speech, 16_000),
        lambda: list(begun),
    ]
    for use in uses:
        with pytest.raises(ClosedError, match="the scorer is closed; load the model again"):
            use()
    with pickle.loads(pickle.dumps(scorer)) as again:  # which opens the bundle once more
        assert again.score(speech, 16_000).n_views


class Slow(onnxruntime.InferenceSession):  # type: ignore[misc]  # onnxruntime is untyped
    """A session that tells when it runs, and waits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.runs = threading.Event()
        self.may_end = threading.Event()

    def run(self, outputs: Any, feeds: Mapping[str, Any]) -> Any:
        self.runs.set()
        assert self.may_end.wait(HANG_S)
        return super().run(outputs, feeds)


def test_an_ensemble_is_run_whole(
    tiny: Path, speech: npt.NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: list[Slow] = []

    def session(*args: Any, **options: Any) -> Slow:
        slow.append(Slow(*args, **options))
        return slow[-1]

    with mosrt.load(tiny, provider="cpu", threads=1) as scorer:
        right = scorer.score(speech, 16_000, views=1).views
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    scorer = mosrt.load(tiny, provider="cpu", threads=1)
    with ThreadPoolExecutor(2) as pool:
        scoring = pool.submit(scorer.score, speech, 16_000, views=1)
        assert slow[0].runs.wait(HANG_S)
        closing = pool.submit(scorer.close)
        with pytest.raises(futures.TimeoutError):  # not the builtin before Python 3.11
            closing.result(timeout=0.1)
        for one in slow:
            one.may_end.set()
        assert scoring.result().views == right
        closing.result(HANG_S)


def test_backends_alone(tiny: Path, backend: TrtBackend) -> None:
    manifest = mosrt.load(tiny).manifest
    alone = OrtBackend(
        tiny, manifest.variants["fp32"], inputs=manifest.inputs, outputs=manifest.outputs
    )
    for each in (alone, backend):
        each.close()
        with pytest.raises(ClosedError, match="the backend is closed"):
            each.run({}, [])


def test_closing_within_a_call() -> None:
    """As a signal handler does: the last call to end releases."""
    released: list[int] = []
    calls = Calls("it", lambda: released.append(1))
    with calls.one():
        calls.close()
        with calls.one():  # a part of the call that runs
            pass
        assert not released
    assert released == [1]
    calls.close()
    assert released == [1]


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarms")
def test_a_signal_handler_may_close(tiny: Path, clips: list[Path]) -> None:
    code = f"""
import signal, mosrt
scorer = mosrt.load({str(tiny)!r}, provider="cpu")
signal.signal(signal.SIGALRM, lambda *_: scorer.close())
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    while True:
        scorer.score_file({str(clips[0])!r})
except mosrt.ClosedError as exc:
    print(exc)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True
    )
    assert done.stdout == "the scorer is closed; load the model again\n"
