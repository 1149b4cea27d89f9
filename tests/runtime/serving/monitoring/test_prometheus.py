"""Metrics, rules and dashboard, checked with Prometheus itself."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import string
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server

import mosrt
from tests.conftest import HANG_S

from .conftest import FREE, MakeMonitor

Pcm = npt.NDArray[np.int16]
FILES = files("mosrt.serving.monitoring") / "files"
RULES = "prometheus-rules.yml"
METRIC = re.compile(r"\bmosrt_\w+")

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="needs Debian's package prometheus",
)


@pytest.fixture
def metrics(make_monitor: MakeMonitor, registry: CollectorRegistry, pcm: Pcm) -> str:
    """What a monitor exports that has every metric."""
    monitor = make_monitor(labels=("voice",), warm_up_clips=20, max_clip_s=10.0)
    for i in range(21):
        monitor.offer(pcm[i:4_000], 16_000, voice="amy")
    monitor.offer(pcm[:0], 16_000)
    monitor.offer(pcm[:100], 16_000)
    monitor.offer(0 * pcm, 16_000)
    assert monitor.flush(HANG_S)
    return generate_latest(registry).decode()


def promtool(*arguments: str, text: str = "") -> str:
    command = ["promtool", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_prometheus
def test_metrics_follow_the_rules_of_prometheus(metrics: str) -> None:
    assert promtool("check", "metrics", text=metrics) == ""


@needs_prometheus
def test_alert_rules(tmp_path: Path) -> None:
    with as_file(FILES) as folder:
        shutil.copy(folder / RULES, tmp_path)
    assert "6 rules found" in promtool("check", "rules", str(tmp_path / RULES))
    test = shutil.copy(Path(__file__).with_name("prometheus-rules-test.yml"), tmp_path)
    assert "SUCCESS" in promtool("test", "rules", str(test))


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / "grafana-dashboard.json").read_text())
    return found


def queries() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def test_every_metric_that_is_asked_for_exists(metrics: str) -> None:
    exported = set(re.findall(r"^(mosrt_\w+)", metrics, re.MULTILINE))
    asked = set(METRIC.findall(" ".join(queries()) + (FILES / RULES).read_text()))
    assert len(asked) > 12
    assert asked <= exported
    # The dashboard shows all of them, whatever their suffix.
    families = set(re.findall(r"^# TYPE (mosrt_\w+)", metrics, re.MULTILINE))
    shown = set(METRIC.findall(" ".join(queries())))
    assert {f for f in families if not f.endswith("_created")} <= {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in shown
    }


def test_the_dashboard_is_well_formed() -> None:
    found = dashboard()
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in found["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(found)))
    builtin = {name for name in used if name.startswith("__")}
    assert used - builtin == variables
    assert builtin <= {"__rate_interval", "__range", "__all", "__auto"}
    for one, other in itertools.combinations((panel["gridPos"] for panel in panels), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, path: str, **query: str) -> Any:
    url = f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=HANG_S) as answer:
        found = json.load(answer)
    assert found["status"] == "success", found
    return found["data"]


@needs_prometheus
def test_a_real_prometheus_scrapes_a_real_run(
    make_monitor: MakeMonitor, registry: CollectorRegistry, pcm: Pcm, tmp_path: Path
) -> None:
    """It reads the metrics, loads the rules, and answers every query of the dashboard."""
    monitor = make_monitor(labels=("voice",))
    server, _ = start_http_server(0, addr="127.0.0.1", registry=registry)
    port, target = free_port(), f"127.0.0.1:{server.server_port}"
    with as_file(FILES) as folder:
        shutil.copy(folder / RULES, tmp_path)
    (tmp_path / "prometheus.yml").write_text(
        "global: { scrape_interval: 1s, evaluation_interval: 1s }\n"
        f"rule_files: [{RULES}]\n"
        f"scrape_configs: [{{ job_name: tts, static_configs: [{{ targets: ['{target}'] }}] }}]\n"
    )
    options = [
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *options], stdout=log, stderr=log)
    try:
        ends, scored = time.monotonic() + HANG_S, 0.0
        while scored < 3 and time.monotonic() < ends:
            assert process.poll() is None, (tmp_path / "log").read_text()
            monitor.offer(pcm[:8_000], 16_000, voice="amy")
            time.sleep(0.2)
            try:
                found = ask(port, "/api/v1/query", query="mosrt_monitor_clips_scored_total")
            except OSError:  # not listening yet
                continue
            scored = float(found["result"][0]["value"][1]) if found["result"] else 0.0
        assert scored >= 3, (tmp_path / "log").read_text()
        (active,) = ask(port, "/api/v1/targets")["activeTargets"]
        assert (active["health"], active["lastError"]) == ("up", "")
        (group,) = ask(port, "/api/v1/rules")["groups"]
        assert len(group["rules"]) == 6
        assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
        values = {"__rate_interval": "1m", "__range": "1h", "job": ".*"}
        for query in queries():
            ask(port, "/api/v1/query", query=string.Template(query).substitute(values))
        found = ask(port, "/api/v1/query", query="mosrt_model_info")["result"][0]["metric"]
        assert (found["model"], len(found["digest"])) == ("nano", 64)
    finally:
        process.terminate()
        process.wait(HANG_S)
        server.shutdown()
        server.server_close()


MULTIPROCESS = f"""
import os
import numpy as np
import prometheus_client
from prometheus_client import multiprocess
import mosrt

monitor = mosrt.Monitor("nano", labels=("voice",), **{FREE})
clip = np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)

def offer(count):
    for _ in range(count):
        assert monitor.offer(clip, 16_000, voice="amy")
    assert monitor.flush(600)

offer(1)
for count in (2, 3):
    if (child := os.fork()) == 0:
        offer(count)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
registry = prometheus_client.CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
for name, labels in (
    ("clips_offered_total", {{}}), ("clips_scored_total", {{}}), ("mos_count", {{"voice": "amy"}})
):
    print(registry.get_sample_value(f"mosrt_monitor_{{name}}", labels))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_are_added_in_multiprocess_mode(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", MULTIPROCESS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANG_S)
    assert done.stdout == "6.0\n6.0\n6.0\n", done.stderr


def test_the_default_registry(pcm: Pcm) -> None:
    with mosrt.Monitor("nano", **FREE) as monitor:  # type: ignore[arg-type]
        monitor.offer(pcm, 16_000)
        assert monitor.flush(HANG_S)
        assert "mosrt_monitor_clips_scored_total 1.0" in generate_latest().decode()
    assert "mosrt_" not in generate_latest().decode()
