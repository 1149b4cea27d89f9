"""Stores TensorRT engines in the cache and checks them before they are loaded.

An engine is built from one graph, by one version of TensorRT, for one compute capability and one
range of shapes. Its file starts with a line that names the format and a line of JSON that holds all
of this and the engine's length and SHA-256; the engine follows. Files are written atomically.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from mosrt.errors import ProviderError, os_errors_as
from mosrt.host.cache import cache_directory, distrust, private_directory
from mosrt.host.files import replacing

__all__ = ["EngineFiles", "EngineKey", "Header", "Profile", "Target", "replacing_in_cache"]

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Smallest, usual and largest shape of each input by name."""

_MAGIC: Final = b"mosrt engine 1\n"
_MAX_HEADER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The TensorRT version and GPU that an engine is built for.

    Attributes:
        module: Name of TensorRT's module.
        version: The module's version.
        compute_capability: The GPU's compute capability, such as "8.7"; "none" without a GPU.
    """

    module: str
    version: str
    compute_capability: str

    @property
    def has_gpu(self) -> bool:
        """Whether the target has a GPU."""
        return self.compute_capability != "none"

    def __str__(self) -> str:
        gpu = f"a GPU of compute capability {self.compute_capability}" if self.has_gpu else "no GPU"
        return f"{self.module} {self.version} and {gpu}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """Everything that an engine depends on.

    Attributes:
        graph: `Member.sha256` of the network.
        target: TensorRT version and GPU.
        profile: The shapes that the engine takes.
    """

    graph: str
    target: Target
    profile: Profile

    def to_dict(self) -> dict[str, Any]:
        """The key as it stands in a file's header."""
        return {
            "graph": self.graph,
            **dataclasses.asdict(self.target),
            "profile": {
                name: [list(shape) for shape in shapes] for name, shapes in self.profile.items()
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header of an engine file.

    Attributes:
        key: What the engine depends on.
        n_bytes: Length of the engine in bytes.
        sha256: SHA-256 of the engine in hex.
        facts: How the engine was built, for people to read.
    """

    key: EngineKey
    n_bytes: int
    sha256: str
    facts: Mapping[str, Any]

    @classmethod
    def parse(cls, line: bytes) -> Header:
        """Parses a line written by `to_line`.

        Raises:
            ValueError: The line is damaged.
        """
        try:
            fields = json.loads(line)
            target = Target(
                **{field.name: str(fields.pop(field.name)) for field in dataclasses.fields(Target)}
            )
            profile = {
                str(name): (_shape(small), _shape(usual), _shape(large))
                for name, (small, usual, large) in fields.pop("profile").items()
            }
            return cls(
                key=EngineKey(graph=str(fields.pop("graph")), target=target, profile=profile),
                n_bytes=int(fields.pop("engine_bytes")),
                sha256=str(fields.pop("engine_sha256")),
                facts=fields,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise ValueError("its header is damaged") from exc

    def to_line(self) -> bytes:
        """The header as a line of JSON."""
        fields = {
            **self.key.to_dict(),
            "engine_bytes": self.n_bytes,
            "engine_sha256": self.sha256,
            **self.facts,
        }
        return json.dumps(fields).encode() + b"\n"


class EngineFiles:
    """The engines in the cache directory.

    Args:
        directory: Directory of the engines; by default "engines" in mosrt's cache directory.
    """

    def __init__(self, directory: Path | None = None) -> None:
        if directory is None:
            cache = cache_directory()
            if cache is None:
                raise ProviderError("engines need a cache: set MOSRT_CACHE to a directory")
            directory = cache / "engines"
        self.directory = directory

    def path(self, key: EngineKey) -> Path:
        """The path of the engine of `key`, whether or not it exists."""
        shapes = json.dumps(key.to_dict()["profile"], sort_keys=True)
        short = sha256(shapes.encode()).hexdigest()[:8]
        return self.directory / f"{_stem(key.graph, key.target)}-{short}.engine"

    def find(self, graph: str, target: Target) -> Path:
        """The path of the engine that was built last for a graph and target, of any shapes.

        Raises:
            ProviderError: There is no such engine, or it cannot be used.
        """
        found = sorted(
            self.directory.glob(f"{_stem(graph, target)}-*.engine"),
            key=lambda path: (path.stat().st_mtime_ns, path.name),
        )
        if not found:
            others = sorted(path.name for path in self.directory.glob(f"{graph[:16]}-*.engine"))
            hint = f" (there are {', '.join(others)})" if others else ""
            raise ProviderError(f"no engine for {target} in {self.directory}{hint}")
        if (doubt := distrust(self.directory) or distrust(found[-1])) is not None:
            raise ProviderError(
                f"the engine is not used, because {doubt}; take that right away (chmod go-w)"
            )
        if (fault := self.fault(found[-1], graph, target)) is not None:
            raise ProviderError(f"{found[-1]} cannot be used: {fault}")
        return found[-1]

    def fault(self, path: Path, graph: str, target: Target) -> str | None:
        """Why a file cannot be used for a graph and target; None if it can be used."""
        try:
            with self.opened(path) as (header, engine):
                return next(self._faults(path, header, engine, graph, target), None)
        except FileNotFoundError:
            return "it is missing"
        except (OSError, ValueError) as exc:
            return str(exc)

    def _faults(
        self, path: Path, header: Header, engine: memoryview, graph: str, target: Target
    ) -> Iterator[str]:
        if header.key.graph != graph:
            yield f"it was built from graph {header.key.graph[:16]}, not {graph[:16]}"
        if header.key.target != target:
            yield f"it was built for {header.key.target}, not for {target}"
        if self.path(header.key) != path:
            yield "its name does not match its header"
        if len(engine) != header.n_bytes:
            yield f"it has {len(engine)} of {header.n_bytes} bytes"
        if sha256(engine).hexdigest() != header.sha256:
            yield "its SHA-256 differs from the one in its header"

    @contextmanager
    def opened(self, path: Path) -> Iterator[tuple[Header, memoryview]]:
        """Opens a file; yields its header, and its engine as memory that is valid in the block.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file is not an engine file.
        """
        with path.open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                raise ValueError("it is not an engine file of this version of mosrt")
            line = stream.readline(_MAX_HEADER_BYTES)
            header = Header.parse(line)
            start = stream.tell()
            with (
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as whole,
                whole[start:] as engine,
            ):
                yield header, engine

    def write(self, key: EngineKey, engine: Any, facts: Mapping[str, Any]) -> Path:
        """Writes an engine into the cache.

        Args:
            key: What the engine depends on.
            engine: The serialised engine, any object with the buffer protocol.
            facts: How the engine was built, JSON-ready.

        Raises:
            ProviderError: The cache cannot be written.
        """
        with memoryview(engine) as view, view.cast("B") as content:
            digest = sha256(content).hexdigest()
            header = Header(key=key, n_bytes=len(content), sha256=digest, facts=facts)
            path = self.path(key)
            with replacing_in_cache(path) as stream:
                stream.write(_MAGIC + header.to_line())
                stream.write(content)
        return path


@contextmanager
def replacing_in_cache(path: Path, *, private: bool = True) -> Iterator[Any]:
    """Yields a stream whose content replaces `path` if the block succeeds; makes its folder.

    Args:
        path: The file.
        private: Whether its folder is for this user alone, as a cache is.

    Raises:
        ProviderError: The file cannot be written.
    """
    cure = "free disk space, or set MOSRT_CACHE to a writable folder"
    with os_errors_as(ProviderError, f"{path}: cannot be written", cure):
        if private:
            private_directory(path.parent, path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, part.open("wb") as stream:
            yield stream
        if private:
            path.chmod(0o600)


def _stem(graph: str, target: Target) -> str:
    """The start of a file's name, for people to read; only the header is relied on."""
    return f"{graph[:16]}-{target.module}-{target.version}-cc{target.compute_capability}"


def _shape(sizes: list[int]) -> Shape:
    return tuple(int(size) for size in sizes)
