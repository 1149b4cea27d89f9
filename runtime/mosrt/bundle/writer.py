"""Writes bundles: new ones, and changed copies of existing ones, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from mosrt.errors import BundleError, OutputError, os_errors_as
from mosrt.host.files import recover_directory, replacing, replacing_directory, sha256_of

from .bundle import MANIFEST_NAME, MODEL_CARD_NAME
from .container import Container
from .manifest import File, Manifest

__all__ = [
    "OutputError", "bundle_file", "check_target", "new_directory", "updated_bundle", "write_card",
    "write_manifest",
]  # fmt: skip

_JSON_INDENT: Final = 2


def check_target(
    out: Path, *, force: bool, kind: str = "bundle", mark: str = MANIFEST_NAME
) -> None:
    """Refuses a target that must not be replaced, before minutes of work go into it.

    Args:
        out: The directory to be written.
        force: Whether an older directory of the same kind is replaced.
        kind: What the directory is called in messages.
        mark: Name of a file that every directory of this kind contains.

    Raises:
        OutputError: `out` exists and `force` is off, or it is not a directory of this kind.
    """
    recover_directory(out)
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise OutputError(
            f"{out} exists already; choose another --output, or replace it with --force"
        )
    empty = out.is_dir() and not any(out.iterdir())
    if out.is_symlink() or not (empty or (out / mark).is_file()):
        raise OutputError(f"{out} is not a {kind}, so --force does not replace it; move it away")


@contextmanager
def new_directory(
    out: Path, *, force: bool, kind: str = "bundle", mark: str = MANIFEST_NAME
) -> Iterator[Path]:
    """Yields an empty directory that becomes `out` if the block succeeds, and is removed else.

    The arguments are those of `check_target`.

    Raises:
        OutputError: As `check_target`, or the directory cannot be made.
    """
    check_target(out, force=force, kind=kind, mark=mark)
    with _written(out) as directory:
        yield directory


@contextmanager
def updated_bundle(bundle: Path, out: Path) -> Iterator[Path]:
    """Yields a copy of a bundle to change, which becomes `out` if the block succeeds.

    Args:
        bundle: The bundle's directory.
        out: `bundle` itself, which is then replaced; or a path where nothing is yet.

    Raises:
        OutputError: `out` is something else, or cannot be written.
        BundleError: Something in the bundle's directory is no file, or a link that leaves it.
    """
    container = Container(bundle)
    for path in bundle.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            with os_errors_as(BundleError, f"{path}: cannot be copied", "remove it"):
                container.file(path.relative_to(bundle).as_posix())
    recover_directory(out)
    in_place = out.resolve() == bundle.resolve()
    if not in_place and (out.exists() or out.is_symlink()):
        raise OutputError(f"{out} exists already; choose another --output, or leave it out")
    with _written(bundle.resolve() if in_place else out, copy_of=bundle) as directory:
        yield directory


@contextmanager
def _written(out: Path, copy_of: Path | None = None) -> Iterator[Path]:
    """`replacing_directory`, whose own failures become an OutputError."""
    with ExitStack() as stack:
        cure = "name a directory that can be written with --output"
        with os_errors_as(OutputError, f"{out}: cannot be written", cure):
            directory = stack.enter_context(replacing_directory(out, copy_of=copy_of))
        yield directory


def bundle_file(path: Path) -> File:
    """The manifest's entry for a file in the bundle's root."""
    return File(path=path.name, sha256=sha256_of(path), bytes=path.stat().st_size)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes manifest.json, after checking that the manifest can be read back.

    Raises:
        BundleError: The manifest contradicts itself.
    """
    text = json.dumps(manifest.to_dict(), indent=_JSON_INDENT, ensure_ascii=False)
    Manifest.from_dict(json.loads(text))
    _write_text(directory / MANIFEST_NAME, f"{text}\n")


def write_card(directory: Path, text: str) -> None:
    """Writes model-card.md."""
    _write_text(directory / MODEL_CARD_NAME, text)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
