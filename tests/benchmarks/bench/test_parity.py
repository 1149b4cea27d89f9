"""The parity table: its figures, and the defects that it must catch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

import mosrt.backends.ort
from mosrt.bundle.embedded import find_bundle
from mosrt.errors import MosrtError
from mosrt.host.cpu import CpuFeatures
from mosrt_bench.bench.configurations import list_configurations, open_bundle, providers_here
from mosrt_bench.bench.parity import compare_scores, provider_problem, tolerance_mos
from mosrt_bench.bench.request import Request
from mosrt_bench.errors import BenchError
from mosrt_bench.worker.mosrt_runner import MosrtRunner
from mosrt_bench.worker.protocol import Configuration
from tests.benchmarks.conftest import run_bench
from tests.conftest import DATA
from tests.standins.planted_defects import (
    one_weight_off,
    rounded_weights,
    swapped_domains,
    unchanged,
    with_variants,
)
from tests.standins.segments import write_segments_bundle

FloatArray = npt.NDArray[np.float64]

CLIPS = tuple(DATA / name for name in ("flite_slt_16k_mono.wav", "espeak_fr_16k_stereo.ogg"))


def judged(values: FloatArray) -> dict[str, dict[str, float]]:
    return {
        f"c{i}.wav": dict(zip(("north", "south"), row, strict=True))
        for i, row in enumerate(values.tolist())
    }


def compared(found: FloatArray, wanted: FloatArray, variant: str = "fp16") -> dict[str, Any]:
    return compare_scores(judged(found), judged(wanted), variant=variant, default_domain="south")


WANTED = np.random.default_rng(0).uniform(1, 5, (30, 2))


def test_honest_drift_passes_and_the_worst_clips_are_named() -> None:
    drift = np.random.default_rng(1).normal(0, 0.003, WANTED.shape)
    drift[7, 0] = -0.015
    row = compared(WANTED + drift, WANTED)
    assert row["passed"]
    assert row["domain"] == "south"
    assert row["max_abs"] == pytest.approx(np.abs(drift[:, 1]).max())
    assert row["domains"]["north"]["max_abs"] == pytest.approx(0.015)
    worst = row["worst"]
    assert len(worst) == 10
    assert (worst[0]["clip"], worst[0]["domain"]) == ("c7.wav", "north")
    assert worst[0]["difference"] == pytest.approx(-0.015)
    differences = [abs(w["difference"]) for w in worst]
    assert differences == sorted(differences, reverse=True)


def test_drift_in_another_domain_than_the_default_fails() -> None:
    found = WANTED.copy()
    found[3, 0] += 0.05
    row = compared(found, WANTED)
    assert not row["passed"]
    assert row["problems"] == ["drifts by 0.05 in domain north; the limit is 0.02"]


def test_swapped_domains_are_told() -> None:
    row = compared(WANTED[:, ::-1], WANTED, "int8-cpu")
    assert row["problems"][-1] == (
        "domains look swapped: north has the scores of south, south has the scores of north"
    )


def test_lost_scores_fail() -> None:
    found = WANTED.copy()
    found[0] = math.nan
    row = compared(found, WANTED)
    assert row["problems"] == ["no score for 1 clips that the reference scores: c0.wav, …"]
    assert row["n"] == 29
    row = compared(np.full_like(WANTED, math.nan), WANTED)
    assert not row["passed"]


def test_uncertainties_have_a_scale_of_their_own() -> None:
    wanted = {f"{i}": {"uncertainty": 1e-4 * (i + 1)} for i in range(9)}
    found = {clip: {"uncertainty": v["uncertainty"] + 1e-5} for clip, v in wanted.items()}
    row = compare_scores(found, wanted, variant="fp32", default_domain="all")
    assert row["tolerance"] == pytest.approx(1e-3 * 5e-4)
    assert not row["passed"]


@pytest.mark.parametrize(
    ("variant", "tolerance"),
    [("fp32", 1e-3), ("fp16", 0.02), ("int8-cpu", 0.25), ("int8-trt", 0.25), ("mixed", 0.02)],
)
def test_tolerances(variant: str, tolerance: float) -> None:
    assert tolerance_mos(variant) == tolerance
    assert tolerance_mos(variant, "openvino-fp32") == tolerance
    # whatever the graph's precision, bfloat16 has 8 bits
    assert tolerance_mos(variant, "openvino-bf16") == max(tolerance, 0.1)


def test_all_providers_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO by its precise names, since scores name them; bfloat16 where the CPU has it."""
    here = ("coreml", "cpu", "openvino", "openvino-bf16", "openvino-fp32", "tensorrt")
    monkeypatch.setattr("mosrt_bench.bench.configurations.present_providers", lambda: here)
    for flags, wanted, openvino in (
        ((), ("cpu", "coreml", "openvino-fp32", "tensorrt"), "openvino-fp32"),
        (
            ("avx512_bf16",),
            ("cpu", "coreml", "openvino-bf16", "openvino-fp32", "tensorrt"),
            "openvino-bf16",
        ),
    ):
        cpu = CpuFeatures(architecture="x86_64", flags=frozenset(flags))
        monkeypatch.setattr(CpuFeatures, "read", lambda cpu=cpu: cpu)
        assert providers_here() == wanted
        request = Request(bundles=("nano",), variants=("fp32",), providers=("openvino", openvino))
        found = list_configurations([open_bundle("nano")], request)
        assert [configuration.provider for configuration in found] == [openvino]


def test_where_a_configuration_ran() -> None:
    assert provider_problem("cpu", "cpu", {"cpu": 9}) == (None, None)
    assert provider_problem("cuda", "cpu", {"cpu": 9}) == (
        "asked for cuda, but ran on cpu", None
    )  # fmt: skip
    problem, _ = provider_problem("cuda", "cuda", {"cpu": 9})
    assert problem == "cuda fell back: none of 9 nodes ran on it (9 on cpu)"
    problem, note = provider_problem("cuda", "cuda", {"cuda": 7, "cpu": 2})
    assert (problem, note) == (None, "2 of 9 nodes of the graph did not run on cuda")
    assert provider_problem("cuda", "cuda", None) == (
        None, "execution-provider coverage of cuda not known"
    )  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {
        "fp16": rounded_weights,
        "fp16-off": one_weight_off,
        "fp16-swapped": swapped_domains,
        "fp32-again": unchanged,
    }
    target = tmp_path_factory.mktemp("planted") / "planted"
    return with_variants(find_bundle("nano"), target, changes)


def test_planted_defects_are_caught_and_honest_variants_pass(planted: Path) -> None:
    request = Request(bundles=(str(planted),), providers=("cpu",), audio=CLIPS, speed=False)
    report, clips = run_bench(request)
    assert [clip.name for clip in clips] == [path.name for path in CLIPS]
    rows = {row["variant"]: row for row in report["parity"]}
    assert {name: row["passed"] for name, row in rows.items()} == {
        "fp32": True, "fp16": True, "fp32-again": True, "fp16-off": False, "fp16-swapped": False
    }  # fmt: skip
    assert rows["fp32-again"]["max_abs"] == rows["fp32"]["max_abs"] == 0
    assert 0 < rows["fp16"]["max_abs"] < 0.02
    assert rows["fp16-off"]["problems"][0].startswith("drifts by ")
    assert "bvcc has the scores of p808" in rows["fp16-swapped"]["problems"][-1]
    assert rows["fp32"]["is_reference"]
    assert all(row["against"] == "nano fp32 cpu" for row in rows.values())
    assert {worst["clip"] for worst in rows["fp16-off"]["worst"]} <= {c.name for c in clips}


def test_a_fallback_without_a_word_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's provider is in every wheel for Linux, accepts any graph and runs none of it, and
    the session names it first: just what a GPU that silently does nothing looks like."""
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no AzureExecutionProvider")
    providers = {**mosrt.backends.ort.PROVIDERS, "dml": "AzureExecutionProvider"}
    monkeypatch.setattr("mosrt.backends.ort.PROVIDERS", providers)
    monkeypatch.setattr("mosrt_bench.worker.mosrt_runner.PROVIDERS", providers)
    request = Request(bundles=("nano",), providers=("cpu", "dml"), audio=CLIPS[:1], speed=False)
    report, _ = run_bench(request)
    rows = {row["provider"]: row for row in report["parity"]}
    assert rows["cpu"]["passed"]
    # the scores are the CPU's own, so that nothing else could tell
    assert rows["dml"]["max_abs"] == 0
    assert not rows["dml"]["passed"]
    assert rows["dml"]["problems"][0].startswith("dml fell back: none of ")


def test_a_provider_that_is_not_here_is_a_row(planted: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    request = Request(
        bundles=(str(planted),), variants=("fp32",), providers=("cpu", "cuda"), audio=CLIPS[:1],
        speed=False,
    )  # fmt: skip
    report, _ = run_bench(request)
    row = report["parity"][1]
    assert row["passed"] is None
    assert (
        "does not run here: provider 'cuda' is not in the installed onnxruntime"
        in (row["problems"][0])
    )


def test_the_provider_of_every_node_is_known() -> None:
    for name in ("nano", "nano-uncertainty"):
        bundle = str(find_bundle(name))
        runner = MosrtRunner(
            Configuration(model=name, bundle=bundle, variant="fp32", provider="cpu", threads=1)
        )
        nodes = runner.nodes()
        runner.close()
        assert nodes is not None
        assert set(nodes) == {"cpu"}
        assert nodes["cpu"] > 10


def test_a_damaged_bundle_is_refused(planted: Path, tmp_path: Path) -> None:
    broken = with_variants(planted, tmp_path / "broken", {})
    file = broken / "model.nano.fp16.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    request = Request(bundles=(str(broken),), audio=CLIPS[:1], speed=False)
    with pytest.raises(ValueError, match=r"model\.nano\.fp16\.onnx: SHA-256 is"):
        run_bench(request)


def test_torch_is_held_to(student: Path, tmp_path: Path) -> None:
    """A student's own checkpoint agrees; a bundle with a wrong FP32 weight does not."""
    planted = with_variants(student, tmp_path / "planted", {"fp16-off": one_weight_off})
    request = Request(
        bundles=(str(planted),), variants=("fp32", "fp16-off"), providers=("cpu",),
        audio=CLIPS[:1], references=(student.with_name("student.pt"),), speed=False,
    )  # fmt: skip
    report, _ = run_bench(request)
    against = [r for r in report["parity"] if r["against"] == "torch checkpoint"]
    assert {r["variant"]: r["passed"] for r in against} == {"fp32": True, "fp16-off": False}
    # rounding through some twenty layers, on a scale of 1 to 5
    assert against[0]["domains"]["anchor"]["max_abs"] < 1e-4


def test_a_checkpoint_too_many(student: Path) -> None:
    checkpoint = student.with_name("student.pt")
    request = Request(bundles=(str(student),), audio=CLIPS[:1], references=(checkpoint,) * 2)
    with pytest.raises(BenchError, match="1 networks and 2 checkpoints"):
        run_bench(request)


def test_a_checkpoint_of_another_model(student: Path, tmp_path: Path) -> None:
    """The checkpoint says which model of segments it is, and which version of it."""
    torch = pytest.importorskip("torch")
    saved = torch.load(student.with_name("student.pt"), weights_only=True)
    for content, message in (
        ({**saved, "format": "mosrt-student-0"}, "format 'mosrt-student-0', .*train it again"),
        ({"weights": 1}, "not the weights of Distill-MOS"),
    ):
        torch.save(content, tmp_path / "other.pt")
        request = Request(
            bundles=(str(student),), audio=CLIPS[:1], references=(tmp_path / "other.pt",)
        )
        with pytest.raises(MosrtError, match=message):
            run_bench(request)
    other = write_segments_bundle(tmp_path / "bundle")
    request = Request(
        bundles=(str(other),), audio=CLIPS[:1], references=(student.with_name("student.pt"),)
    )
    with pytest.raises(BenchError, match="5 domains, and small-segments has 3"):
        run_bench(request)
