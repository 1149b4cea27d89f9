"""WS /v1/stream: PCM in, a score for each window and a running mean out."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from mosrt.audio.guards import MAX_RATE_HZ, MIN_DURATION_S, MIN_RATE_HZ
from mosrt.score import Score

from .access import note
from .problems import Problem
from .requests import Clip, Options, merged, parse_number
from .service import Service

__all__ = ["Streaming"]

_SAMPLE: Final = np.dtype("<i2")
_END: Final = {"type": "end"}
_MIN_WINDOW_S: Final = 0.5
_MAX_WINDOW_S: Final = 30.0
# Codes of RFC 6455.
_NORMAL, _ENDING, _REFUSED, _TRY_LATER = 1000, 1012, 1008, 1013
_CODES: Final = {"unavailable": _ENDING, "overloaded": _TRY_LATER}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Windows:
    """How a stream is cut: windows of `length` samples, `hop` apart, all channels counted once."""

    rate_hz: int
    channels: int
    length: int
    hop: int

    @classmethod
    def parse(cls, values: Mapping[str, Any], max_channels: int) -> _Windows:
        """Reads it from the query; a Problem if it is wrong."""
        if "sample_rate" not in values:
            raise Problem("bad-request", "sample_rate is missing in the query")
        rate_hz = int(
            parse_number("sample_rate", values["sample_rate"], MIN_RATE_HZ, MAX_RATE_HZ, whole=True)
        )
        channels = int(
            parse_number("channels", values.get("channels", 1), 1, max_channels, whole=True)
        )
        window_s = parse_number("window_s", values.get("window_s", 4), _MIN_WINDOW_S, _MAX_WINDOW_S)
        hop_s = parse_number("hop_s", values.get("hop_s", window_s), _MIN_WINDOW_S, window_s)
        return cls(
            rate_hz=rate_hz,
            channels=channels,
            length=round(window_s * rate_hz),
            hop=round(hop_s * rate_hz),
        )


class Streaming:
    """The endpoint /v1/stream.

    Args:
        service: What scores.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def stream(self, socket: WebSocket) -> None:
        """Scores a stream until the client ends it."""
        values = merged({}, *({k: v} for k, v in socket.query_params.multi_items()))
        own = {k: values.pop(k, None) for k in ("sample_rate", "channels", "window_s", "hop_s")}
        windows = _Windows.parse(
            {k: v for k, v in own.items() if v is not None}, self._service.limits.max_channels
        )
        options = Options.parse(values, self._service.limits)
        await socket.accept()
        try:
            with self._service.streaming():
                await _Stream(socket, self._service, windows, options).run()
        except Problem as problem:
            await _close(socket, _CODES.get(problem.kind, _REFUSED), problem)
        except WebSocketDisconnect:
            return


class _Stream:
    """One stream."""

    def __init__(
        self, socket: WebSocket, service: Service, windows: _Windows, options: Options
    ) -> None:
        self._socket = socket
        self._service = service
        self._windows = windows
        self._options = options
        self._start = 0  # of the samples that are kept, in samples per channel
        self._kept = bytearray()
        self._scored_to = 0
        self._n_windows = 0
        self._sum, self._n_scored = 0.0, 0

    async def run(self) -> None:
        """Scores all windows as they become complete."""
        frame_bytes = _SAMPLE.itemsize * self._windows.channels
        window_bytes = frame_bytes * self._windows.length
        hop_bytes = frame_bytes * self._windows.hop
        async for data in self._pieces():
            self._kept += data
            self._check_length(len(self._kept) // frame_bytes)
            while len(self._kept) >= window_bytes:
                await self._score(bytes(self._kept[:window_bytes]))
                del self._kept[:hop_bytes]
                self._start += self._windows.hop
        rest = bytes(self._kept[: len(self._kept) // frame_bytes * frame_bytes])
        end = self._start + len(rest) // frame_bytes
        if end - max(self._start, self._scored_to) >= MIN_DURATION_S * self._windows.rate_hz:
            await self._score(rest)
        duration_s = end / self._windows.rate_hz
        note(self._socket.scope, audio_s=round(duration_s, 3), windows=self._n_windows)
        ending = self._service.ending.is_set()
        await self._send({
            "type": "end", "duration_s": duration_s, "windows": self._n_windows, **self._mean(),
            "reason": "the server is ending" if ending else "the client ended the stream",
        })  # fmt: skip
        await self._socket.close(_ENDING if ending else _NORMAL)

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Yields what the client sends, until it or the server ends the stream."""
        limit_s = self._service.limits.idle_timeout_s
        ending = asyncio.ensure_future(self._service.ending.wait())
        try:
            while True:
                receiving = asyncio.ensure_future(self._socket.receive())
                try:
                    await asyncio.wait(
                        {receiving, ending}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
                    )
                    if not receiving.done():
                        if ending.done():
                            return
                        raise Problem("timeout", f"nothing was sent for {limit_s:g} s")
                    message = receiving.result()
                finally:
                    receiving.cancel()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message.get("code", 1005))
                if (data := message.get("bytes")) is not None:
                    yield data
                elif _is_end(message.get("text")):
                    return
                else:
                    raise Problem(
                        "bad-request", 'send PCM as binary messages, and {"type": "end"} as text'
                    )
        finally:
            ending.cancel()

    def _check_length(self, n_kept: int) -> None:
        limit_s = self._service.limits.max_stream_s
        if self._start + n_kept > limit_s * self._windows.rate_hz:
            raise Problem("too-long", f"a stream may last {limit_s:g} s", limit=limit_s)

    async def _score(self, data: bytes) -> None:
        """Scores a window and sends its score. While the server is overloaded, it waits."""
        samples = np.frombuffer(data, _SAMPLE).reshape(-1, self._windows.channels)
        clip = Clip((np.ascontiguousarray(samples.T), self._windows.rate_hz))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._service.limits.body_timeout_s
        score: Score | None = None
        flags: tuple[str, ...] = ()
        while True:
            try:
                score = await self._service.score(clip, self._options)
                flags = score.flags
            except Problem as problem:
                if problem.kind == "overloaded" and loop.time() < deadline:
                    await asyncio.sleep(problem.body["retry_after_s"])
                    continue
                if problem.kind != "unscorable":
                    raise
                flags = tuple(problem.body["flags"])
            break
        self._scored_to = self._start + len(samples)
        values: dict[str, Any] = {"mos": None, "low": None, "high": None}
        if score is not None and math.isfinite(score.mos):
            self._sum += score.mos
            self._n_scored += 1
            values = {name: score.to_dict()[name] for name in values}
        if score is not None and score.measures:
            values["measures"] = score.to_dict()["measures"]
        rate_hz = self._windows.rate_hz
        await self._send({
            "type": "window", "index": self._n_windows, "start_s": self._start / rate_hz,
            "end_s": self._scored_to / rate_hz, **values, "flags": flags, **self._mean(),
        })  # fmt: skip
        self._n_windows += 1

    def _mean(self) -> dict[str, Any]:
        mean = self._sum / self._n_scored if self._n_scored else None
        return {"mean": mean, "scored": self._n_scored}

    async def _send(self, message: dict[str, Any]) -> None:
        await self._socket.send_text(json.dumps(message))


def _is_end(text: str | None) -> bool:
    try:
        return bool(json.loads(text or "null") == _END)
    except (ValueError, RecursionError):
        return False


async def _close(socket: WebSocket, code: int, problem: Problem) -> None:
    """Sends the problem and closes the stream, if it is still open."""
    if socket.application_state is WebSocketState.CONNECTED:
        try:
            await socket.send_text(json.dumps({"type": "problem", "problem": problem.body}))
            await socket.close(code, problem.kind)
        except (WebSocketDisconnect, RuntimeError):  # the client has gone meanwhile
            return
