"""Finds the recordings in a file, and corrects the lengths in their headers.

libsndfile trusts these lengths, which are wrong if a program wrote to a pipe, or if the file was
cut or joined to another. Tags may stand before and after the audio. So each recording of a file
becomes a `Part`: the bytes of the file to read, with a corrected header where one is needed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import BinaryIO, Final

from . import mp3
from .mp3 import Part

__all__ = ["IGNORED_BYTES", "find_parts", "recognised"]

# A program that writes to a pipe states 2 000 000 000, 0x7FFFF000, 0x80000000 or 0xFFFFFFFF bytes.
# A length that is at least this, and more than the file has, therefore means "unknown".
_UNKNOWN_FROM: Final = 2_000_000_000
_UNKNOWN_FROM_64: Final = 1 << 62
_LARGEST_32: Final = 0xFFFF_FFFF
_LARGEST_HEADER: Final = 1 << 24
_READ_BYTES: Final = 1 << 18
_MPEG_IN_WAV: Final = (b"\x50\0", b"\x55\0")
# So many bytes after the audio may be a tag of an unknown kind; more are reported as unread.
IGNORED_BYTES: Final = 4_096
# What is looked for after a recording of unknown length, besides others of its kind.
_JOINED: Final = {b"RIFF", b"fLaC", b"OggS", b"ID3"}
_MOST_PARTS, _MOST_CHUNKS = 10_000, 10_000


def find_parts(file: BinaryIO, size: int) -> tuple[list[Part], bool]:
    """The recordings of a file, and whether the file has more audio that is not read.

    Args:
        file: A seekable file.
        size: Its length in bytes.

    Returns:
        No recordings if the file is in no container that is known here.
    """
    parts: list[Part] = []
    start = mp3.after_tags(file, 0)
    start = start if start < size else 0  # a tag that is longer than the file
    while start < size and len(parts) < _MOST_PARTS:
        reader = _reader(file, start)
        found = _mp3(file, start, size) if reader is None else reader(file, start, size)
        if not found or found[-1].end <= start:
            break
        parts += found
        start = mp3.after_tags(file, found[-1].end)
    if not parts:
        return [], False
    rest = mp3.read(file, start, max(0, min(mp3.trimmed(file, size) - start, _READ_BYTES)))
    unread = len(rest.strip(b"\0")) > IGNORED_BYTES or any(part.unread for part in parts)
    return parts, unread


def recognised(head: BinaryIO, size: int) -> bool:
    """Whether a file that begins with the `size` bytes in `head` may be in a known container."""
    start = mp3.after_tags(head, 0)
    return start >= size or _reader(head, start) is not None or bool(_mp3(head, start, size))


_Reader = Callable[[BinaryIO, int, int], list[Part]]


def _reader(file: BinaryIO, start: int) -> _Reader | None:
    """The reader of the container that begins at `start`; None for MP3 and unknown ones."""
    head = mp3.read(file, start, 40)
    return next((read for magic, read in _READERS if re.match(magic, head, re.DOTALL)), None)


def _mp3(file: BinaryIO, start: int, size: int) -> list[Part]:
    end = mp3.trimmed(file, size)
    found = mp3.parts(file, start, end)
    plain = [(part.pieces, part.n_samples) for part in found] == [((range(start, end),), None)]
    if plain and mp3.read(file, 0, 3) == b"ID3" and start == mp3.tag_length(mp3.read(file, 0, 32)):
        # libmpg123 skips a tag by itself, and is faster without a view.
        found = [replace(found[0], pieces=(range(size),))]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How a container of chunks is laid out.

    Attributes:
        magic: Regular expression for its first bytes.
        first: Position of the first chunk.
        name: Length of a chunk's name.
        length: Format of a chunk's length for `struct`.
        whole: Whether that counts name and length as well.
        align: Chunks begin at multiples of this.
        data: First four bytes of the name of the chunk with the samples.
        skip: Bytes in that chunk before the samples.
        total: Position of the length of the whole; None if there is none.
    """

    magic: bytes
    first: int
    name: int = 4
    length: str
    whole: bool = False
    align: int
    data: bytes = b"data"
    skip: int = 0
    total: int | None

    def next_chunk(self, file: BinaryIO, start: int, at: int) -> tuple[bytes, int, int]:
        """Name of the chunk at `at`, start and length of its contents; b"" if there is none."""
        header = self.name + struct.calcsize(self.length)
        raw = mp3.read(file, at, header)
        if len(raw) < header or not re.match(rb"[ -~]{4}", raw):
            return b"", at, 0
        if at > start + self.first and _reader(file, at) is not None:
            return b"", at, 0  # another recording
        (length,) = struct.unpack(self.length, raw[self.name :])
        return raw[:4], at + header, length - header if self.whole else length

    def next_start(self, start: int, body: int, length: int) -> int:
        """Where the chunk after another begins."""
        return body + length + -(body + length - start) % self.align

    def only_chunks(self, file: BinaryIO, start: int, at: int, size: int) -> bool:
        """Whether the file goes on with complete chunks, and nothing else, up to its end."""
        for _ in range(_MOST_CHUNKS):
            if at >= size:
                return True
            name, body, length = self.next_chunk(file, start, at)
            if not name or length < 0 or body + length > size:
                return False
            at = self.next_start(start, body, length)
        return False

    def is_unknown(
        self, file: BinaryIO, fields: _Fields, start: int, data: tuple[int, int], size: int
    ) -> bool:
        """Whether the length of the samples was not known when it was written."""
        body, length = data
        wide = fields.ds64 is not None or struct.calcsize(self.length) == 8
        largest = _UNKNOWN_FROM_64 if wide else _UNKNOWN_FROM
        after = self.next_start(start, body, max(0, length))
        if after >= size or 0 < length < largest:
            return length > size - body and length >= largest
        return _reader(file, after) is None and not self.only_chunks(file, start, after, size)

    def parts(self, file: BinaryIO, start: int, size: int) -> list[Part]:
        """The recording, in a list. Without a chunk of samples it stays as it is."""
        at, data, fields = start + self.first, None, _Fields()
        cut = unknown = unread = False
        odd, unpadded = 0, list[int]()
        for _ in range(_MOST_CHUNKS):
            if odd and mp3.read(file, at - 1, 1) not in (b"", b"\0"):
                # Some programs forget the byte that makes the length of a chunk even.
                at -= 1
                unpadded += [at - start] if data is None else []
            name, body, length = self.next_chunk(file, start, at)
            beyond = length < 0 or (data is not None and body + length > size)
            if not name or at >= size or (beyond and name != self.data):
                break
            if name != self.data:
                fields.read(name, file, body, length)
            elif data is not None:
                unread = True
            else:
                length = fields.data_bytes if length == _LARGEST_32 and fields.ds64 else length
                data = body, length = body + self.skip, length - self.skip
                unknown = self.is_unknown(file, fields, start, data, size)
                cut = not unknown and length - max(0, size - body) >= fields.block
                if unknown or cut:
                    break
            length = max(0, length)
            at = self.next_start(start, body, length)
            odd = at - body - length if self.align == 2 else 0
        if data is None:
            return [Part(pieces=(range(start, size),), end=size)]
        body, length = data
        end, magic = min(at, size), mp3.read(file, start, 4)
        if unknown or cut:
            end = _find(file, body, mp3.trimmed(file, size), {magic, *_JOINED}) if unknown else size
            length = max(0, end - body)
        if fields.mp3:
            streams = _mp3(file, body, body + length)
            return [*streams[:-1], replace(streams[-1], end=end)] if streams else []
        pieces: tuple[bytes | range, ...] = (range(start, end),)
        # libsndfile reads a WAV file to its end by itself if its header states too much.
        plain = magic in (b"RIFF", b"RF64") and data[1] > length and length < _LARGEST_32
        wrong = ((unknown or cut) and not (plain and fields.ds64 is None)) or magic == b"BW64"
        if (wrong or unpadded) and body <= size and body - start < _LARGEST_HEADER:
            header = self.header(mp3.read(file, start, body - start), fields, start, length)
            for gap in reversed(unpadded):
                header = header[:gap] + b"\0" + header[gap:]
            pieces = (header, range(body, end))
        return [Part(pieces=pieces, end=end, cut=cut, unread=unread)]

    def header(self, header: bytes, fields: _Fields, start: int, length: int) -> bytes:
        """A header, which is all before the samples, with the length that these have."""
        true = bytearray(header)
        whole, n_blocks = len(header) + length, length // fields.block
        field = struct.calcsize(self.length)
        if fields.ds64 is not None:
            true[:4] = b"RF64"
            struct.pack_into("<QQQ", true, fields.ds64 - start, whole - 8, length, n_blocks)
            struct.pack_into("<I", true, len(true) - 4, _LARGEST_32)
            return bytes(true)
        if header[:4] == b"RIFF" and whole >= _LARGEST_32:
            ds64 = struct.pack("<4sIQQQI", b"ds64", 28, whole + 28, length, n_blocks, 0)
            return b"RF64\xff\xff\xff\xffWAVE" + ds64 + header[12:-4] + b"\xff\xff\xff\xff"
        largest = _LARGEST_32 if field == 4 else (1 << 63) - 1
        if self.total is not None:
            total = min(largest, whole if self.whole else whole - 8)
            struct.pack_into(self.length, true, self.total, total)
        data = length + self.skip + (self.name + field if self.whole else 0)
        struct.pack_into(self.length, true, len(true) - self.skip - field, min(largest, data))
        if fields.comm is not None and fields.comm - start < len(true):
            struct.pack_into(">I", true, fields.comm - start + 2, min(_LARGEST_32, n_blocks))
        return bytes(true)


@dataclass(slots=True)
class _Fields:
    """What the chunks before the samples say.

    Attributes:
        block: Bytes of a frame, all channels, or of a block of several frames.
        mp3: Whether a WAV file holds MP3 or MP2.
        ds64: Position of the contents of the chunk with 64-bit lengths.
        data_bytes: Length of the samples in that chunk.
        comm: Position of the contents of AIFF's chunk COMM.
    """

    block: int = 1
    mp3: bool = False
    ds64: int | None = None
    data_bytes: int = 0
    comm: int | None = None

    def read(self, name: bytes, file: BinaryIO, body: int, length: int) -> None:
        """Reads what is needed here from a chunk."""
        if name not in (b"fmt ", b"COMM", b"desc", b"ds64"):
            return
        raw = mp3.read(file, body, min(length, 64)).ljust(64, b"\0")
        if name == b"fmt ":
            self.block = max(1, *struct.unpack_from("<H", raw, 12))
            self.mp3 = raw[:2] in _MPEG_IN_WAV
        elif name == b"desc":
            self.block = max(1, *struct.unpack_from(">I", raw, 16))
        elif name == b"ds64":
            self.ds64 = body
            (self.data_bytes,) = struct.unpack_from("<q", raw, 8)
        else:
            channels, _, bits = struct.unpack_from(">HIH", raw)
            coding = raw[18:22] if length >= 22 else b"NONE"
            if coding.upper() in (b"ULAW", b"ALAW"):
                bits = 8
            self.block = max(1, channels * -(-bits // 8))
            self.comm = body


_W64: Final = rb"riff.\x91\xcf\x11\xa5\xd6.{14}wave"
_LAYOUTS: Final = (
    _Layout(magic=rb"(RIFF|RF64|BW64)....WAVE", first=12, length="<I", align=2, total=4),
    _Layout(magic=rb"RIFX....WAVE", first=12, length=">I", align=2, total=4),
    _Layout(magic=_W64, first=40, name=16, length="<q", whole=True, align=8, total=16),
    _Layout(
        magic=rb"FORM....AIF[FC]", first=12, length=">I", align=2, data=b"SSND", skip=8, total=4
    ),
    _Layout(magic=rb"caff\x00\x01", first=8, length=">q", align=1, skip=4, total=None),
)


def _au(file: BinaryIO, start: int, size: int) -> list[Part]:
    """Sun's and NeXT's format, with a header of six numbers."""
    head = mp3.read(file, start, 24)
    order = ">" if head[:4] == b".snd" else "<"
    if len(head) < 24:
        return [Part(pieces=(range(start, size),), end=size)]
    offset, length, coding, _, channels = struct.unpack(order + "5I", head[4:])
    sample = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}.get(coding, 1)
    present = max(0, size - start - offset)
    if length == 0 or (length > present and length >= _UNKNOWN_FROM):
        end = _find(file, start + max(24, offset), mp3.trimmed(file, size), {head[:4], *_JOINED})
        true = min(end - start - offset, _LARGEST_32)
        patched = head[:8] + struct.pack(order + "I", max(0, true)) + head[12:]
        end = max(start + offset, start + offset + true)
        return [Part(pieces=(patched, range(start + 24, end)), end=end)]
    end = min(size, start + offset + length)
    cut = length - present >= max(1, sample * channels)
    return [Part(pieces=(range(start, end),), end=end, cut=cut)]


def _nist(file: BinaryIO, start: int, size: int) -> list[Part]:
    """NIST SPHERE, with a header of lines such as "sample_count -i 52640"."""
    head = mp3.read(file, start, 1024)

    def number(name: bytes) -> int:
        found = re.search(rb"^" + name + rb" -i (\d{1,15})\b", head, re.MULTILINE)
        return int(found[1]) if found else 0

    block = max(1, number(b"channel_count")) * max(1, number(b"sample_n_bytes"))
    end = start + len(head) + number(b"sample_count") * block
    compressed = re.search(rb"^sample_coding .*(shorten|shortpack|wavpack)", head, re.MULTILINE)
    cut = not compressed and end - size >= block
    end = size if compressed or end == start + len(head) else min(end, size)
    return [Part(pieces=(range(start, end),), end=end, cut=cut)]


def _flac(file: BinaryIO, start: int, size: int) -> list[Part]:
    """One FLAC stream. None states its length, so the next is found by its first bytes."""
    at, last = start + 4, False
    while not last and at < size:
        head = mp3.read(file, at, 4)
        last = len(head) < 4 or head[0] >= 0x80
        at += 4 + int.from_bytes(head[1:], "big")
    info = int.from_bytes(mp3.read(file, start + 18, 8), "big")
    counted = info & 0xF_FFFF_FFFF != 0  # 0 samples means an unknown number
    names = {b"fLaC", b"ID3"} if counted else _JOINED
    end = _find(file, min(at, size), mp3.trimmed(file, size), names)
    return [Part(pieces=(range(start, end),), end=end, counted=counted, open_end=True)]


# What a recording, a page of Ogg or a tag begins with.
_BEGINS: Final = re.compile(
    rb"(RIFF|RF64|BW64|RIFX)....WAVE|riff.\x91\xcf\x11|FORM....AIF[FC]|caff\0\x01\0\0|NIST_1A\n"
    rb"|fLaC[\0\x80]\0\0\x22|OggS\0[\0-\x07]|\.snd\0\0..|ID3[\2-\4]\0[\0-\x7f]{5}",
    re.DOTALL,
)


def _find(file: BinaryIO, start: int, size: int, names: set[bytes]) -> int:
    """Where the next recording, page or tag of one of these names begins; `size` if nowhere."""
    while start + 12 <= size:
        chunk = mp3.read(file, start, min(_READ_BYTES, size - start))
        found = []
        for name in names:
            at = chunk.find(name)
            while at >= 0 and not _BEGINS.match(mp3.read(file, start + at, 12)):
                at = chunk.find(name, at + 1)
            found += [at] if at >= 0 else []
        if found:
            return start + min(found)
        start += max(1, len(chunk) - 3)
    return size


def _ogg(file: BinaryIO, start: int, size: int) -> list[Part]:
    """The links of a chained Ogg file, each a part: libsndfile reads only the first of a file."""
    links, cuts, last = [start], [], False
    page, at, misses, in_headers, unread = start, start, 0, True, False
    while at < size:
        head = mp3.read(file, at, 27 + 255)
        if head[:4] != b"OggS" or len(head) < 27:
            found = _find(file, page + 4, size, {b"OggS"})
            if found == size or misses == _MOST_CHUNKS or _reader(file, at) is not None:
                break
            unread, at, misses = unread or found - at > IGNORED_BYTES, found, misses + 1
            continue
        first = bool(head[5] & 2)
        if first and not in_headers:
            links.append(at)
            cuts.append(not last)
        in_headers, last = first, bool(head[5] & 4)
        page, at = at, at + 27 + head[26] + sum(head[27 : 27 + head[26]])
    cuts.append(not last or at > size)
    return [
        Part(pieces=(range(first, end),), end=end, unread=unread, cut=cut)
        for (first, end), cut in zip(pairwise([*links, min(at, size)]), cuts, strict=True)
    ]


_READERS: Final[tuple[tuple[bytes, _Reader], ...]] = (
    *((layout.magic, layout.parts) for layout in _LAYOUTS),
    (rb"fLaC", _flac), (rb"OggS", _ogg), (rb"\.snd|dns\.", _au), (rb"NIST", _nist),
)  # fmt: skip
