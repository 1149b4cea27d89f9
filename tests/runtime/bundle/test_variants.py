import json
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

import mosrt
from mosrt.bundle.manifest import Variant
from mosrt.bundle.variants import fastest, reference
from mosrt.cli.main import main
from mosrt.host.cpu import CpuFeatures
from tests.standins.variants import with_variants

ALL = ("fp32", "fp16", "int8-cpu", "int8-trt")


def variants(*names: str, int8: str = "qdq-u8s8") -> dict[str, Variant]:
    """Variants by name, with the kinds that `mosrt quantize` records."""
    kinds = {"fp16": "float16", "int8-cpu": int8, "int8-trt": "qdq-s8s8"}
    return {name: Variant(opset=18, members=(), kind=kinds.get(name)) for name in names}


# Cut from real machines' /proc/cpuinfo: Sapphire Rapids, Cascade Lake, Alder Lake, Haswell; a
# Neoverse N1, a Cortex-A72 (Raspberry Pi 4).
CPUINFO = {
    "amx": "model name\t: Xeon 8480\nflags\t\t: avx2 avx_vnni avx512_vnni amx_int8 amx_bf16",
    "vnni": "model name\t: Xeon 6230\nflags\t\t: avx2 avx512f avx512_vnni",
    "avx_vnni": "model name\t: Core i7-12700\nflags\t\t: avx2 fma avx_vnni",
    "haswell": "model name\t: Core i7-4770\nflags\t\t: fma avx2",
    "n1": "processor\t: 0\nFeatures\t: fp asimd aes asimdhp asimddp",
    "a72": "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32",
    "rumour": "flags\t\t: avx2 not_avx512_vnni_at_all",
}


def cpu(tmp_path: Path, name: str, architecture: str) -> CpuFeatures:
    path = tmp_path / "cpuinfo"
    # The second processor says other things; the first counts.
    path.write_text(f"{CPUINFO[name]}\n\nprocessor\t: 1\nflags\t\t: avx512_vnni\n")
    return CpuFeatures.read(path, architecture)


@pytest.mark.parametrize(
    ("name", "architecture", "int8_dot", "bf16"),
    [
        ("amx", "x86_64", "amx_int8", "amx_bf16"),
        ("amx", "AMD64", "amx_int8", "amx_bf16"),
        ("vnni", "x86_64", "avx512_vnni", None),
        ("avx_vnni", "x86_64", "avx_vnni", None),
        ("haswell", "x86_64", None, None),
        ("rumour", "x86_64", None, None),
        ("n1", "aarch64", "asimddp", None),
        ("n1", "arm64", "asimddp", None),
        ("a72", "aarch64", None, None),
    ],
)
def test_features(
    tmp_path: Path, name: str, architecture: str, int8_dot: str | None, bf16: str | None
) -> None:
    found = cpu(tmp_path, name, architecture)
    assert (found.int8_dot, found.bf16) == (int8_dot, bf16)
    expected = "int8-cpu" if int8_dot else "fp32"
    narrow = "int8-cpu" if int8_dot or "avx2" in found.flags else "fp32"
    for provider in ("cpu", "openvino", "openvino-bf16"):
        assert fastest(variants(*ALL), provider, found).variant == expected
        assert fastest(variants(*ALL, int8="qdq-u8s7"), provider, found).variant == narrow
        assert fastest(variants("fp32", "fp16", "int8-trt"), provider, found).variant == "fp32"
    assert fastest(variants(*ALL), "cuda", found).variant == "fp32"


def test_a_system_without_cpuinfo(tmp_path: Path) -> None:
    found = CpuFeatures.read(tmp_path / "none", "x86_64")
    assert found == CpuFeatures(architecture="x86_64")
    choice = fastest(variants(*ALL), "cpu", found)
    assert choice.variant == "fp32"
    assert "that this system reports" in choice.reason


def test_this_machine_agrees_with_its_kernel() -> None:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        pytest.skip("no /proc/cpuinfo on this system")
    words = set(path.read_text().split())
    assert CpuFeatures.read().flags <= words
    assert CpuFeatures.read().flags


def test_a_bundle_without_the_reference() -> None:
    assert reference(("fp16", "int8-cpu"), "cpu").variant == "fp16"
    assert reference(("int8-trt", "int8-cpu"), "cpu").variant == "int8-cpu"
    assert reference(("int8-trt", "mine"), "cuda").variant == "mine"
    with pytest.raises(mosrt.ProviderError, match="none of the variants int8-trt runs on"):
        reference(("int8-trt",), "cpu")


@pytest.fixture
def bundle(tiny: Path, tmp_path: Path) -> Path:
    return with_variants(tiny, tmp_path / "bundle", *ALL)


def fake(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    made = CpuFeatures(architecture="x86_64", model="fake", flags=frozenset(flags))
    monkeypatch.setattr(CpuFeatures, "read", lambda: made)


def test_load_chooses(
    bundle: Path,
    tiny: Path,
    speech: npt.NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def variant(path: Path, **options: object) -> str:
        with mosrt.load(path, **options) as scorer:  # type: ignore[arg-type]
            score = scorer.score(speech, 16_000)
            assert score.variant == scorer.variant
            return score.variant

    fake(monkeypatch, "avx2", "avx512_vnni")
    assert variant(bundle) == "fp32"
    assert variant(bundle, variant="auto") == "int8-cpu"
    assert variant(tiny, variant="auto") == "fp32"
    fake(monkeypatch, "avx2")
    assert variant(bundle, variant="auto") == "fp32"
    assert variant(bundle, variant="fp16", provider="cpu") == "fp16"


def test_what_cannot_run_is_refused(bundle: Path) -> None:
    with pytest.raises(mosrt.ProviderError, match="'int8-trt' is made for tensorrt .* 'cpu'"):
        mosrt.load(bundle, variant="int8-trt", provider="cpu")
    with pytest.raises(mosrt.ProviderError, match="'int8-trt' is made for tensorrt"):
        mosrt.load(bundle, variant="int8-trt")
    with pytest.raises(mosrt.ProviderError, match="'int8-cpu' is made for cpu, openvino"):
        mosrt.load(bundle, variant="int8-cpu", provider="cuda")
    with pytest.raises(mosrt.BundleError, match="no variant 'int4'; it has: fp32, fp16"):
        mosrt.load(bundle, variant="int4")


def test_int8_by_name_on_an_old_cpu_warns(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake(monkeypatch, "avx2")
    with caplog.at_level(logging.WARNING), mosrt.load(bundle, variant="int8-cpu", provider="cpu"):
        assert "no 8-bit dot products" in caplog.text
    caplog.clear()
    fake(monkeypatch, "avx_vnni")
    with caplog.at_level(logging.WARNING), mosrt.load(bundle, variant="int8-cpu", provider="cpu"):
        assert caplog.text == ""


def test_command_line(bundle: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object) -> str:
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    fake(monkeypatch, "avx_vnni")
    arguments = ("score", clips[0], "-m", bundle, "--format", "jsonl", "--provider", "cpu")
    assert json.loads(run(*arguments, "--variant", "auto"))["variant"] == "int8-cpu"
    assert json.loads(run(*arguments))["variant"] == "fp32"
    facts = json.loads(run("info", "--machine", "--format", "json"))
    assert facts["variant_auto"] == "int8-cpu"
    assert "avx_vnni" in facts["variant_auto_reason"]
    assert facts["cpu"] == "fake"
    refused = CliRunner().invoke(main, [*map(str, arguments), "--variant", "int8-trt"])
    assert refused.exit_code == 3
    assert "made for tensorrt" in refused.stderr
