"""What the server takes from a client, and for how long it waits."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of requests. Each has its own answer; the reference page of the HTTP API lists them.

    The server holds at most about `max_requests` times three times `max_bytes` of bodies in memory.

    Attributes:
        max_bytes: Longest body of a request, in bytes.
        max_audio_s: Longest recording, in seconds.
        max_channels: Most channels of a recording.
        max_items: Most recordings of a batch.
        max_views: Most views that a client may ask for.
        max_requests: Most requests, streams included, that are worked on at once in a process.
        max_connections: Most open connections of a process.
        header_timeout_s: Longest time from the first byte of a request, or from the opening of a
            connection, to the end of the headers, in seconds.
        body_timeout_s: Longest time in which a body must arrive, in seconds.
        idle_timeout_s: Longest pause in a stream, in seconds.
        max_stream_s: Longest stream, in seconds of audio.

    Raises:
        ValueError: A limit is not a positive, finite number.
    """

    max_bytes: int = 16 << 20
    max_audio_s: float = 300.0
    max_channels: int = 8
    max_items: int = 64
    max_views: int = 64
    max_requests: int = 64
    max_connections: int = 512
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 60.0
    max_stream_s: float = 3600.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{item.name} must be a positive number, not {value}")
