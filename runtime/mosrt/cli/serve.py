"""`mosrt serve`: score recordings over HTTP."""

from __future__ import annotations

import ipaddress
import os
from typing import Any

import click

from mosrt.backends import PROVIDERS
from mosrt.host.cpu import usable_cores

from .command import THREADS, FiniteRange, exit_statuses, model_option, require_extra
from .terminal import printable

__all__ = ["serve"]

_SECONDS = FiniteRange(0, 3600)
_POSITIVE = FiniteRange(0, 86_400, min_open=True)


@click.command(short_help="Score recordings over HTTP.", epilog=exit_statuses())
@model_option()
@click.option(
    "--variant", show_default="the reference, fp32", metavar="auto|NAME",
    help="Precision variant, as for `mosrt score`.",
)  # fmt: skip
@click.option(
    "--provider", type=click.Choice(["auto", *PROVIDERS]), default="auto", show_default=True,
    help="Execution provider that runs the model.",
)  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8000, show_default=True,
    help="Port to listen at; 0 for any free one, which is printed.",
)  # fmt: skip
@click.option(
    "--uds", type=click.Path(dir_okay=False), metavar="PATH",
    help="Unix socket to listen at instead; its user and group may connect.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True,
    help="Processes that serve. One uses all cores; with several, one that fails leaves others.",
)  # fmt: skip
@click.option(
    "--threads", type=THREADS,
    help="Recordings that a process scores at once. [default: its share of the cores]",
)  # fmt: skip
@click.option(
    "--token-file", type=click.Path(dir_okay=False),
    help="File with the bearer token that clients must send. Without it, the environment variable "
    "MOSRT_TOKEN may hold one.",
)  # fmt: skip
@click.option(
    "--allow-origin", "origins", multiple=True, metavar="ORIGIN",
    help="Origin whose web pages may call the server, such as https://example.org; may be "
    "repeated.",
)  # fmt: skip
@click.option("--demo", is_flag=True, help="Show a page at / where people can try the model.")
@click.option(
    "--access-log/--no-access-log", default=True,
    help="Write a line of JSON for each request to standard output.  [default: access-log]",
)  # fmt: skip
@click.option(
    "--max-bytes", type=click.IntRange(1), default=16 << 20, show_default=True,
    help="Longest body of a request.",
)  # fmt: skip
@click.option(
    "--max-seconds", type=_POSITIVE, default=300.0, show_default=True, help="Longest recording."
)
@click.option(
    "--max-channels", type=click.IntRange(1, 64), default=8, show_default=True,
    help="Most channels of a recording.",
)  # fmt: skip
@click.option(
    "--max-requests", type=click.IntRange(1, 4096), default=64, show_default=True,
    help="Most requests and streams that a process works on at once.",
)  # fmt: skip
@click.option(
    "--header-timeout", type=_POSITIVE, default=10.0, show_default=True, metavar="SECONDS",
    help="Longest time for the headers of a request.",
)  # fmt: skip
@click.option(
    "--body-timeout", type=_POSITIVE, default=60.0, show_default=True, metavar="SECONDS",
    help="Longest time for a body.",
)  # fmt: skip
@click.option(
    "--drain-delay", type=_SECONDS, default=0.0, show_default=True, metavar="SECONDS",
    help="After SIGTERM, take requests for so long, while /readyz already says no.",
)  # fmt: skip
@click.option(
    "--grace", type=_POSITIVE, default=30.0, show_default=True, metavar="SECONDS",
    help="After that, let accepted requests finish for at most so long.",
)  # fmt: skip
def serve(
    model: str | None, variant: str | None, provider: str, host: str, port: int, uds: str | None,
    workers: int, threads: int | None, token_file: str | None, origins: tuple[str, ...],
    demo: bool, access_log: bool, max_bytes: int, max_seconds: float, max_channels: int,
    max_requests: int, header_timeout: float, body_timeout: float, drain_delay: float,
    grace: float,
) -> None:  # fmt: skip
    """Score recordings over HTTP and WebSocket, until SIGTERM or Ctrl-C.

    \b
    mosrt serve -m nano --demo
    curl --data-binary @speech.wav -H "Content-Type: audio/wav" localhost:8000/v1/score

    /docs describes the API, offline. The server speaks plain HTTP, to this machine only unless
    --host says otherwise: put a proxy before it that speaks TLS.
    """  # noqa: D301 - click's mark for lines to leave alone is the character \b
    with require_extra("serve"):
        from mosrt.serving.http.limits import Limits  # noqa: PLC0415 - an extra
        from mosrt.serving.http.server import TOKEN_VARIABLE, Settings  # noqa: PLC0415
        from mosrt.serving.http.server import serve as run  # noqa: PLC0415

    limits = Limits(
        max_bytes=max_bytes, max_audio_s=max_seconds, max_channels=max_channels,
        max_requests=max_requests, header_timeout_s=header_timeout, body_timeout_s=body_timeout,
    )  # fmt: skip
    scorer: dict[str, Any] = {"variant": variant, "provider": provider}
    if threads is not None or workers > 1:
        scorer["workers"] = threads or max(1, usable_cores() // workers)
    settings = Settings(
        model=model, host=host, port=port, uds=uds, workers=workers, token_file=token_file,
        allow_origins=origins, demo=demo, access_log=access_log, drain_delay_s=drain_delay,
        grace_s=grace, limits=limits, scorer=scorer,
    )  # fmt: skip
    token = token_file is not None or TOKEN_VARIABLE in os.environ
    if uds is None and not token and not _is_loopback(host):
        click.echo(
            f"warning: anyone who reaches {printable(host)} may use this server; set a token with "
            "--token-file, or see that only your proxy does",
            err=True,
        )
    run(settings)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
