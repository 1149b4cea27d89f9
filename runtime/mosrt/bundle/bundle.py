"""Opens and checks bundles: a directory, or a zip file of one, that holds a model.

Bundles are opened by path, or by the name of an embedded model.

The manifest and all file sizes are checked before any other file is opened. A damaged, truncated,
malicious or newer bundle is refused with one clear message.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final

from mosrt.errors import BundleError

from .manifest import File, Manifest, Variant

__all__ = [
    "DEFAULT_MODEL",
    "MANIFEST_NAME",
    "MODEL_CARD_NAME",
    "Bundle",
    "embedded_models",
    "find_bundle",
]

MANIFEST_NAME: Final = "manifest.json"
MODEL_CARD_NAME: Final = "model-card.md"
_MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model on disk.

    Attributes:
        path: The directory or zip file.
        manifest: Its checked manifest.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Reads and checks a bundle's manifest and the sizes of its files.

        Args:
            path: A directory with a manifest.json, or a zip file of one (manifest at its root).

        Raises:
            BundleError: The bundle, or a file in it, is missing, damaged or too new.
        """
        path = Path(path)
        if not path.exists():
            raise BundleError(
                f"{path}: no such bundle; `mosrt export --help` tells how to make one"
            )
        if not path.is_dir() and not zipfile.is_zipfile(path):
            raise BundleError(f"{path}: neither a bundle directory nor a zip of one")
        try:
            with _open_member(path, MANIFEST_NAME) as stream:
                text = stream.read(_MAX_MANIFEST_BYTES + 1)
        except OSError as exc:
            raise BundleError(
                f"{path}: cannot read {MANIFEST_NAME} ({exc.strerror or exc}); is this a bundle?"
            ) from exc
        if len(text) > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{path / MANIFEST_NAME}: larger than any real manifest")
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise BundleError(
                f"{path / MANIFEST_NAME}: not valid JSON ({exc}); copy or export the bundle again"
            ) from exc
        try:
            bundle = cls(path, Manifest.from_dict(parsed))
        except BundleError as exc:
            raise BundleError(f"{path}: {exc}") from exc
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
        """The text of model-card.md, or an empty string when there is none."""
        try:
            with _open_member(self.path, MODEL_CARD_NAME) as stream:
                return stream.read().decode("utf-8", errors="replace")
        except OSError:
            return ""

    def verify(self, progress: Callable[[int], None] | None = None) -> None:
        """Compares the SHA-256 of every file with the manifest.

        Args:
            progress: Called with the number of bytes read since the last call.

        Raises:
            BundleError: The SHA-256 of a file differs.
        """
        for file in self._files():
            digest = hashlib.sha256()
            with _open_member(self.path, file.path) as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
                    if progress is not None:
                        progress(len(chunk))
            if digest.hexdigest() != file.sha256:
                raise BundleError(
                    f"{self.path / file.path}: SHA-256 is {digest.hexdigest()}, the manifest says "
                    f"{file.sha256}; the file is damaged or replaced: copy or export it again"
                )

    @property
    def n_bytes(self) -> int:
        """Size of all model files in bytes."""
        return sum(file.bytes for file in self._files())

    @contextmanager
    def extracted(self, variant: Variant) -> Iterator[Path]:
        """Yields a directory with the files of `variant`: the bundle's own, or a temporary one."""
        if self.path.is_dir():
            yield self.path
            return
        # Some systems cannot delete a memory-mapped file; it then stays in the temporary folder.
        with TemporaryDirectory(prefix="mosrt-", ignore_cleanup_errors=True) as temporary:
            for file in variant.files:
                target = Path(temporary, file.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                with _open_member(self.path, file.path) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
            yield Path(temporary)

    def _files(self) -> tuple[File, ...]:
        files = {f.path: f for variant in self.manifest.variants.values() for f in variant.files}
        return tuple(files.values())

    def _check_sizes(self) -> None:
        for file in self._files():
            try:
                size = _member_size(self.path, file.path)
            except (OSError, KeyError):
                raise BundleError(
                    f"{self.path / file.path}: missing; copy or export the bundle again"
                ) from None
            if size != file.bytes:
                raise BundleError(
                    f"{self.path / file.path}: {size} bytes, the manifest says {file.bytes}; "
                    "the copy is incomplete: copy or export the bundle again"
                )


@contextmanager
def _open_member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Opens file `name` of a bundle; a missing file is an OSError in a directory and in a zip."""
    if path.is_dir():
        with _inside(path, name).open("rb") as stream:
            yield stream
        return
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            yield stream
    except KeyError as exc:
        raise FileNotFoundError(2, "No such file in the zip", name) from exc
    except zipfile.BadZipFile as exc:
        raise BundleError(f"{path}: damaged zip ({exc}); copy the bundle again") from exc


def _inside(directory: Path, name: str) -> Path:
    """Resolves file `name` of a bundle directory; BundleError if it is outside of it."""
    inside = (directory / name).resolve()
    if not inside.is_relative_to(directory.resolve()):
        raise BundleError(f"{directory / name}: a link that leaves the bundle; copy the file in")
    return inside


def _member_size(path: Path, name: str) -> int:
    if path.is_dir():
        return _inside(path, name).stat().st_size
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo(name).file_size


DEFAULT_MODEL: Final = "nano"
_MODELS = Path(__file__).parents[1] / "models"
_LOG = logging.getLogger(__name__)


def embedded_models() -> dict[str, Path]:
    """Bundle directories of the installed package by name, the default model first."""
    found = {path.parent.name: path.parent for path in _MODELS.glob(f"*/{MANIFEST_NAME}")}
    return {name: found[name] for name in sorted(found, key=lambda n: (n != DEFAULT_MODEL, n))}


def find_bundle(reference: str | os.PathLike[str] | None = None) -> Path:
    """The path of the bundle that `reference` means.

    A string that is the name of an embedded model means that model, even if the working directory
    has a file of that name. Anything else is a path, and so are `"./nano"` and `Path("nano")`.

    Args:
        reference: Name of an embedded model, or path of a bundle; by default the default model.

    Raises:
        BundleError: There is neither an embedded model of that name nor such a path.
    """
    models = embedded_models()
    if reference is None:
        if DEFAULT_MODEL not in models:
            raise BundleError(
                f"{_MODELS / DEFAULT_MODEL}: the default model is missing; "
                "install mosrt again, or name the path of a bundle"
            )
        return models[DEFAULT_MODEL]
    path = Path(reference)
    separators = {os.sep, os.altsep or os.sep}
    if not isinstance(reference, str) or separators & set(reference):
        return path
    written_as_path = f".{os.sep}{reference}"
    if reference in models:
        if (path / MANIFEST_NAME).exists():
            _LOG.warning(
                "%s means the embedded model; write %s for the bundle in the working directory",
                reference,
                written_as_path,
            )
        return models[reference]
    if not path.exists():
        raise BundleError(
            f"{reference}: no such bundle; embedded models: "
            f"{', '.join(models) or 'none, install mosrt again'}; a bundle of your own is named by "
            f"its path, such as {written_as_path} (`mosrt export --help` tells how to make one)"
        )
    return path
