"""Small models exported once for all tests here, by one thread."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
import torch
from click.testing import CliRunner, Result

from mosrt.backends.trt_module import TensorRt, find_tensorrt
from mosrt_export.cli.export import export
from mosrt_export.utmosv2.config import Kind
from tests.conftest import DATA, made_once
from tests.standins.utmosv2 import SMALL, small_model


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Small models gain nothing from threads, and torch's last bits depend on their number.

    For all tests here at once, so that what fixtures export is made under the same rule as what
    tests compare with it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Ended(Protocol):
    """How a command ended, in this process or in another one."""

    exit_code: int

    @property
    def output(self) -> str: ...

    @property
    def stdout(self) -> str: ...

    @property
    def stderr(self) -> str: ...


@dataclass(frozen=True)
class Exported:
    """A bundle, and how the command that made it ended."""

    bundle: Path
    result: Ended


def utmosv2(*arguments: object) -> Result:
    """`mosrt export utmosv2`."""
    return CliRunner().invoke(export, ["utmosv2", *map(str, arguments)])


def utmosv2_once(factory: pytest.TempPathFactory, name: str, *arguments: object) -> Exported:
    """`mosrt export utmosv2` of a bundle that no test writes to; see `made_once`."""

    def export_it(folder: Path) -> None:
        result = utmosv2(*arguments, "--output", folder / "small")
        told = {key: getattr(result, key) for key in ("exit_code", "output", "stdout", "stderr")}
        (folder / "ended.json").write_text(json.dumps(told))

    folder = made_once(factory, name, export_it)
    ended = SimpleNamespace(**json.loads((folder / "ended.json").read_text()))
    return Exported(folder / "small", ended)


def toml(values: dict[str, Any], prefix: str = "") -> str:
    """TOML of nested tables, for the small configuration."""
    plain = [f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict)]
    tables = [
        f"[{prefix}{k}]\n{toml(v, f'{prefix}{k}.')}"
        for k, v in values.items()
        if isinstance(v, dict)
    ]
    return "\n".join([*plain, *tables])


def inputs_once(factory: pytest.TempPathFactory) -> Path:
    """A directory with checkpoints of all kinds, a configuration and a recording."""

    def make(directory: Path) -> None:
        directory.mkdir()
        kinds: tuple[Kind, ...] = ("fusion", "spec", "ssl")
        for kind in kinds:
            torch.save(small_model(kind).state_dict(), directory / f"{kind}.pth")
        other = {key: 1.01 * value for key, value in small_model("ssl").state_dict().items()}
        torch.save(other, directory / "fold3_ssl.pth")
        (directory / "small.toml").write_text(toml(SMALL))
        shutil.copy(DATA / "flite_slt_16k_mono.wav", directory / "clip.wav")

    return made_once(factory, "inputs", make)


def small_once(factory: pytest.TempPathFactory, kind: Kind, *options: str) -> Exported:
    """The bundle of a small model of one kind."""
    inputs = inputs_once(factory)
    arguments = (inputs / f"{kind}.pth", "--config", inputs / "small.toml", *options)
    return utmosv2_once(factory, "-".join(["small", kind, *options[1:]]), *arguments)


@pytest.fixture(scope="package")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs_once(tmp_path_factory)


@pytest.fixture(scope="package")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model of both branches."""
    return small_once(tmp_path_factory, "fusion")


@pytest.fixture(scope="package")
def fusion_graph(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The model of both branches, which takes audio."""
    return small_once(tmp_path_factory, "fusion", "--frontend", "graph")


@pytest.fixture(scope="package")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model of the spectrogram branch alone."""
    return small_once(tmp_path_factory, "spec")


@pytest.fixture(scope="package")
def spec_graph(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The model of the spectrogram branch alone, which takes audio."""
    return small_once(tmp_path_factory, "spec", "--frontend", "graph")


@pytest.fixture(scope="package")
def ssl_pair(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An ensemble of two models of the waveform branch alone."""
    return utmosv2_once(
        *(tmp_path_factory, "ssl-pair", inputs / "ssl.pth", inputs / "fold3_ssl.pth"),
        *("--config", inputs / "small.toml", "--kind", "ssl", "--name", "pair"),
        *("--parity-audio", inputs),
    )


@pytest.fixture(scope="session")
def rtx() -> TensorRt:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    return find_tensorrt()


@pytest.fixture
def engine_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone, whose engines no other test has built."""
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
