"""Forks of a process that has a scorer: children score the same bits, and end."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import HANG_S

from .machines import CLIP

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

START = """
import os, signal, sys, threading, time
import mosrt
clip, model, provider, threads = sys.argv[1:5]
scorer = mosrt.load(model, provider=provider, threads=int(threads), cache=False)
def scored():
    score = scorer.score_file(clip)
    return score.views, tuple(score.measures.items())
expected = scored()
def child(do):
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(600)
    do()
    sys.exit(7)
def check(pid):
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 7, status
def compare():
    assert scored() == expected
"""


def run(code: str, model: str = "nano", provider: str = "cpu", threads: int = 2) -> None:
    if provider != "cpu" and find_spec("openvino") is None:
        pytest.skip("needs openvino")
    # Python 3.12 and later warn of forks of a process that has threads.
    command = [sys.executable, "-W", "ignore", "-c", START + code]
    arguments = [str(CLIP), model, provider, str(threads)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("provider", ["cpu", "openvino-fp32"])
@pytest.mark.parametrize(
    "do", ["lambda: None", "compare", "scorer.close", "lambda: globals().pop('scorer')"]
)
def test_a_child_ends(do: str, provider: str) -> None:
    run(f"check(child({do}))\ncompare()", provider=provider)


def test_a_child_of_a_model_that_measures_uncertainty() -> None:
    run("check(child(compare))\ncompare()", model="nano-uncertainty")


def test_a_grandchild() -> None:
    run("check(child(lambda: check(child(compare))))")


def test_a_child_scores_in_several_threads() -> None:
    run(
        """
def many():
    wrong = []
    def work():
        if scored() != expected:
            wrong.append(1)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not wrong
check(child(many))
""",
        threads=4,
    )


def test_a_child_loads_a_model_of_its_own() -> None:
    run(
        """
def again():
    with mosrt.load(model, threads=2, cache=False) as own:
        assert own.score_file(clip).views == expected[0]
check(child(again))
"""
    )


@pytest.mark.full
@pytest.mark.parametrize("provider", ["cpu", "openvino-fp32"])
def test_forks_while_other_threads_score(provider: str) -> None:
    """No lock of the engine, of NumPy or of libsndfile is inherited."""
    run(
        """
stop = False
def work():
    while not stop:
        compare()
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
try:
    for _ in range(10):
        check(child(compare))
finally:
    stop = True
    for thread in threads: thread.join()
compare()
""",
        provider=provider,
    )


def test_a_fork_waits_for_matrix_products() -> None:
    """A lock of NumPy's is held for too short a time to be met by chance."""
    run(
        """
from mosrt.mel.front_end import MelFrontEnd
images, inside, entered = MelFrontEnd.images, 0, threading.Event()
def slow(*arguments):
    global inside
    inside += 1
    entered.set()
    time.sleep(0.2)
    made = images(*arguments)
    inside -= 1
    return made
MelFrontEnd.images = slow
thread = threading.Thread(target=compare)
thread.start()
entered.wait()
def outside():
    assert not inside
check(child(outside))
thread.join()
"""
    )


def test_forks_of_several_threads_at_once() -> None:
    run(
        """
def fork():
    for _ in range(3):
        compare()
        check(child(compare))
threads = [threading.Thread(target=fork) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
compare()
"""
    )


APP = """
import mosrt
scorer = mosrt.load(threads=2)

def app(environ, start_response):
    score = scorer.score_file(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr(score.views).encode()]
"""


@pytest.mark.skipif(find_spec("gunicorn") is None, reason="needs gunicorn")
def test_gunicorn_with_preload(tmp_path: Path) -> None:
    """It ends at once when it is told to, and not after its time of grace."""
    import mosrt

    (tmp_path / "served.py").write_text(APP)
    options = ["--preload", "--workers", "2", "--bind", "127.0.0.1:0", "--timeout", "900"]
    options += ["--graceful-timeout", "120", "--no-control-socket"]
    if b"--no-control-socket" not in subprocess.check_output(
        [sys.executable, "-m", "gunicorn", "--help"]
    ):
        options.pop()
    log = tmp_path / "log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "gunicorn", *options, "served:app"],
            cwd=tmp_path,
            stderr=stream,
        )
    try:
        port = _port(log)
        with mosrt.load(threads=2) as scorer:
            expected = repr(scorer.score_file(CLIP).views)
        for _ in range(4):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
            connection.request("POST", "/", CLIP.read_bytes())
            assert connection.getresponse().read().decode() == expected
            connection.close()
        server.send_signal(signal.SIGTERM)
        assert server.wait(HANG_S) == 0, log.read_text()
    finally:
        server.kill()
        server.wait()
    assert "SIGKILL" not in log.read_text()


def _port(log: Path) -> int:
    for _ in range(9000):
        found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", log.read_text())
        if found and log.read_text().count("Booting worker") == 2:
            return int(found[1])
        time.sleep(0.1)
    raise AssertionError(log.read_text())
