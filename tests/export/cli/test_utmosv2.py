import hashlib
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.front_end_spec import FRONT_ENDS
from mosrt_export.cli.export import export
from mosrt_export.errors import CheckpointError, ParityError
from mosrt_export.parity import Drift
from mosrt_export.utmosv2 import checkpoint, parity
from tests.conftest import DATA
from tests.export.conftest import Exported, toml, utmosv2
from tests.standins.utmosv2 import SMALL, fill, small_config, small_model


def test_a_fusion_bundle_scores_like_torch(fusion: Exported) -> None:
    out, result = fusion.bundle, fusion.result
    assert result.exit_code == 0, result.output
    Bundle.open(out).verify()
    clip, _ = soundfile.read(DATA / "flite_slt_16k_mono.wav", dtype="float32")
    with mosrt.load(out) as scorer:
        score = scorer.score(clip, 16_000)
        assert list(score.domains) == ["north", "south", "east"]
        found = scorer.features(clip, 16_000, plan="reference:7")
    # the same view, made by the golden tests' own rules and run through the torch module
    draws = np.random.RandomState(7)
    start = draws.randint(len(clip) - 3200)
    crop = clip[start : start + 3200].astype(np.float64)
    crop = (crop - crop.mean()) / np.sqrt(crop.var() + 1e-7)
    ssl = small_model("fusion").get_submodule("ssl")
    with torch.inference_mode():
        expected = ssl.embed(torch.from_numpy(crop[None].astype(np.float32)))  # type: ignore[operator]
    np.testing.assert_allclose(found["ssl_features"][0, 0], expected[0].numpy(), atol=1e-4)


def test_the_manifest_tells_where_it_came_from(fusion: Exported, inputs: Path) -> None:
    out = fusion.bundle
    manifest = Bundle.open(out).manifest
    assert manifest.name == "small"
    assert manifest.family == "fusion"
    assert manifest.default_domain == "north"
    (member,) = manifest.variants["fp32"].members
    assert member.graph.path == "model.network0.fp32.onnx"
    assert member.weights is not None
    assert member.weights.path == "model.network0.fp32.onnx.data"
    drift = manifest.variants["fp32"].drift
    assert drift["mos_max_abs"] <= 1e-3
    assert drift["n_clips"] == 5
    assert drift["against"] == "torch fp32"
    (checkpoint,) = manifest.provenance["checkpoints"]
    digest = hashlib.sha256((inputs / "fusion.pth").read_bytes()).hexdigest()
    assert checkpoint == {"member": "network0", "file": "fusion.pth", "sha256": digest}
    assert manifest.provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    # nobody said, so the card must not claim the published model's licence or data
    assert "unknown" in manifest.provenance["licence"]
    assert "unknown" in manifest.provenance["training_data"]
    everything = (out / "manifest.json").read_text() + (out / "model-card.md").read_text()
    assert str(inputs) not in everything
    assert str(out.parent) not in everything


def test_the_card_is_frank(fusion: Exported) -> None:
    card = (fusion.bundle / "model-card.md").read_text()
    for words in ("1 (bad) to", "Known failures", "arXiv 2409.09305", "sarulab-speech", "MIT"):
        assert words in card
    assert "trained by someone else" in card
    assert "{" not in card


def test_progress_and_figures_are_told(fusion: Exported) -> None:
    result = fusion.result
    for step in ("[1/4] reading fusion.pth", "[2/4] exporting network0", "[4/4] writing small"):
        assert step in result.stderr
    assert "female_16k_mono.ogg" in result.stderr
    assert f"{fusion.bundle.name}: written; largest difference" in result.stdout


def test_an_existing_bundle_is_kept_without_force(
    spec: Exported, inputs: Path, tmp_path: Path
) -> None:
    out = spec.bundle
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    arguments = (inputs / "spec.pth", "--config", inputs / "small.toml")
    result = utmosv2(*arguments, "--output", out)
    assert result.exit_code == 3
    assert "exists already" in result.output
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("words")
    result = utmosv2(*arguments, "--output", precious, "--force")
    assert result.exit_code == 3
    assert "not a bundle" in result.output
    assert (precious / "thesis.txt").read_text() == "words"


@pytest.mark.full
def test_the_same_again_is_the_same_byte_for_byte(
    spec: Exported, inputs: Path, tmp_path: Path
) -> None:
    """Manifest and card included, in place of what was there."""
    out = Path(shutil.copytree(spec.bundle, tmp_path / "bundles" / spec.bundle.name))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    (out / "manifest.json").write_text((out / "manifest.json").read_text() + "\n")
    arguments = (inputs / "spec.pth", "--config", inputs / "small.toml")
    result = utmosv2(*arguments, "--output", out, "--force")
    assert result.exit_code == 0, result.output
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_an_ensemble_of_ssl_models(ssl_pair: Exported, inputs: Path) -> None:
    out, result = ssl_pair.bundle, ssl_pair.result
    assert result.exit_code == 0, result.output
    manifest = Bundle.open(out).manifest
    assert (manifest.name, manifest.family) == ("pair", "ssl")
    assert manifest.mel is None
    assert [member.name for member in manifest.variants["fp32"].members] == ["network0", "fold3"]
    assert manifest.variants["fp32"].drift["n_clips"] == 1
    with mosrt.load(out) as scorer:
        clip, rate_hz = soundfile.read(inputs / "clip.wav")
        mos = scorer.features(clip, rate_hz)["mos"]
    assert mos.shape[0] == 2
    assert not np.allclose(mos[0], mos[1])


@pytest.mark.full
def test_a_parity_failure_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, inputs: Path, tmp_path: Path
) -> None:
    honest = parity._torch_answer

    def dishonest(model: Any, view: Any) -> Any:
        mos, features = honest(model, view)
        return mos + np.float32(0.0011), features

    monkeypatch.setattr(parity, "_torch_answer", dishonest)
    out = tmp_path / "out" / "bundle"
    result = utmosv2(*(inputs / "spec.pth", "--config", inputs / "small.toml", "--output", out))
    assert result.exit_code == 1
    assert "nothing was written" in result.output
    assert sum(line.endswith("<- differs") for line in result.stderr.splitlines()) == 5
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ("torch_mos", "graph_mos", "feature", "passed"),
    [
        (3.0, 3.0009, 1e-5, True),
        (3.0, 3.0011, 1e-5, False),
        (3.0, 2.9989, 1e-5, False),
        (math.nan, 3.0, 1e-5, False),
        (3.0, math.nan, 1e-5, False),
        (math.inf, math.inf, 1e-5, False),
        (3.0, 3.0, math.nan, False),
    ],
)
def test_the_gate(torch_mos: float, graph_mos: float, feature: float, passed: bool) -> None:
    row = parity.Row(
        member="network0",
        clip="clip",
        torch_mos=np.array([3.0, torch_mos], np.float32),
        graph_mos=np.array([3.0, graph_mos], np.float32),
        features={"ssl_features": feature},
    )
    assert row.passed is passed
    drift = parity.drift_of([row])
    assert drift.passed is passed
    assert ("<- differs" in drift.table()) is not passed


def test_nothing_compared_is_not_passed() -> None:
    drift = Drift(values={}, limit="", rows=())
    assert not drift.passed
    with pytest.raises(ParityError):
        drift.check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{inputs}/spec.pth", "--kind", "ssl"), "those of a spec model, not ssl"),
        (("{inputs}/none.pth",), "none.pth: no such checkpoint"),
        (
            ("{inputs}/ssl.pth", "{inputs}/spec.pth"),
            "cannot join an ensemble of ssl models",
        ),
        (
            ("{inputs}/ssl.pth", "{inputs}/ssl.pth"),
            "the same network as",
        ),
        (("{inputs}/ssl.pth", "--parity-audio", "{inputs}/x.wav"), "x.wav"),
    ],
)
def test_what_does_not_fit_is_named(
    arguments: tuple[str, ...], message: str, inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    filled = [argument.format(inputs=inputs) for argument in arguments]
    result = utmosv2(*filled, "--config", inputs / "small.toml", "--output", out)
    assert result.exit_code == 3
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_unnamed_domains_ask_for_the_key(inputs: Path, tmp_path: Path) -> None:
    config = tmp_path / "nameless.toml"
    config.write_text(toml({key: value for key, value in SMALL.items() if key != "domains"}))
    result = utmosv2(*(inputs / "ssl.pth", "--config", config, "--output", tmp_path / "bundle"))
    assert result.exit_code == 3
    assert "has 3 data domains" in result.output
    assert "domains = ['name0', 'name1', 'name2']" in result.output
    config.write_text(toml({**SMALL, "domains": ["a"]}))
    result = utmosv2(*(inputs / "ssl.pth", "--config", config, "--output", tmp_path / "bundle"))
    assert result.exit_code == 3
    assert "correct `domains`" in result.output


def test_a_fold_that_is_not_cached_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def offline(*_args: object, **_options: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nmore words")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    result = utmosv2("--fold", "0", "--output", tmp_path / "bundle")
    assert result.exit_code == 3
    assert "fold0_s42_best_model.pth" in result.output
    assert "cannot get fold0_s42_best_model.pth" in result.output
    assert "more words" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_download_is_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[tuple[str, str, str]] = []
    file = tmp_path / "fold1_s42_best_model.pth"
    file.write_bytes(b"not what was published")

    def download(repository: str, name: str, *, revision: str) -> str:
        asked.append((repository, name, revision))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match="the download is damaged"):
        checkpoint.download_fold(1)
    assert checkpoint.download_fold(1, "main") == file
    assert asked == [
        ("sarulab-speech/UTMOSv2", file.name, checkpoint.PINNED_REVISION),
        ("sarulab-speech/UTMOSv2", file.name, "main"),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--output", "x"),
        ("--fold", "5", "--output", "x"),
        ("x.pth",),
        ("x.pth", "--revision", "main", "--output", "x"),
        ("x.pth", "--kind", "both", "--output", "x"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert utmosv2(*arguments).exit_code == 2


def test_help_teaches() -> None:
    group = CliRunner().invoke(export, ["--help"])
    assert group.exit_code == 0
    assert "pip install 'mosrt[export]'" in group.output
    command = utmosv2("--help")
    assert command.exit_code == 0
    for words in (
        "mosrt export utmosv2 --fold 0 --output utmosv2",
        "--config ours.toml",
        "[ssl.encoder]",
        "0.001 MOS",
        "Exit status",
    ):
        assert words in command.output


def test_importing_the_command_is_light() -> None:
    code = (
        "import sys, mosrt_export.cli.export; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'torch', 'timm', 'transformers', 'onnx', 'onnx_ir', 'onnxscript', 'huggingface_hub'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mosrt_export.cli.export import export\n"
        f"export(['utmosv2', 'x.pth', '--output', {str(tmp_path / 'x')!r}])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 3
    assert "pip install 'mosrt[export]'" in found.stderr
    assert "Traceback" not in found.stderr


def test_the_stand_in_is_made_of_its_keys() -> None:
    """Guards the tests themselves: two models of one configuration are the same model."""
    config = small_config()
    first, second = (small_model("spec", config).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(value, first[key]) for key, value in fill(first).items())


def test_the_option_offers_what_manifests_may_say() -> None:
    (option,) = (each for each in export.commands["utmosv2"].params if each.name == "front_end")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == FRONT_ENDS
