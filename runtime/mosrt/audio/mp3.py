"""Counts the frames of MPEG audio (MP3, MP2, MP1), and corrects the Info frame that counts them.

`mosrt.audio.sources` decodes them, by libsndfile and its libmpg123.
Without an Info frame, libmpg123 guesses the length from the first frame, and then reads only a part
of a file of variable bit rate. Frames are laid out as in ISO/IEC 11172-3 and 13818-3, the Info
frame as Xing and LAME write it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import struct
import threading
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple

__all__ = ["Part", "after_tags", "parts", "quiet", "read", "tag_length", "trimmed"]

_READ_BYTES: Final = 1 << 20
_LARGEST_FRAME_BYTES: Final = 1 << 13
# Most junk that is skipped to find a frame: before the first one, and between others.
_LEADING_BYTES: Final = 1 << 16
_GAP_BYTES: Final = 1 << 22
# So many frames follow the first one if other data is before it: programs contain a few in a row.
_MORE_FRAMES: Final = 7
_SYNC: Final = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]", re.DOTALL)
_TAGS: Final = re.compile(rb"Xing|Info|VBRI")
_FORMAT_BITS: Final = 0xFFFE_0C00  # sync, version, layer, sampling rate
_RATES_HZ: Final = {
    3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000),
}  # fmt: skip
_LOW_KBPS: Final = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_KBPS: Final = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): _LOW_KBPS,
    (False, 3): _LOW_KBPS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One recording of a file; a file may hold several, one after the other.

    Attributes:
        pieces: What libsndfile reads: ranges of the file, and bytes that replace a wrong header.
        end: Where the part ends in the file.
        cut: Whether the file ends before the length in the part's header.
        counted: Whether its header counts the samples, so that it is truncated if it has fewer.
        n_samples: Samples per channel, where libsndfile can only guess them.
        padding: Bytes by which the length is overstated to libsndfile, so that it does not guess
            too few samples.
        unread: Whether there is audio in it that is not read.
        open_end: Whether there may be, where the decoder stops before the end.
    """

    pieces: tuple[bytes | range, ...]
    end: int
    cut: bool = False
    counted: bool = True
    n_samples: int | None = None
    padding: int = 0
    unread: bool = False
    open_end: bool = False


class _Quiet:
    """Keeps C libraries from printing, while any thread is in this context.

    libmpg123 reports damaged frames on standard error, and libsndfile some on standard output. The
    GNU C library documents `stdout` and `stderr` as variables that may be set. Descriptors stay as
    they are, so what Python and other processes write is not lost. With other C libraries than
    GNU's, nothing is suppressed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._variables: list[ctypes.c_void_p] = []
        if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {}):
            libc = ctypes.CDLL(None)
            libc.fopen.restype = ctypes.c_void_p
            if nowhere := libc.fopen(b"/dev/null", b"we"):
                self._variables = [ctypes.c_void_p.in_dll(libc, n) for n in ("stdout", "stderr")]
                self._others = [nowhere, nowhere]

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._exchange()

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._exchange()

    def _exchange(self) -> None:
        for i, variable in enumerate(self._variables):
            variable.value, self._others[i] = self._others[i], variable.value


@functools.cache
def quiet() -> _Quiet:
    """The context in which decoders print nothing, the same object for all threads."""
    return _Quiet()


def tag_length(head: bytes) -> int:
    """Length of the ID3v2 or APEv2 tag that begins with `head` (32 bytes); 0 if none does."""
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 0x80:
        length = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        return length + (20 if head[5] & 0x10 else 10)
    if head[:8] == b"APETAGEX" and len(head) == 32:
        return 32 + int.from_bytes(head[12:16], "little")
    return 0


def _end_tag_length(tail: bytes) -> int:
    """Length of the ID3v1, APEv2 or Lyrics3 tag that ends with `tail` (128 bytes); 0 if none."""
    if len(tail) == 128 and tail[:3] == b"TAG":
        return 128
    if tail[-32:-24] == b"APETAGEX":
        header = 32 if tail[-9] & 0x80 else 0
        return header + max(32, int.from_bytes(tail[-20:-16], "little"))
    if tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
        return int(tail[-15:-9]) + 15
    return 0


def after_tags(file: BinaryIO, start: int) -> int:
    """The position after the tags at `start` and the zeros that follow them."""
    while length := tag_length(read(file, start, 32)):
        start += length
        while zeros := read(file, start, 4_096):
            start += (skipped := len(zeros) - len(zeros.lstrip(b"\0")))
            if skipped < len(zeros):
                break
    return start


def trimmed(file: BinaryIO, size: int) -> int:
    """Length of a file without the tags at its end."""
    while length := _end_tag_length(read(file, max(0, size - 128), min(size, 128))):
        size = max(0, size - length)
    return size


def read(file: BinaryIO, start: int, count: int) -> bytes:
    """At most so many bytes of a file from a position on."""
    file.seek(start)
    return file.read(count)


def parts(file: BinaryIO, start: int, stop: int) -> list[Part]:
    """The streams of MPEG audio in a file; none if it holds no such audio.

    A stream has frames of one format, without the tags and the junk between them. A file with other
    data before the first one has to consist of streams by more than half.

    Args:
        file: A seekable file.
        start: Where the first one begins, or up to 64 KiB of junk before it.
        stop: Where the last one ends at the latest.
    """
    frames, found = _Frames(file, stop), list[Part]()
    leading = min(stop, start + _LEADING_BYTES)
    first = at = frames.find(start, leading, alone=True, more=_MORE_FRAMES)
    if at is None and frames.free_format(start):
        return [Part(pieces=(range(start, stop),), end=stop, counted=False)]
    while at is not None:
        part, at = frames.stream(at)
        found.append(part)
    n_bytes = sum(len(piece) for part in found for piece in part.pieces)
    return found if first == start or 2 * n_bytes > stop - start else []


class _Frame(NamedTuple):
    """What a frame's header says. All frames of a stream are of the same `kind`."""

    kind: tuple[int, bool]
    layer: int
    length: int
    n_samples: int
    tag_at: int


class _Info(NamedTuple):
    """A frame that states the length of a stream: an Info or Xing frame, or a VBRI frame."""

    n_frames: int | None
    raw: bytes
    bytes_at: int | None = None
    lame_at: int | None = None


class _Frames:
    """Reads the frames of a file."""

    def __init__(self, file: BinaryIO, stop: int) -> None:
        self._file = file
        self._stop = stop
        self._start = 0
        self._block = b""
        self._tags: set[int] = set()
        self._known: dict[bytes, _Frame | None] = {}

    def find(self, start: int, stop: int, *, alone: bool = False, more: int = 2) -> int | None:
        """Where the next of several frames in a row begins.

        Args:
            start: Where to look.
            stop: Where to give up.
            alone: Whether a frame at `start` may be the only one.
            more: How many of its kind have to follow.
        """
        while start < stop:
            self._load(start)
            block, origin = self._block, self._start  # a frame that is looked at may load others
            for found in _SYNC.finditer(block, start - origin):
                at = origin + found.start()
                if at >= stop:
                    return None
                if self._continues(at, 1 if alone and at == start else more):
                    return at
                if at - origin + 4 * _LARGEST_FRAME_BYTES > len(block):
                    break  # load more
            else:
                start, alone = max(start + 1, origin + len(block) - 2), False
                if origin + len(block) >= self._stop:
                    return None
                continue
            start, alone = at + 1, False
        return None

    def stream(self, at: int) -> tuple[Part, int | None]:
        """The stream whose first frame is at `at`, and where the next stream begins."""
        self._load(at)
        first, began, n_frames = _frame(self._bytes(at, 4)), at, 0
        if first is None:
            raise ValueError(f"no frame begins at {at}")
        info = self._info(at, first)
        if info is not None:
            at += first.length
        runs, run, following = [], at, None
        known, stop = self._known, self._stop
        while True:
            offset = at - self._start  # negative where `find` has loaded the block of a later frame
            if not 0 <= offset <= len(self._block) - _LARGEST_FRAME_BYTES:
                self._load(at)
                offset = at - self._start
            head = self._block[offset : offset + 4]
            frame = known[head] if head in known else self._frame(at)
            if frame is None or at + frame.length > stop:
                runs.append(range(run, at))
                tag = tag_length(self._block[offset : offset + 32])
                if not tag and head[:3] == b"TAG":
                    tag = 128
                found = self.find(at + (tag or 1), min(stop, at + tag + _GAP_BYTES))
                if found is None:
                    break
                run = at = found
                continue
            if frame.kind != first.kind or (
                self._tags and at != began and self._info(at, frame) is not None
            ):
                runs.append(range(run, at))
                following = at
                break
            n_frames += 1
            at += frame.length
        pieces = [piece for piece in runs if piece]
        return _part(first, info, pieces, n_frames, at), following

    def free_format(self, at: int) -> bool:
        """Whether frames of an unstated bit rate begin at `at`."""
        head = self._bytes(at, _LARGEST_FRAME_BYTES)
        found = re.match(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x00-\x0b]", head)
        return found is not None and head.find(found[0], 32) > 0

    def _load(self, at: int) -> None:
        """Reads the block at `at`, unless the frame there lies in this one."""
        offset, there = at - self._start, self._start + len(self._block)
        if offset >= 0 and (
            offset + _LARGEST_FRAME_BYTES <= len(self._block) or there == self._stop
        ):
            return
        self._block = read(self._file, at, max(0, min(_READ_BYTES, self._stop - at)))
        self._start = at
        self._tags = {at + found.start() for found in _TAGS.finditer(self._block)}

    def _bytes(self, at: int, count: int) -> bytes:
        self._load(at)
        return self._block[at - self._start : at - self._start + count]

    def _continues(self, at: int, wanted: int) -> bool:
        """Whether the frame at `at` is followed by `wanted` of its kind, or by the end."""
        first = frame = self._frame(at)
        for number in range(wanted):
            if frame is None or first is None or frame.kind != first.kind:
                return False
            at += frame.length
            if at >= self._stop and number + 2 > wanted:
                return at == self._stop or number > 0
            frame = self._frame(at)
        return frame is not None and first is not None and frame.kind == first.kind

    def _frame(self, at: int) -> _Frame | None:
        head = self._bytes(at, 4)
        if head not in self._known:
            self._known[head] = _frame(head)
        return self._known[head]

    def _info(self, at: int, frame: _Frame) -> _Info | None:
        """The Info, Xing or VBRI tag in a frame; None if the frame has none."""
        if frame.layer != 3 or not {at + frame.tag_at, at + 36} & self._tags:
            return None
        raw = self._bytes(at, frame.length)
        if raw[36:40] == b"VBRI" and len(raw) >= 54:
            return _Info(int.from_bytes(raw[50:54], "big"), raw)
        if raw[frame.tag_at : frame.tag_at + 4] not in (b"Xing", b"Info"):
            return None
        after = frame.tag_at + 8
        flags = int.from_bytes(raw[after - 4 : after], "big")
        lame_at = after + 4 * (flags & 0b1011).bit_count() + 100 * (flags >> 2 & 1)
        if flags & 1 == 0 or after + 8 > len(raw):
            return _Info(None, raw)
        return _Info(
            int.from_bytes(raw[after : after + 4], "big"),
            raw,
            after + 4 if flags & 2 else None,
            lame_at if lame_at + 24 <= len(raw) else None,
        )


def _frame(head: bytes) -> _Frame | None:
    """Decodes a frame's header of four bytes; None if it is not one, or states no length."""
    word = int.from_bytes(head, "big")
    version, layer = word >> 19 & 3, 4 - (word >> 17 & 3)
    bitrate, rate = word >> 12 & 15, word >> 10 & 3
    if len(head) < 4 or word >> 21 != 0x7FF or version == 1 or layer == 4 or rate == 3:
        return None
    if not 0 < bitrate < 15:
        return None
    full, padding, mono = version == 3, word >> 9 & 1, word >> 6 & 3 == 3
    bits_per_s = 1000 * _KBPS[full, layer][bitrate - 1]
    rate_hz = _RATES_HZ[version][rate]
    n_samples = 384 if layer == 1 else 576 if layer == 3 and not full else 1152
    if layer == 1:
        length = 4 * (12 * bits_per_s // rate_hz + padding)
    else:
        length = n_samples // 8 * bits_per_s // rate_hz + padding
    tag_at = 4 + ((17 if mono else 32) if full else (9 if mono else 17))
    return _Frame((word & _FORMAT_BITS, mono), layer, length, n_samples, tag_at)


def _part(first: _Frame, info: _Info | None, runs: list[range], n_frames: int, end: int) -> Part:
    """A stream: a correct Info frame before its runs of frames, or else a count of samples."""
    n_bytes = sum(len(run) for run in runs)
    promised = None if info is None else info.n_frames
    # Some programs count the Info frame as well.
    cut = promised is not None and promised > n_frames + 1
    vbri = info is not None and info.raw[36:40] == b"VBRI"
    if info is None or promised is None or vbri:  # libmpg123 knows no VBRI frames
        # It would drop samples if an Info frame were added.
        return Part(
            pieces=tuple(runs),
            end=end,
            cut=cut,
            counted=False,
            n_samples=n_frames * first.n_samples,
            padding=n_frames * _LARGEST_FRAME_BYTES,
        )
    patched = bytearray(info.raw)
    if info.bytes_at is not None:
        struct.pack_into(">I", patched, info.bytes_at, min(0xFFFF_FFFF, n_bytes + len(patched)))
    if promised < n_frames:
        struct.pack_into(">I", patched, first.tag_at + 8, n_frames)
        if info.lame_at is not None:  # the end to be trimmed is not the real one
            patched[info.lame_at + 22] &= 0xF0
            patched[info.lame_at + 23] = 0
    pieces: tuple[bytes | range, ...] = (bytes(patched), *runs)
    if patched == info.raw and len(runs) == 1:
        pieces = (range(runs[0].start - len(patched), runs[0].stop),)
    return Part(pieces=pieces, end=end, cut=cut, counted=False)
