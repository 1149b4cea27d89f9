"""The files for containers, systemd, Kubernetes and nginx are valid, and what they run works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import yaml
from websockets.sync.client import connect

import mosrt
from mosrt.cli.main import main
from tests.conftest import HANG_S

from .servers import clip, serving
from .test_clients import MOS

DEPLOY = Path(mosrt.__file__).parent / "serving" / "deploy"


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options of a command line of `mosrt serve`."""
    command = main.get_command(click.Context(main), "serve")
    assert command is not None
    return command.make_context("serve", list(arguments), resilient_parsing=False).params


def instructions(name: str) -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text()
    return re.findall(rf"^{name} (.*)$", text, re.M)


def test_the_image_runs_the_server_as_a_user_without_rights() -> None:
    (entry,) = instructions("ENTRYPOINT")
    command = json.loads(entry)
    assert command[:2] == ["mosrt", "serve"]
    assert parsed(command[2:])["host"] == "0.0.0.0"
    assert instructions("USER") == ["10001:10001"]
    root = Path(__file__).parents[4]
    for copied in instructions("COPY"):
        if not copied.startswith("--from"):
            for name in copied.split()[:-1]:
                assert (root / name).exists()


def test_the_health_check_of_the_image() -> None:
    (check,) = instructions("HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    assert command[0] == "python"
    with serving() as server:
        healthy = [each.replace("http://127.0.0.1:8000", server.url) for each in command[1:]]
        assert subprocess.run([sys.executable, *healthy]).returncode == 0
        server.end()
        failed = subprocess.run([sys.executable, *healthy], capture_output=True)
        assert failed.returncode == 1


def test_the_server_writes_no_file() -> None:
    """So that its root file system may be read-only, and a full disk does not matter."""
    hook = """
import os, sys
def told(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (
        os.O_WRONLY | os.O_RDWR | os.O_CREAT
    ) and not str(arguments[0]).startswith(("/dev/", "/proc/")):
        os.write(2, f"WRITES {arguments[0]}\\n".encode())
sys.addaudithook(told)
"""
    with serving(python=hook, env={"PYTHONDONTWRITEBYTECODE": "1"}) as server:
        url = f"{server.url}/v1/score"
        assert httpx.post(url, content=clip(), timeout=HANG_S).status_code == 200
        file = ("a.wav", clip() + bytes(3 << 20))
        assert httpx.post(url, files={"file": file}, timeout=HANG_S).status_code == 200
        assert server.end() == 0
        assert "WRITES" not in server.log


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_unit_is_valid(tmp_path: Path) -> None:
    text = (DEPLOY / "mosrt.service").read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
    program, verb, *arguments = shlex.split(command)
    assert (program, verb) == ("/opt/mosrt/bin/mosrt", "serve")
    options = parsed(arguments)
    assert options["uds"] == "/run/mosrt/mosrt.sock"
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.M)
    assert int(stop_s) > options["grace"] + options["drain_delay"]
    unit = tmp_path / "mosrt.service"
    unit.write_text(text.replace("/opt/mosrt/bin/mosrt", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    about = [line for line in (done.stdout + done.stderr).splitlines() if "mosrt.service" in line]
    assert done.returncode == 0, done.stderr
    assert about == []


def test_the_manifest_for_kubernetes() -> None:
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = parsed(container["args"])
    (port,) = container["ports"]
    assert port["containerPort"] == options["port"]
    assert pod["terminationGracePeriodSeconds"] > options["grace"] + options["drain_delay"]
    kinds = ("startupProbe", "readinessProbe", "livenessProbe")
    probes = [container[kind]["httpGet"]["path"] for kind in kinds]
    assert probes == ["/readyz", "/readyz", "/healthz"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert f"USER {pod['securityContext']['runAsUser']}:" in (DEPLOY / "Dockerfile").read_text()
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_nginx_in_front_of_a_unix_socket(tmp_path: Path) -> None:
    """With plain HTTP in place of TLS, which needs a certificate."""
    sock, port = tmp_path / "s", free_port()
    text = (DEPLOY / "nginx.conf").read_text()
    text = text.replace("/run/mosrt/mosrt.sock", str(sock))
    text = re.sub(r"^ *ssl_\w+ .*\n", "", text, flags=re.M)
    text = text.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    folders = "".join(f"{name}_temp_path {tmp_path}/{name};\n" for name in
                      ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))  # fmt: skip
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        f"daemon off; worker_processes 1; pid {tmp_path}/pid; error_log {tmp_path}/error;\n"
        f"{'user root;' if tmp_path.owner() == 'root' else ''}\n"
        f"events {{}}\nhttp {{ access_log off;\n{folders}{text}\n}}\n"
    )
    command = ["nginx", "-p", str(tmp_path), "-e", f"{tmp_path}/error", "-c", str(configuration)]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr
    with serving("--uds", str(sock)) as server:
        nginx = subprocess.Popen(command)
        try:
            url = f"http://127.0.0.1:{port}/v1/score"
            wait(lambda: httpx.get(f"http://127.0.0.1:{port}/v1/models").status_code == 200)
            assert httpx.post(url, content=clip(), timeout=HANG_S).json()["mos"] == MOS
            assert httpx.post(url, content=bytes((16 << 20) + 1)).status_code == 413
            assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 404
            with connect(
                f"ws://127.0.0.1:{port}/v1/stream?sample_rate=16000", proxy=None
            ) as socket_:
                socket_.send(clip()[44:])
                socket_.send('{"type": "end"}')
                *_, end = socket_
            assert json.loads(end)["windows"] == 2
        finally:
            nginx.terminate()
            nginx.wait(HANG_S)
        assert server.end() == 0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait(condition: Any) -> None:
    ends = time.monotonic() + HANG_S
    while time.monotonic() < ends:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError
