"""Model: one score per domain, the default score, and checkpoints that come back."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from mosrt_export.nano.data.dataset import LABELS
from mosrt_export.nano.data.images import MEL
from mosrt_export.nano.train.exporting import default_score
from mosrt_export.nano.train.model import OVERALL, NanoError, NanoGraph, load_nano, save_nano
from mosrt_export.nano.train.training import Standardisation
from tests.standins.nano import STANDARD, provenance, random_nano

COMBINATION = default_score(STANDARD)


def feeds(names: tuple[str, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "waveform": (2, 8000),
        "images": (2, len(MEL.windows), MEL.image_height, 64),
    }
    return [torch.rand(shapes[name], generator=generator) for name in names]


@pytest.mark.parametrize("with_ssl", [False, True])
@torch.inference_mode()
def test_every_domain_in_one_run(with_ssl: bool) -> None:
    graph = NanoGraph(random_nano(with_ssl=with_ssl), STANDARD, COMBINATION)
    assert graph.kind == ("fusion" if with_ssl else "spec")
    assert graph.domains == (OVERALL, *LABELS)
    assert graph.input_names == (("waveform", "images") if with_ssl else ("images",))
    given = feeds(graph.input_names)
    outputs = dict(zip(graph.output_sizes, graph(*given), strict=True))
    for name, size in graph.output_sizes.items():
        assert outputs[name].shape == (2, size)
    features = graph.features(dict(zip(graph.input_names, given, strict=True)))
    for i, one_hot in enumerate(torch.eye(graph.n_domains)):
        score = graph.score(features, one_hot.expand(2, -1))
        torch.testing.assert_close(score, outputs["mos"][:, i])
    for name, value in features.items():
        assert torch.equal(value, outputs[name])


@torch.inference_mode()
def test_scores_are_in_their_own_units() -> None:
    """Standardised scores times deviation plus mean; the first column is made of the others."""
    model = random_nano(with_ssl=True)
    graph = NanoGraph(model, STANDARD, COMBINATION)
    given = feeds(graph.input_names)
    mos, *_ = graph(*given)
    wanted = model(*given).numpy() * STANDARD.deviation + STANDARD.mean
    np.testing.assert_allclose(mos[:, 1:].numpy(), wanted, rtol=1e-5)
    for row in mos.double().numpy():
        scores = dict(zip(LABELS, row[1:], strict=True))
        z = [(scores[name] - m) / d for name, (m, d) in COMBINATION.averaged.items()]
        total = sum(z) / len(z)
        for name, (threshold, slope) in COMBINATION.penalties.items():
            total -= slope * max(0.0, threshold - scores[name])
        assert row[0] == pytest.approx(COMBINATION.offset + COMBINATION.scale * total, abs=1e-4)


@pytest.mark.parametrize("with_ssl", [False, True])
def test_checkpoints_come_back(with_ssl: bool, tmp_path: Path) -> None:
    model = random_nano(with_ssl=with_ssl)
    path = tmp_path / "nano.pt"
    save_nano(path, model, STANDARD, provenance())
    assert [file.name for file in tmp_path.iterdir()] == ["nano.pt"]
    again, standard, notes = load_nano(path)
    assert notes == provenance()
    assert again.kind == model.kind
    assert not again.training
    np.testing.assert_array_equal(standard.mean, STANDARD.mean)
    np.testing.assert_array_equal(standard.deviation, STANDARD.deviation)
    given = feeds(("waveform", "images") if with_ssl else ("images",))
    with torch.inference_mode():
        assert torch.equal(again(*given), model(*given))


def test_another_seed_is_another_model() -> None:
    """Guards the tests themselves."""
    given = feeds(("images",))
    with torch.inference_mode():
        first, second = (random_nano(with_ssl=False, seed=seed)(*given) for seed in (0, 1))
    assert not torch.allclose(first, second)


def saved(path: Path, **changes: object) -> Path:
    save_nano(path, random_nano(with_ssl=False), STANDARD, provenance())
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)
    return path


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.pt"
    text.write_text("not even a pickle")
    tensor = tmp_path / "tensor.pt"
    torch.save(torch.zeros(3), tensor)
    other = saved(tmp_path / "kind.pt", kind="fusion")
    for path in (text, tensor, other, tmp_path / "none.pt"):
        with pytest.raises(NanoError, match=f"{path.name}: not a checkpoint"):
            load_nano(path)
    older = saved(tmp_path / "older.pt", format="mosrt-nano-0")
    with pytest.raises(NanoError, match="format 'mosrt-nano-0', not 'mosrt-nano-1'; train it ag"):
        load_nano(older)


def test_foreign_classes_are_not_unpickled(tmp_path: Path) -> None:
    path = saved(tmp_path / "evil.pt", provenance={"third": Fraction(1, 3)})
    with pytest.raises(NanoError, match=r"(?s)evil\.pt: .*fractions\.Fraction"):
        load_nano(path)


def test_writing_is_atomic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "nano.pt"
    save_nano(path, random_nano(with_ssl=False), STANDARD, provenance())
    before = path.read_bytes()

    def breaks_off(_content: object, part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", breaks_off)
    other = Standardisation(STANDARD.mean + 1, STANDARD.deviation)
    with pytest.raises(OSError, match="no space"):
        save_nano(path, random_nano(with_ssl=False), other, provenance())
    assert path.read_bytes() == before
