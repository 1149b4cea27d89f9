"""Listeners: which of them a manifest asks for."""

from __future__ import annotations

from mosrt.bundle.manifest import Manifest
from mosrt.errors import BundleError
from mosrt.host.thread_pool import Crew

from .ctc import DropoutListener
from .family import Listener, Stages
from .pretraining import MaskingListener
from .wav2vec import ContrastListener

__all__ = ["listener"]


def listener(manifest: Manifest, stages: Stages, crew: Crew) -> Listener:
    """The listener of a manifest's family.

    Args:
        manifest: Of an uncertainty family.
        stages: What runs each of its graphs.
        crew: Threads that share the work beside the graphs.
    """
    spec = manifest.uncertainty
    if spec is not None and spec.contrast is not None:
        return ContrastListener(spec, spec.contrast, stages, crew)
    if spec is not None and spec.dropout is not None:
        return DropoutListener(spec, spec.dropout, stages)
    if spec is not None and spec.masking is not None:
        return MaskingListener(spec, spec.masking, stages)
    raise BundleError(f"manifest.json: family {manifest.family!r} gives no uncertainty")
