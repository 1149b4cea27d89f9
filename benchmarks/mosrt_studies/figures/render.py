"""Render the raw results as `benchmarks/RESULTS.md`, and a short table of them for README.md.

    python -m mosrt_studies.figures.render [--check]

Reads benchmarks/results/*.json and writes both files; a test fails when they disagree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from mosrt.cli.command import ExitStatus
from mosrt_bench.report.writer import markdown_table

from .tables import SECTIONS, WEIGHTS, drift_cell, milliseconds

__all__ = ["readme_table", "render", "replaced"]

Run = Mapping[str, Any]

BEGIN: Final = "<!-- results: begin -->"
END: Final = "<!-- results: end -->"
_ROOT: Final = Path(__file__).parents[3]

# What recorded commands say, and its current name.
_RENAMED: Final = (
    (r"mosrt_bench\.(ladder|listening|order|uncertainty_ranking)\b", r"mosrt_studies.accuracy.\1"),
    (r"mosrt_bench\.(embedded|front_end|long_recording)\b", r"mosrt_studies.speed.\1"),
    (r"mosrt_bench\.uncertainty_speed\b", "mosrt_studies.speed.uncertainty"),
    (r"mosrt_bench\.distilled\b", "mosrt_studies.distilled"),
    (r"(mosrt_studies\S+) --bundle ", r"\1 --model "),
    (r"mosrt calibrate ", "mosrt quantize "),
    (r"mosrt bench (?!run )", "mosrt bench run "),
    (r" --out ", " --output "),
)
_LIST: Final = re.compile(r"--(variant|provider|length)s (\S+)")
# The last commit that has the code of a study that is no longer here.
_LAST_COMMIT: Final = {"architectures": "36dc3eb", "distilled": "9054121"}
# Threads of studies that fix them and do not record them.
_THREADS: Final = {"embedded": 1, "ladder": 1, "listening": 1, "order": 1, "drift": 1}


def render(results: Path) -> str:
    """RESULTS.md from a folder of raw results; sections whose file is missing are left out."""
    sections = list(_sections(results))
    page = Path(__file__).with_name("results.md").read_text(encoding="utf-8")
    return page.format(
        contents="\n".join(f"- [{title}](#{_anchor(title)})" for title, _ in sections),
        sections="\n\n".join(f"## {title}\n\n{text}" for title, text in sections),
    )


def _sections(results: Path) -> Iterator[tuple[str, str]]:
    """Heading and text of each section, in the order of the page."""
    for pattern, title, text_of in SECTIONS:
        for path in sorted(results.glob(f"{pattern}.json")):
            run = _read(results, path.stem)
            models = " and ".join(bundle["name"] for bundle in run.get("bundles", []))
            yield title.format(models=models), f"{text_of(run)}\n\n{_provenance(path.stem, run)}"


def _provenance(name: str, run: Run) -> str:
    machine = run["machine"]
    packages = {"Python": machine["python"], **machine["packages"]}
    versions = ", ".join(f"{package} {version}" for package, version in packages.items() if version)
    threads = run.get("threads") or run.get("settings", {}).get("threads") or _THREADS.get(name)
    counts = " or ".join(map(str, threads)) if isinstance(threads, list) else str(threads)
    used = "" if threads is None else f" {counts} thread{'' if counts == '1' else 's'}."
    commit = _LAST_COMMIT.get(name)
    source = "" if commit is None else f" The code of this study is in commit `{commit}`."
    return (
        f"{machine['cpu']}, {machine['usable_cores']} cores, {machine['memory_gib']:.0f} GiB."
        f"{used} {versions}. Raw data: [{name}.json](results/{name}.json).{source}\n\n"
        f"```\n{_current(run['command'])}\n```"
    )


def _current(command: str) -> str:
    """A recorded command with the current names of modules and options."""
    for old, new in _RENAMED:
        command = re.sub(old, new, command)
    return _LIST.sub(lambda m: " ".join(f"--{m[1]} {value}" for value in m[2].split(",")), command)


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def readme_table(results: Path) -> str:
    """A short table: accuracy, drift, time, size and speed against torch by variant.

    Args:
        results: Folder of the raw results. A cell whose result is missing is a dash; a column
            without results is left out.
    """
    listening = _read(results, "listening").get("agreement", {})
    drifts = _declared_drifts(results)
    rows = []
    for path in sorted(results.glob("bench_*.json")):
        run = _read(results, path.stem)
        bundles = {bundle["name"]: bundle for bundle in run["bundles"]}
        for row in run["latency"]:
            model, variant, provider, _ = row["contestant"].split(" ")
            if row["clip_s"] != 5.0 or model not in WEIGHTS or provider.startswith("torch-"):
                continue
            bundle, torch = bundles[model], row.get("ratio_to_torch")
            agreement = listening.get(f"{model} {bundle['default_domain']}")
            rows.append(
                (f"`{model}`", variant, _concordance(agreement) if variant == "fp32" else "-",
                 drifts.get((model, variant), "-"), milliseconds(row["quantiles"]["p50"]["ms"]),
                 f"{bundle['variants'][variant]['bytes'] / 1e6:.1f} MB",
                 "-" if torch is None else f"{1 / torch['ratio']:.2f}")
            )  # fmt: skip
    if embedded := _read(results, "embedded"):
        cost = f"{embedded['faster_than_p808']['ratio']:.1f} times the CPU time of `nano`"
        peer = "DNSMOS P.808"
        rows.append((peer, "-", _concordance(listening.get(peer)), "-", cost, "-", "-"))
    header = ("model", "variant", "pairs in listeners' order", "drift from FP32", "5 s clip",
              "size", "speed-up over torch")  # fmt: skip
    shown = [i for i in range(len(header)) if any(row[i] != "-" for row in rows)]
    return markdown_table([header[i] for i in shown], [[row[i] for i in shown] for row in rows])


def _declared_drifts(results: Path) -> dict[tuple[str, str], str]:
    """Mean drift by model and variant, as the bundles declare it."""
    return {
        (bundle["name"], variant): drift_cell(found["declared_drift"])
        for name in ("bench_utmosv2", "drift")
        for bundle in _read(results, name).get("bundles", [])
        for variant, found in bundle["variants"].items()
        if variant != "fp32"
    }


def _concordance(agreement: Run | None) -> str:
    return "-" if agreement is None else f"{agreement['concordance']:.0%}"


def replaced(readme: str, table: str) -> str:
    """README's text with a table between the markers of results.

    Raises:
        ValueError: A marker is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _read(results: Path, name: str) -> dict[str, Any]:
    """A result; empty where its file is missing."""
    path = results / f"{name}.json"
    run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return run


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a file is out of date.")
def main(check: bool) -> None:
    """Write benchmarks/RESULTS.md and the results table of README.md."""
    results, readme = _ROOT / "benchmarks" / "results", _ROOT / "README.md"
    made: list[tuple[Path, Callable[[], str]]] = [
        (_ROOT / "benchmarks" / "RESULTS.md", lambda: render(results)),
        (readme, lambda: replaced(readme.read_text(encoding="utf-8"), readme_table(results))),
    ]
    for path, text_of in made:
        text = text_of()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            click.echo(f"{path.name}: out of date" if check else f"{path.name}: written")
            if check:
                raise click.exceptions.Exit(ExitStatus.NO)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
