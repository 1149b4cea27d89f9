"""Answers requests to score recordings."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mosrt.score import Score

from .access import note
from .problems import Problem
from .requests import (
    Clip,
    Options,
    check_clip,
    decode_base64,
    parse_number,
    read_batch,
    read_clip,
    read_json,
)  # fmt: skip
from .service import Service

__all__ = ["Scoring"]

_T = TypeVar("_T")
_BATCH_AT_ONCE: Final = 4
_REWARD_MEMBERS: Final = ("waveform", "sample_rate", "prompt", "floor", "domain")


class Scoring:
    """The endpoints below /v1 that score.

    Args:
        service: What scores.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def score(self, request: Request) -> Response:
        """POST /v1/score: the score of one recording."""
        clip, options = await read_clip(request, self._service.limits)
        score = await _unless_gone(request, self._score(clip, options))
        note(request.scope, flags=score.flags, audio_s=_rounded(score.duration_s))
        return JSONResponse(score.to_dict())

    async def batch(self, request: Request) -> Response:
        """POST /v1/score/batch: a score or a problem for each recording, in their order."""
        clips, options = await read_batch(request, self._service.limits)
        at_once = asyncio.Semaphore(_BATCH_AT_ONCE)

        async def answer(clip: Clip | Problem) -> dict[str, Any]:
            if isinstance(clip, Problem):
                return {"name": "", "problem": clip.body}
            try:
                async with at_once:
                    score = await self._score(clip, options)
            except Problem as problem:
                return {"name": clip.name, "problem": problem.body}
            return {"name": clip.name, "score": score.to_dict()}

        results = await _unless_gone(request, _all([answer(clip) for clip in clips]))
        note(request.scope, items=len(results), failed=sum("problem" in each for each in results))
        return JSONResponse({"results": results})

    async def reward(self, request: Request) -> Response:
        """POST /v1/reward: the MOS of a waveform, for reinforcement learning."""
        fields = await read_json(request)
        for name in fields:
            if name not in _REWARD_MEMBERS:
                known = ", ".join(_REWARD_MEMBERS)
                raise Problem("bad-request", f"unknown member {name!r}; known are {known}")
        if not isinstance(fields.get("prompt", ""), str):
            raise Problem("bad-request", "prompt must be text")
        options = Options.parse(
            {"domain": fields["domain"]} if "domain" in fields else {}, self._service.limits
        )
        floor = fields.get("floor")
        if floor is not None:
            floor = parse_number("floor", floor, -1e6, 1e6)
        rate_hz = parse_number("sample_rate", fields.get("sample_rate"), 1, 1e6)
        data = decode_base64("waveform", fields.get("waveform"))
        if len(data) % 4:
            raise Problem("bad-request", f"waveform has {len(data)} bytes: no float32 samples")
        clip = Clip((np.frombuffer(data, np.dtype("<f4"))[None], rate_hz))
        try:
            check_clip(clip, self._service.limits)
            score = await _unless_gone(request, self._score(clip, options))
        except Problem as problem:
            if floor is None or problem.kind != "unscorable":
                raise
            note(request.scope, flags=problem.body["flags"])
            return JSONResponse({"score": floor, "flags": problem.body["flags"]})
        if math.isnan(score.mos):
            raise Problem("bad-request", "the model gives no MOS, so it cannot give rewards")
        note(request.scope, flags=score.flags, audio_s=_rounded(score.duration_s))
        return JSONResponse({"score": score.mos, "flags": score.flags})

    async def _score(self, clip: Clip, options: Options) -> Score:
        return await self._service.score(clip, options)


async def _all(answers: list[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The answers, in their order; all are cancelled if this is."""
    return list(await asyncio.gather(*answers))


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` gives; it is cancelled when the client hangs up.

    Raises:
        ClientDisconnect: The client hung up.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def _rounded(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(seconds, 3)
