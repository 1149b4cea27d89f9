"""Hub: the published UTMOSv2 checkpoints on Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mosrt.host.files import sha256_of

from .checkpoint import CheckpointError

__all__ = [
    "FOLDS",
    "LICENCE",
    "PINNED_REVISION",
    "REPOSITORY",
    "TRAINING_DATA",
    "download_fold",
    "fold_file",
]

REPOSITORY: Final = "sarulab-speech/UTMOSv2"
PINNED_REVISION: Final = "506474f2b33dc77c234d668cc419be1861899cad"
FOLDS: Final = {
    0: "c8149d988e4bbf3f347e6966b5d769de347a5f8c59ffca1dc4bd4bf5b8585e57",
    1: "b25a27b8ce23d722395f76a2fff7c259421950458ffb240066edd01d3f28cd1f",
    2: "c0beedbbed7ceef760adc556b925bf760639f281b20f75103b23fcdbdc5568f2",
    3: "ec4b56921617c762428195daef9449855798bfdd651c95933afa9a29212b8567",
    4: "f5176ac65f92653a14b3aea1878575a44ebe94ff7eaac4e9057029c19f52c720",
}
"""SHA-256 of each fold at the pinned revision."""
LICENCE: Final = "MIT"
TRAINING_DATA: Final = (
    "Listening tests with naturalness scores from 1 to 5: BVCC, a sarulab test made for the "
    "VoiceMOS Challenge 2024, Blizzard Challenge 2008-2011 and SOMOS"
)


def fold_file(fold: int) -> str:
    """Name of a fold's checkpoint in the repository."""
    return f"fold{fold}_s42_best_model.pth"


def download_fold(fold: int, revision: str = PINNED_REVISION) -> Path:
    """A fold's checkpoint in Hugging Face's cache, downloaded if it is not there yet (819 MB).

    Args:
        fold: 0 to 4.
        revision: Commit, tag or branch of the repository. The content is verified for the pinned
            one, whose digests are known.

    Raises:
        CheckpointError: It is neither cached nor reachable, or not what was published.
    """
    import huggingface_hub  # noqa: PLC0415 - not needed for a checkpoint at hand
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    name = fold_file(fold)
    try:
        path = Path(huggingface_hub.hf_hub_download(REPOSITORY, name, revision=revision))
    except (HfHubHTTPError, OSError, ValueError) as exc:
        reason = str(exc).strip().split("\n")[0]
        raise CheckpointError(
            f"cannot get {name} from https://huggingface.co/{REPOSITORY} at revision {revision}, "
            f"and it is not in the cache ({type(exc).__name__}: {reason}); download it on a "
            f"machine with a network and pass it with --checkpoint {name}"
        ) from exc
    if revision == PINNED_REVISION and (found := sha256_of(path)) != FOLDS[fold]:
        raise CheckpointError(
            f"{path}: SHA-256 is {found}, {FOLDS[fold]} was published; the download is damaged: "
            "delete the file and try again"
        )
    return path
