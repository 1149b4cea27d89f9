"""Uncertainty facts: a manifest's section as lines that a person reads."""

from __future__ import annotations

from mosrt.bundle.manifest import Manifest

__all__ = ["uncertainty_facts"]


def uncertainty_facts(manifest: Manifest) -> dict[str, str]:
    """Lines by label; none for a model that predicts MOS."""
    spec = manifest.uncertainty
    if spec is None:
        return {}
    sign = "" if spec.sign > 0 else "-"
    facts = {
        "uncertainty": f"{sign}{spec.measure}; layouts {', '.join(spec.layouts)}; seed {spec.seed}",
        "pieces": f"at most {spec.window_samples / manifest.sample_rate_hz:g} s; a value per "
        f"{1e3 * spec.hop_samples / manifest.sample_rate_hz:g} ms",
    }
    if (contrast := spec.contrast) is not None:
        last = contrast.first_horizon + contrast.n_steps - 1
        facts["predicts"] = (
            f"frames {contrast.first_horizon} to {last} ahead, against {contrast.n_negatives}"
        )
    if (dropout := spec.dropout) is not None:
        facts["dropout"] = f"{dropout.probability:g}, {dropout.n_passes} passes"
    if (masking := spec.masking) is not None:
        facts["masking"] = f"{masking.probability:g} of frames, {masking.n_passes} passes"
    facts["mos"] = "not given; fit a map with `mosrt calibrate-mos`"
    if (fitted := spec.mos_map) is not None:
        facts["mos"] = (
            f"{fitted.kind} map from {fitted.n_clips} recordings ({fitted.description}), "
            f"leave-one-out error {fitted.loo_rmse:.3f}"
        )
    return facts
