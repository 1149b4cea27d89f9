"""Do a bundle's variants load on other processors, repeat themselves, and say the same there?

    python -m mosrt_bench.architectures hear --bundle BUNDLE --audio CLIPS --out HERE.json
    python -m mosrt_bench.architectures compare HERE.json THERE.json \
        --out benchmarks/results/architectures.json

The first is run on each machine, and needs the same bundles and clips; it is no timing, so that an
emulator will do. The second holds the other machines against the first.
"""

from __future__ import annotations

import json
import math
import platform
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import numpy as np

from mosrt import Score, load
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.cli.command import exit_on_error
from mosrt.errors import ProviderError

from .machine import describe
from .output import save, table

__all__ = ["compare", "hear"]

_PROVIDER = "cpu"


def hear(bundle: str, clips: list[Path]) -> dict[str, Any]:
    """Scores clips with all variants of a bundle that ONNX Runtime runs on this CPU.

    Args:
        bundle: Name or path.
        clips: Audio files, at least two.

    Returns:
        "auto", the variant that is the choice here, and by variant "scores" (MOS, or mean
        uncertainty) and whether it "repeats" itself bit by bit in other company.
    """
    variants = {}
    for name in Bundle.open(find_bundle(bundle)).manifest.variants:
        try:
            scorer = load(bundle, variant=name, provider=_PROVIDER, threads=1)
        except ProviderError:  # another engine's
            continue
        with scorer:
            scores = [_value(scorer.score_file(clip)) for clip in clips]
            again = [_value(score) for score in scorer.score_many(clips[1::-1])]
        variants[name] = {"scores": scores, "repeats": again == scores[1::-1]}
    with load(bundle, variant="auto", provider=_PROVIDER, threads=1) as scorer:
        return {"auto": scorer.variant, "variants": variants}


def compare(reference: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """How far another machine's scores are from the reference's, by bundle and variant.

    Args:
        reference: A run of `hear` as the command writes it.
        other: Another, of the same clips.

    Raises:
        click.ClickException: It is of other clips.
    """
    if reference["clips_sha256"] != other["clips_sha256"]:
        raise click.ClickException("the two runs are of other clips; give both the same ones")
    found: dict[str, Any] = {}
    for bundle, heard in other["bundles"].items():
        rows = {}
        for name, variant in heard["variants"].items():
            there = np.array(variant["scores"])
            fp32 = np.array(heard["variants"]["fp32"]["scores"])
            rows[name] = {
                "repeats": variant["repeats"],
                "drift_from_fp32_there": float(np.abs(there - fp32).mean()),
            }
            if name in (known := reference["bundles"].get(bundle, {}).get("variants", {})):
                here = np.array(known[name]["scores"])
                rows[name]["mean_difference"] = float(np.abs(there - here).mean())
                rows[name]["largest_difference"] = float(np.abs(there - here).max())
        found[bundle] = {"auto": heard["auto"], "variants": rows}
    return found


def _value(score: Score) -> float:
    """The model's own figure: an uncertainty's MOS comes from a map, and may be missing."""
    return float(score.measures.get("uncertainty", score.mos or math.nan))


def _read(path: Path) -> dict[str, Any]:
    try:
        run: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise click.ClickException(f"{path}: not a run that `hear` wrote ({exc})") from exc
    if not isinstance(run, dict) or not {"bundles", "clips_sha256"} <= run.keys():
        raise click.ClickException(f"{path}: not a run that `hear` wrote")
    return run


@click.group()
def main() -> None:
    """Variants of bundles on other processors."""


@main.command("hear")
@exit_on_error()
@click.option("--bundle", "bundles", multiple=True, required=True, help="What to score with.")
@click.option(
    "--audio",
    "clips",
    multiple=True,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Clips, at least two.",
)
@click.option("--note", default="", help="What else the machine is, such as an emulator.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def _hear(bundles: tuple[str, ...], clips: tuple[Path, ...], note: str, out: Path) -> None:
    """Score clips with all variants here."""
    if len(clips) < 2:
        raise click.UsageError("give at least two clips, so that they can change places")
    run: dict[str, Any] = {
        "machine": {"architecture": platform.machine(), "note": note, **describe()},
        "clips": len(clips),
        "clips_sha256": sha256(b"".join(clip.read_bytes() for clip in clips)).hexdigest(),
        "bundles": {},
    }
    for bundle in bundles:
        run["bundles"][Path(bundle).name] = hear(bundle, list(clips))
        print(f"{bundle}: heard", file=sys.stderr, flush=True)
    save(run, out)


@main.command("compare")
@exit_on_error()
@click.argument("reference", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument(
    "others", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def _compare(reference: Path, others: tuple[Path, ...], out: Path) -> None:
    """Hold other machines' runs against REFERENCE."""
    first, *rest = (_read(path) for path in (reference, *others))
    machines = []
    rows = []
    for run in rest:
        found = compare(first, run)
        machines.append({"machine": run["machine"], "bundles": found})
        rows += [
            [
                f"{run['machine']['architecture']} {bundle} {name}",
                f"{row.get('largest_difference', float('nan')):.2g}",
                f"{row['drift_from_fp32_there']:.2g}",
                "yes" if row["repeats"] else "NO",
                "auto" if name == one["auto"] else "",
            ]
            for bundle, one in found.items()
            for name, row in one["variants"].items()
        ]
    result = {
        "question": "do variants load on other processors, repeat themselves, and say the same?",
        "command": "python -m mosrt_bench.architectures hear --bundle … --audio … --out …, on "
        "each machine; then compare",
        "clips": first["clips"],
        "machine": first["machine"],
        "others": machines,
    }
    save(result, out)
    print(table(["", "largest difference", "drift there", "repeats", ""], rows))


if __name__ == "__main__":
    main()
