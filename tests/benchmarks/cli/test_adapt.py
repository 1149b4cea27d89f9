"""`mosrt adapt` with the embedded model and clips whose ratings follow from a known map."""

import csv
import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.writer import updated_bundle, write_manifest
from mosrt_bench.cli.adapt import adapt
from tests.conftest import DATA
from tests.standins.segments import write_segments_bundle

RATE_HZ = 16_000
N_CLIPS, N_SYSTEMS = 30, 10


def run(*arguments: object) -> Result:
    return CliRunner().invoke(adapt, [*map(str, arguments), "--threads", "1"])


def write_ratings(folder: Path, rows: list[tuple[str, float, str]]) -> Path:
    file = folder / "mos.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "mos", "system"), *rows])
    return file


def known_map(p808: float) -> float:
    return 3.0 + 2.0 * (p808 - 3.2)


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech in noise; a system is a level of noise, and its ratings a map of one domain."""
    folder = tmp_path_factory.mktemp("rated")
    rng = np.random.default_rng(0)
    speech, rate_hz = soundfile.read(DATA / "flite_slt_16k_mono.wav", dtype="float32")
    assert rate_hz == RATE_HZ
    rows = []
    with mosrt.load("nano", threads=1) as scorer:
        for i in range(N_CLIPS):
            system = i % N_SYSTEMS
            part = speech[(start := 500 * i) : start + 16_000]
            noise = 10 ** (-4 + 0.3 * system) * 0.1 * rng.standard_normal(len(part))
            soundfile.write(folder / f"{i}.wav", part + noise, RATE_HZ)
            p808 = scorer.score_file(folder / f"{i}.wav").domains["p808"]
            rows.append((f"{i}.wav", known_map(p808) + rng.normal(0, 0.03), f"s{system}"))
    listeners = [(path, mos + by, system) for path, mos, system in rows for by in (-0.2, 0.2)]
    write_ratings(folder, listeners)
    return folder


@pytest.fixture(scope="module")
def adapted(rated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a copy of nano with a second variant, which has the same files."""
    out = tmp_path_factory.mktemp("adapted")
    with updated_bundle(find_bundle("nano"), out / "two") as directory:
        manifest = Bundle.open(directory).manifest
        variants = {**manifest.variants, "copy": manifest.variants["fp32"]}
        write_manifest(directory, dataclasses.replace(manifest, variants=variants))
    options = ("--name", "lab", "-o", out / "lab", "--report", out / "report.json")
    result = run(out / "two", "--ratings", rated / "mos.csv", *options)
    assert result.exit_code == 0, result.output
    assert "written; domain lab (affine), from 30 rated clips" in result.output
    return out / "lab"


def test_the_new_domain_is_the_default_and_the_others_are_as_before(
    rated: Path, adapted: Path
) -> None:
    Bundle.open(adapted).verify()
    clips = sorted(rated.glob("*.wav"))[:8]
    with mosrt.load("nano") as scorer:
        before = scorer.score_many(clips)
    with mosrt.load(adapted) as scorer:
        assert scorer.domains == (*before[0].domains, "lab")
        after = scorer.score_many(clips)
        again = pickle.loads(pickle.dumps(scorer)).score_file(clips[0])
        bvcc = scorer.score_file(clips[0], domain="bvcc")
    for old, new in zip(before, after, strict=True):
        assert new.domain == "lab"
        assert new.mos == pytest.approx(known_map(old.domains["p808"]), abs=0.05)
        assert {name: new.domains[name] for name in old.domains} == dict(old.domains)
        assert new.mos == new.domains["lab"] == pytest.approx(np.mean(new.views), abs=0)
    assert (again.mos, bvcc.mos) == (after[0].mos, before[0].domains["bvcc"])


def test_the_report(adapted: Path) -> None:
    report = json.loads((adapted.parent / "report.json").read_text())
    assert (report["model"], report["domain"], report["accepted"]) == ("nano", "lab", True)
    assert (report["n_clips"], report["grouped_by"], report["n_groups"]) == (30, "system", [10])
    systems = report["levels"]["system"]
    assert systems["lab"]["n"] == N_SYSTEMS
    assert systems["lab"]["mse"] < 0.01 < systems["p808"]["mse"]
    assert systems["mean rating"]["lcc"] is None
    assert [n for n, _ in report["learning_curve"]] == [5, 10, 27]
    head = Bundle.open(adapted).manifest.heads["lab"]
    assert head.evaluation["system"]["mse"] == systems["lab"]["mse"]
    drift = Bundle.open(adapted).manifest.variants["copy"].drift
    assert (drift["lab_max_abs"], drift["lab_mean_abs"]) == (0, 0)
    assert "Domain `lab`" in Bundle.open(adapted).model_card()


def test_shuffled_ratings_are_refused_and_nothing_is_written(rated: Path, tmp_path: Path) -> None:
    with (rated / "mos.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))[::2]
    mos = np.random.default_rng(1).permutation([float(row["mos"]) for row in rows])
    file = write_ratings(
        tmp_path,
        [(str(rated / row["path"]), m, row["system"]) for row, m in zip(rows, mos, strict=True)],
    )
    result = run("nano", "--ratings", file, "-o", tmp_path / "new")
    assert result.exit_code == 1
    assert "no bundle was written" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mos.csv"]


@pytest.mark.parametrize(
    ("model", "options", "text", "status", "message"),
    [
        ("nano", (), "path,mos\na.wav,80\n", 2, "'80' is not a number from 1 to 5"),
        ("nano", ("--name", "bvcc"), "path,mos\na.wav,3\n", 3, "has a domain 'bvcc'"),
        ("nano", ("--name", "all"), "path,mos\na.wav,3\n", 2, "take letters, digits"),
        ("nano-uncertainty", (), "path,mos\na.wav,3\n", 3, "take `mosrt fit-mos`"),
        ("nano", ("-o", "."), "path,mos\na.wav,3\n", 3, "exists already"),
        ("nano", (), "path,mos\na.wav,3\n", 3, "a.wav cannot be scored and is left out"),
        ("nano", (), "path,mos\na.wav,3\n", 3, "0 rated clips can be scored; rate at least 5"),
    ],
)
def test_what_cannot_be_adapted(
    model: str, options: tuple[str, ...], text: str, status: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "mos.csv").write_text(text)
    result = run(model, "--ratings", tmp_path / "mos.csv", "-o", tmp_path / "new", *options)
    assert (result.exit_code, message in result.output) == (status, True), result.output
    assert not (tmp_path / "new").exists()


def test_a_head_that_does_not_fit_the_graph_is_refused(adapted: Path) -> None:
    manifest = json.loads((adapted / "manifest.json").read_text())
    head = manifest["heads"]["lab"]
    for change, message in (
        ({"weights": {"mos": [1.0]}}, "heads.lab.weights do not fit"),
        ({"weights": {}}, "heads.lab.weights must name an output"),
        ({"x": [1, 1], "y": [1, 2]}, "heads.lab: x must rise"),
    ):
        broken = {**manifest, "heads": {"lab": {**head, **change}}}
        with pytest.raises(mosrt.BundleError, match=message):
            type(Bundle.open(adapted).manifest).from_dict(broken)


def test_a_model_of_segments_is_adapted(rated: Path, tmp_path: Path) -> None:
    """One view has an interval in the domains for which the model predicts its error, no other."""
    bundle = write_segments_bundle(tmp_path / "bundle")
    clips = sorted(rated.glob("*.wav"), key=lambda path: int(path.stem))
    with mosrt.load(bundle, threads=1) as scorer:
        before = [scorer.score_file(path) for path in clips]
    codec = np.array([score.domains["codec"] for score in before])
    ratings = 3 + (codec - codec.mean()) / codec.std() / 2
    rows = [
        (str(path), mos, f"s{i % N_SYSTEMS}")
        for i, (path, mos) in enumerate(zip(clips, ratings.tolist(), strict=True))
    ]
    out = tmp_path / "ours"
    file = write_ratings(tmp_path, rows)
    result = run(bundle, "--ratings", file, "--name", "ours", "-o", out)
    assert result.exit_code == 0, result.output
    with mosrt.load(out, threads=1) as scorer:
        ours = scorer.score_file(clips[0])
        overall = scorer.score_file(clips[0], domain="overall")
    assert ours.mos == pytest.approx(ratings[0], abs=0.1)
    assert not np.isfinite(ours.low)
    assert (overall.mos, overall.low) == (before[0].mos, before[0].low)
    assert np.isfinite(overall.low)


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(adapt, ["--help"])
    assert "mosrt adapt nano --ratings mos.csv --name ours -o ours-nano" in result.output
