"""Reads recordings and options from the bodies of requests: audio files, forms and JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from mosrt.audio.sources import FileSource

from .limits import Limits
from .problems import Problem

__all__ = [
    "Clip",
    "Options",
    "check_clip",
    "decode_base64",
    "merged",
    "parse_number",
    "read_batch",
    "read_clip",
    "read_json",
]

_T = TypeVar("_T")

OPTIONS: Final = ("domain", "views", "plan", "deadline_ms", "priority")
_PRIORITIES: Final = ("interactive", "background")
_ENCODINGS: Final[dict[object, np.dtype[Any]]] = {
    "int16": np.dtype("<i2"),
    "float32": np.dtype("<f4"),
}
_PCM_FIELDS: Final = ("pcm", "sample_rate", "encoding", "channels")
_FILE_TYPES: Final = ("application/octet-stream", "application/ogg", "")
_FORM: Final = "multipart/form-data"
_JSON: Final = "application/json"
# What takes longer than about a millisecond is parsed in a thread.
_LONG_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording of a client.

    Attributes:
        audio: The bytes of a file, or a waveform (channels, samples) with its rate in Hz.
        name: What the client calls it; empty if it has no name.
    """

    audio: bytes | tuple[npt.NDArray[Any], float]
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to score; see `mosrt.AsyncScorer.score`."""

    domain: str | None = None
    views: int | None = None
    plan: str | None = None
    deadline_s: float | None = None
    priority: str = "interactive"

    @classmethod
    def parse(cls, values: Mapping[str, Any], limits: Limits) -> Options:
        """Reads options from text or JSON values by name; unknown names are a Problem."""
        for name in values:
            if name not in OPTIONS:
                _refuse(f"unknown parameter {name!r}; known are {', '.join(OPTIONS)}")
        for name in ("domain", "plan", "priority"):
            if not isinstance(values.get(name, ""), str):
                _refuse(f"{name} must be text")
        priority = values.get("priority", "interactive")
        if priority not in _PRIORITIES:
            _refuse(f"priority must be one of {', '.join(_PRIORITIES)}")
        views = deadline_ms = None
        if "views" in values:
            views = int(parse_number("views", values["views"], 1, limits.max_views, whole=True))
        if "deadline_ms" in values:
            deadline_ms = parse_number("deadline_ms", values["deadline_ms"], 1, 3_600_000)
        return cls(
            domain=values.get("domain"),
            views=views,
            plan=values.get("plan"),
            deadline_s=None if deadline_ms is None else deadline_ms / 1e3,
            priority=priority,
        )


async def read_clip(request: Request, limits: Limits) -> tuple[Clip, Options]:
    """Reads the one recording of a request, and how to score it.

    Raises:
        Problem: The body is of another type, or not well formed.
    """
    kind = _kind(request)
    if kind == _FORM:
        clips, options = await _read_form(request, limits)
        if len(clips) != 1:
            _refuse(f"the form has {len(clips)} files; send one, as the field 'file'")
        return clips[0], options
    if kind == _JSON:
        fields = await read_json(request)
        options = Options.parse(
            merged(_query(request), {k: v for k, v in fields.items() if k not in _PCM_FIELDS}),
            limits,
        )
        return await _in_thread(request, lambda: _pcm(fields, limits)), options
    options = Options.parse(_query(request), limits)
    return Clip(await request.body()), options


async def read_batch(request: Request, limits: Limits) -> tuple[list[Clip | Problem], Options]:
    """Reads the recordings of a batch; a Problem takes the place of one that is not well formed.

    Raises:
        Problem: The body is of another type, or not well formed, or has too many recordings.
    """
    kind = _kind(request)
    if kind == _FORM:
        clips, options = await _read_form(request, limits)
        return [*clips], options
    if kind != _JSON:
        raise Problem(
            "unsupported-media-type",
            f"a batch is {_FORM} with a file for each recording, or {_JSON}",
        )
    fields = await read_json(request)
    items = fields.pop("items", None)
    if not isinstance(items, list) or not items:
        _refuse("'items' must be a list of recordings")
    _check_count(len(items), limits)
    options = Options.parse(merged(_query(request), fields), limits)

    def parse() -> list[Clip | Problem]:
        parsed = list[Clip | Problem]()
        for item in items:
            try:
                parsed.append(_item(item, limits))
            except Problem as problem:
                parsed.append(problem)
        return parsed

    return await _in_thread(request, parse), options


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Raises:
        Problem: The body is no JSON object.
    """
    if _kind(request) != _JSON:
        raise Problem("unsupported-media-type", f"send {_JSON}")
    body = await request.body()

    def parse() -> Any:
        # RecursionError: lists in lists in lists.
        try:
            return json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            _refuse("the body is not JSON")

    fields = await _in_thread(request, parse)
    if not isinstance(fields, dict):
        _refuse("the body is not a JSON object")
    return fields


def parse_number(
    name: str, value: object, least: float, most: float, *, whole: bool = False
) -> float:
    """Reads a number from text or JSON; a Problem if it is none, or out of its range."""
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        _refuse(f"{name} must be {kind} from {least:g} to {most:g}")
    return number


def check_clip(clip: Clip, limits: Limits) -> None:
    """Refuses a recording that is too long or has too many channels. A file is decoded for that.

    Raises:
        AudioError: The file cannot be read as audio.
        Problem: The recording is refused.
    """
    if isinstance(clip.audio, tuple):
        waveform, rate_hz = clip.audio
        channels, n_samples = waveform.shape
        _check_size(channels, n_samples, rate_hz, limits)
        return
    n_samples = 0
    source = FileSource(clip.audio)
    with closing(source.blocks()) as blocks:  # type: ignore[type-var]  # it is a generator
        for block in blocks:
            n_samples += len(block)
            _check_size(block.shape[1], n_samples, source.sample_rate_hz, limits)


def _check_size(channels: int, n_samples: int, rate_hz: float, limits: Limits) -> None:
    if channels > limits.max_channels:
        raise Problem(
            "too-many-channels",
            f"the recording has over {limits.max_channels} channels; mix them down first",
            limit=limits.max_channels,
        )
    if n_samples > limits.max_audio_s * rate_hz:
        raise Problem(
            "too-long",
            f"the recording is longer than {limits.max_audio_s:g} s; send parts of it",
            limit=limits.max_audio_s,
        )


async def _read_form(request: Request, limits: Limits) -> tuple[list[Clip], Options]:
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=limits.max_items, max_fields=len(OPTIONS)
    )
    parser.spool_max_size = limits.max_bytes + 1  # so that nothing is written to a disk
    try:
        form = await parser.parse()
    except MultiPartException as exc:
        if exc.message.startswith("Too many files"):
            _check_count(limits.max_items + 1, limits)
        raise Problem("bad-request", f"the form is not well formed: {exc.message}") from exc
    clips, fields = list[Clip](), dict[str, Any]()
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                clips.append(Clip(await value.read(), value.filename or ""))
            elif name in fields:
                _refuse(f"{name} is given twice")
            else:
                fields[name] = value
    finally:
        await form.close()
        # Starlette leaves files open whose parts do not end.
        for file in getattr(parser, "_files_to_close_on_error", ()):
            file.close()
    if not clips:
        _refuse("the form has no file")
    return clips, Options.parse(merged(_query(request), fields), limits)


def _item(item: object, limits: Limits) -> Clip:
    if not isinstance(item, dict):
        _refuse("an item must be a JSON object")
    name = item.get("name", "")
    if not isinstance(name, str):
        _refuse("name must be text")
    for field in item:
        if field not in (*_PCM_FIELDS, "name"):
            _refuse(f"unknown member {field!r} of an item")
    return Clip(_pcm(item, limits).audio, name)


def _pcm(fields: Mapping[str, Any], limits: Limits) -> Clip:
    """The waveform in the members of a JSON object."""
    encoding = fields.get("encoding", "int16")
    if not isinstance(encoding, str) or encoding not in _ENCODINGS:
        _refuse(f"encoding must be one of {', '.join(map(str, _ENCODINGS))}")
    if "sample_rate" not in fields:
        _refuse("sample_rate is missing")
    rate_hz = parse_number("sample_rate", fields["sample_rate"], 1, 1e6)
    channels = int(parse_number("channels", fields.get("channels", 1), 1, 1024, whole=True))
    data = decode_base64("pcm", fields.get("pcm"))
    frame_bytes = _ENCODINGS[encoding].itemsize * channels
    if len(data) % frame_bytes:
        _refuse(f"pcm has {len(data)} bytes, which is no multiple of {frame_bytes}")
    samples = np.frombuffer(data, _ENCODINGS[encoding]).reshape(-1, channels)
    clip = Clip((np.ascontiguousarray(samples.T), rate_hz))
    check_clip(clip, limits)
    return clip


def decode_base64(name: str, text: object) -> bytes:
    """The bytes that a member of a JSON object stands for."""
    if not isinstance(text, str):
        _refuse(f"{name} must be text in base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        _refuse(f"{name} is not base64")


def _kind(request: Request) -> str:
    """The media type of a body; a Problem if it is none that is read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in (_FORM, _JSON, *_FILE_TYPES) or kind.startswith("audio/"):
        return kind
    raise Problem(
        "unsupported-media-type",
        f"{kind} is not read; send audio/*, application/octet-stream, {_FORM} or {_JSON}",
        headers={"Accept": f"audio/*, application/octet-stream, {_FORM}, {_JSON}"},
    )


def _query(request: Request) -> dict[str, str]:
    items = request.query_params.multi_items()
    return merged({}, *({name: value} for name, value in items))


def merged(first: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """The members of all mappings; a Problem if one is in two of them."""
    members = dict(first)
    for other in others:
        for name, value in other.items():
            if name in members:
                _refuse(f"{name} is given twice")
            members[name] = value
    return members


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.max_items:
        raise Problem(
            "too-many-items",
            f"a batch has at most {limits.max_items} recordings; send several batches",
            limit=limits.max_items,
        )


async def _in_thread(request: Request, parse: Callable[[], _T]) -> _T:
    if len(await request.body()) < _LONG_BYTES:
        return parse()
    return await asyncio.to_thread(parse)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _refuse(detail: str) -> NoReturn:
    raise Problem("bad-request", detail)
