"""Names the models that come with mosrt, and finds the bundle that a name or a path means."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from mosrt.errors import BundleError
from mosrt.host.files import recover_directory

from .bundle import MANIFEST_NAME

__all__ = ["DEFAULT_MODEL", "MODELS", "embedded_models", "find_bundle"]

DEFAULT_MODEL: Final = "distillmos"
MODELS = Path(__file__).parents[1] / "models"
_LOG = logging.getLogger(__name__)


def embedded_models() -> dict[str, Path]:
    """Bundle directories of the installed package by name, the default model first."""
    found = {path.parent.name: path.parent for path in MODELS.glob(f"*/{MANIFEST_NAME}")}
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
                f"{MODELS / DEFAULT_MODEL}: the default model is missing; "
                "install mosrt again, or name the path of a bundle"
            )
        return models[DEFAULT_MODEL]
    path = Path(reference)
    if not isinstance(reference, str) or {os.sep, os.altsep or os.sep} & set(reference):
        return path
    written_as_path = f".{os.sep}{reference}"
    if reference in models:
        if (path / MANIFEST_NAME).is_file():
            text = "%s means the embedded model; write %s for the bundle in the working directory"
            _LOG.warning(text, reference, written_as_path)
        return models[reference]
    recover_directory(path)
    if not os.path.lexists(path):
        raise BundleError(
            f"{reference}: no such bundle; embedded models: "
            f"{', '.join(models) or 'none, install mosrt again'}; a bundle of your own is named by "
            f"its path, such as {written_as_path} (`mosrt export --help` tells how to make one)"
        )
    return path
