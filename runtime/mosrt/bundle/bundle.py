"""Opens and checks bundles: a directory, or a zip file of one, that holds a model.

The manifest and all file sizes are checked before any other file is opened. A damaged, truncated,
malicious or newer bundle is refused with one clear message.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from mosrt.errors import BundleError, os_errors_as
from mosrt.host.files import recover_directory

from .container import Container
from .manifest import File, Manifest, Variant
from .onnx_header import check_external_data

__all__ = ["MANIFEST_NAME", "MODEL_CARD_NAME", "Bundle"]

MANIFEST_NAME: Final = "manifest.json"
MODEL_CARD_NAME: Final = "model-card.md"
_MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024
_MAX_CARD_BYTES: Final = 1024 * 1024
_MAX_DEPTH: Final = 32
_MAX_MESSAGE: Final = 600


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model on disk.

    Attributes:
        path: The directory or zip file.
        manifest: Its checked manifest.
        sha256: SHA-256 in hex of manifest.json, which has the hashes of all files.
    """

    path: Path
    manifest: Manifest
    sha256: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Reads and checks a bundle's manifest and the sizes of its files.

        Args:
            path: A directory with a manifest.json, or a zip file of one (manifest at its root).

        Raises:
            BundleError: The bundle, or a file in it, is missing, damaged or too new.
        """
        path = Path(path)
        recover_directory(path)
        text = Container.open(path).read(MANIFEST_NAME, _MAX_MANIFEST_BYTES)
        if text is None:
            raise BundleError(f"{path}: has no {MANIFEST_NAME}; is this a bundle?")
        try:
            parsed = json.loads(text)
            if _is_deeper(parsed, _MAX_DEPTH):  # it could not be copied or written
                raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
            digest = hashlib.sha256(text).hexdigest()
            bundle = cls(path, Manifest.from_dict(parsed), digest)
        except BundleError as exc:
            raise BundleError(f"{path}: {str(exc)[:_MAX_MESSAGE]}") from exc
        except (ValueError, RecursionError) as exc:
            raise BundleError(
                f"{path / MANIFEST_NAME}: not valid JSON ({exc}); copy or export the bundle again"
            ) from exc
        bundle._check_sizes()
        return bundle

    def variant(self, name: str) -> Variant:
        """The variant called `name`.

        Raises:
            BundleError: There is no such variant; the message lists those of the bundle.
        """
        try:
            return self.manifest.variants[name]
        except KeyError:
            known = ", ".join(self.manifest.variants)
            raise BundleError(f"{self.path}: no variant {name!r}; it has: {known}") from None

    def model_card(self) -> str:
        """The text of model-card.md, or an empty string when there is none.

        Raises:
            BundleError: The file is larger than 1 MiB, or cannot be read.
        """
        text = self._container.read(MODEL_CARD_NAME, _MAX_CARD_BYTES)
        return "" if text is None else text.decode("utf-8", errors="replace")

    def verify(self, progress: Callable[[int], None] | None = None) -> None:
        """Compares the SHA-256 of every file with the manifest, and checks what graphs refer to.

        Args:
            progress: Called with the number of bytes read since the last call.

        Raises:
            BundleError: The SHA-256 of a file differs, or a graph reads a file that is not its own.
        """
        variants = self.manifest.variants.values()
        for member in dict.fromkeys(each for variant in variants for each in variant.members):
            with self._extracted(member.files, progress=progress) as directory:
                check_external_data(*member.paths(directory))

    @property
    def _container(self) -> Container:
        return Container(self.path)

    @property
    def n_bytes(self) -> int:
        """Size of all model files in bytes."""
        return sum(file.bytes for file in self._files(self.manifest.variants.values()))

    @contextmanager
    def extracted(self, variant: Variant, *, check: bool = True) -> Iterator[Path]:
        """Yields a directory with the files of `variant`: the bundle's own, or a temporary one.

        Args:
            variant: The variant.
            check: Whether to compare the files of a directory with their SHA-256, and to check that
                graphs read no other files; those of a zip are always compared. Without it the
                caller must use `check_files`, and `check_external_data` before a graph is opened.

        Raises:
            BundleError: A file is damaged, a graph reads another file, or the zip cannot be
                unpacked.
        """
        with self._extracted(self._files([variant]), check=check) as directory:
            for member in variant.members if check else ():
                check_external_data(*member.paths(directory))
            yield directory

    @contextmanager
    def _extracted(
        self,
        files: Iterable[File],
        *,
        check: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Path]:
        """As `extracted`, for some of the bundle's files."""
        if self.path.is_dir():
            for file in files if check else ():
                for _ in self._checked(file, progress):
                    pass
            yield self.path
            return
        with ExitStack() as stack:
            with os_errors_as(
                BundleError,
                f"{self.path}: cannot be unpacked into the temporary folder",
                "name one with more space in TMPDIR, or unpack the zip yourself",
            ):
                # Some systems cannot delete a memory-mapped file; it then stays there.
                temporary = TemporaryDirectory(prefix="mosrt-", ignore_cleanup_errors=True)
                directory = Path(stack.enter_context(temporary))
                for file in files:
                    if shutil.disk_usage(directory).free < file.bytes:
                        raise OSError(f"{file.bytes} bytes are needed, and there are fewer")
                    target = directory / file.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as sink:
                        sink.writelines(self._checked(file, progress))
            yield directory

    def _checked(self, file: File, progress: Callable[[int], None] | None) -> Iterator[bytes]:
        """Yields the content of a file, whose SHA-256 it checks at the end."""
        digest = hashlib.sha256()
        with self._reading(file):
            for chunk in self._container.chunks(file.path):
                digest.update(chunk)
                if progress is not None:
                    progress(len(chunk))
                yield chunk
        self._check_digest(file, digest.hexdigest())

    def check_files(self, variant: Variant, hashed: Callable[[Path], str]) -> None:
        """Compares the SHA-256 of a variant's files with the manifest, unless the bundle is a zip.

        Args:
            variant: The variant.
            hashed: Gives the SHA-256 of a file, which it may remember from an earlier time.

        Raises:
            BundleError: The SHA-256 of a file differs, or the file cannot be read.
        """
        for file in self._files([variant]) if self.path.is_dir() else ():
            with self._reading(file):
                digest = hashed(self._container.file(file.path))
            self._check_digest(file, digest)

    def _check_digest(self, file: File, digest: str) -> None:
        if digest != file.sha256:
            raise BundleError(
                f"{self.path / file.path}: SHA-256 is {digest}, the manifest says {file.sha256}; "
                "the file is damaged or replaced: copy or export it again"
            )

    def _reading(self, file: File) -> AbstractContextManager[None]:
        what = f"{self.path / file.path}: cannot be read"
        return os_errors_as(BundleError, what, "copy the bundle again")

    def _files(self, variants: Iterable[Variant]) -> tuple[File, ...]:
        files = {file.path: file for variant in variants for file in variant.files}
        return tuple(files.values())

    def _check_sizes(self) -> None:
        files = self._files(self.manifest.variants.values())
        sizes = self._container.sizes([file.path for file in files])
        for file in files:
            size = sizes.get(file.path)
            if size is None:
                raise BundleError(
                    f"{self.path / file.path}: missing; copy or export the bundle again"
                )
            if size != file.bytes:
                raise BundleError(
                    f"{self.path / file.path}: {size} bytes, the manifest says {file.bytes}; "
                    "the copy is incomplete: copy or export the bundle again"
                )


def _is_deeper(value: object, levels: int) -> bool:
    """Whether JSON is nested in more than so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner)
