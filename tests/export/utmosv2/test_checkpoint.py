import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mosrt_export.errors import CheckpointError
from mosrt_export.utmosv2.checkpoint import load_strictly, read_checkpoint
from mosrt_export.utmosv2.config import Kind
from mosrt_export.utmosv2.fusion import build
from tests.standins.utmosv2 import small_config, small_model

KINDS: tuple[Kind, ...] = ("fusion", "spec", "ssl")
State = dict[str, torch.Tensor]
NORM = "encoder.pos_conv_embed.conv"


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def renamed(state: State, change: Callable[[str], str]) -> State:
    return {change(key): value for key, value in state.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_and_domains_are_read_off_the_keys(kind: Kind, tmp_path: Path) -> None:
    config = small_config(domains=["a", "b", "c", "d", "e"])
    state = small_model(kind, config).state_dict()
    checkpoint = read_checkpoint(saved(tmp_path / "model.pth", state))
    assert (checkpoint.kind, checkpoint.n_domains) == (kind, 5)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_wrappers_are_taken_off(prefix: str, wrapper: str | None, tmp_path: Path) -> None:
    state = small_model().state_dict()
    wrapped = renamed(state, lambda key: prefix + key)
    content = wrapped if wrapper is None else {wrapper: wrapped, "epoch": 3}
    checkpoint = read_checkpoint(saved(tmp_path / "model.pth", content))
    assert list(checkpoint.state) == list(state)


@pytest.mark.parametrize("kind", ["fusion", "ssl"])
def test_both_weight_norm_layouts_load(kind: Kind, tmp_path: Path) -> None:
    model = small_model(kind)
    state = model.state_dict()
    new = renamed(
        state,
        lambda key: key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ),
    )
    old = renamed(
        state,
        lambda key: key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ),
    )
    assert set(old) != set(new)
    for i, layout in enumerate((old, new)):
        fresh = build(kind, small_config(), 3)
        load_strictly(fresh, read_checkpoint(saved(tmp_path / f"{i}.pth", layout)))
        for key, value in fresh.state_dict().items():
            assert torch.equal(value, state[key]), key


def test_files_from_before_the_zip_format_load(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(small_model().state_dict(), path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert read_checkpoint(path).kind == "fusion"


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path: Path) -> None:
    state = small_model().state_dict()
    del state["spec_long.weights"]
    state["spec_long.wieghts"] = torch.zeros(2)
    state["ssl.weights"] = torch.zeros(5)
    checkpoint = read_checkpoint(saved(tmp_path / "model.pth", state))
    with pytest.raises(CheckpointError) as caught:
        load_strictly(build("fusion", small_config(), 3), checkpoint)
    message = str(caught.value)
    assert "1 missing: spec_long.weights;" in message
    assert "1 unexpected: spec_long.wieghts;" in message
    assert "1 of another shape: ssl.weights (5,), expected (2,)" in message
    assert "model.pth" in message


def test_another_architecture_is_refused_with_few_keys_named(tmp_path: Path) -> None:
    state = small_model().state_dict()
    other = small_config(spectrogram={"backbone": "test_resnet", "n_mels": 64, "image_width": 96})
    checkpoint = read_checkpoint(saved(tmp_path / "model.pth", state))
    with pytest.raises(CheckpointError, match=r"and \d+ more.*--config") as caught:
        load_strictly(build("fusion", other, 3), checkpoint)
    assert len(str(caught.value)) < 2000


class Malicious:
    """Runs a shell command when it is unpickled carelessly."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (self.command,))


@pytest.mark.parametrize("wrap", [False, True])
def test_malicious_pickles_are_refused_unread(wrap: bool, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    bomb = Malicious(f"touch {witness}")
    state: dict[str, Any] = dict(small_model().state_dict())
    path = saved(tmp_path / "model.pth", {**state, "extra": bomb} if wrap else bomb)
    with pytest.raises(CheckpointError, match=r"model.pth: not a plain state dict.*could run code"):
        read_checkpoint(path)
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(bomb))
    with pytest.raises(CheckpointError, match=r"plain\.pth"):
        read_checkpoint(plain)
    assert not witness.exists()


def test_files_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.pth: no such checkpoint"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path)
    for content in (b"", b"hello", b"PK\x03\x04"):
        path = tmp_path / "junk.pth"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"junk.pth"):
            read_checkpoint(path)
    whole = saved(tmp_path / "whole.pth", small_model().state_dict()).read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cut.pth.*again"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds dict"),
        ([torch.zeros(1)], "holds list"),
        ({"fc.weight": "text"}, "'fc.weight' is str, not a tensor"),
        (
            {"linear.weight": torch.zeros(1)},
            "not a model of UTMOSv2's architecture: keys start with linear",
        ),
    ],
)
def test_other_contents_are_refused(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(saved(tmp_path / "model.pth", content))


def test_a_tensor_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    """One number, repeated by strides of 0."""
    state = small_model().state_dict()
    state["fc.weight"] = torch.zeros(1).expand(1, 10**10)
    with pytest.raises(CheckpointError, match="over 3,000,000,000 parameters"):
        read_checkpoint(saved(tmp_path / "model.pth", state))
    state["fc.weight"] = torch.zeros(1).expand(1, 64 + 1024 + 3 * 10**6)
    with pytest.raises(CheckpointError, match="'fc.weight' is 1 x 3001088"):
        read_checkpoint(saved(tmp_path / "model.pth", state))


@pytest.mark.parametrize("columns", [64 + 1024, 64 + 1024 + 1])
def test_a_head_without_whole_domains_is_refused(columns: int, tmp_path: Path) -> None:
    state = small_model().state_dict()
    state["fc.weight"] = torch.zeros(1, columns)
    with pytest.raises(CheckpointError, match=f"'fc.weight' is 1 x {columns}"):
        read_checkpoint(saved(tmp_path / "model.pth", state))


@pytest.mark.parametrize("data", [b"RIFF" + bytes(40), b"0", b"}u.", b"\x80\x02R."])
def test_what_is_no_checkpoint_is_called_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "clip.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="not a checkpoint|not a plain state dict"):
        read_checkpoint(tmp_path / "clip.pt")
