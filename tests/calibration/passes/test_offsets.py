"""Offsets that correct the mean error of MOS at the output of a graph."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from mosrt_calibration.clips import Choice
from mosrt_calibration.passes.corrections import with_offsets
from mosrt_calibration.scoring import ModelUnderTest
from mosrt_calibration.search.evaluate import Evaluator, written
from mosrt_calibration.search.network import Network, Scheme
from tests.standins.quantizable import DOMAINS, relu_chain

SCHEME = Scheme(method="entropy", weight_bits=7)


def test_scores_are_larger_by_them() -> None:
    model = relu_chain()
    feed = {"images": np.random.default_rng(0).random((3, 1, 16, 16), np.float32)}
    offsets = np.linspace(-0.25, 0.5, len(DOMAINS))

    def mos(graph: object) -> object:
        session = onnxruntime.InferenceSession(graph.SerializeToString())  # type: ignore[attr-defined]
        assert [value.name for value in session.get_outputs()] == ["mos"]
        return session.run(["mos"], feed)[0]

    expected = mos(model) + offsets  # type: ignore[operator]
    assert mos(with_offsets(model, offsets.tolist())) == pytest.approx(expected, abs=1e-6)


def test_they_are_the_mean_error_and_what_was_measured_is_what_is_written(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    (member,) = conv_model.reference.members
    cache = tmp_path / "cache"
    network = Network(conv_model, member, choice.calibration, cache=cache)
    evaluator = Evaluator(conv_model)
    model = network.int8(SCHEME, ())
    kind = SCHEME.kind
    plain = evaluator.measure({member.name: model}, choice.evaluation, "plain", kind=kind)
    assert not any(plain.offsets)
    measured = evaluator.measure(
        {member.name: model},
        choice.evaluation,
        "corrected",
        kind=kind,
        offset_clips=choice.calibration,
    )
    variant = written(conv_model, {member.name: model}, conv_model.directory, "int8-cpu", kind)
    found = conv_model.score(variant, choice.calibration, "found", views=1)
    reference = conv_model.score(conv_model.reference, choice.calibration, "fp32", views=1)
    expected = (reference.values - found.values).mean(axis=0)
    assert measured.offsets == pytest.approx(expected.tolist(), abs=1e-9)
    assert any(measured.offsets)
    assert measured.drift != plain.drift
    again = evaluator.measure(
        {member.name: with_offsets(model, measured.offsets)},
        choice.evaluation,
        "written",
        kind=kind,
    )
    # Scores are float32, a few units of 1e-7.
    assert again.drift.mean_abs == pytest.approx(measured.drift.mean_abs, abs=2e-6)
    assert again.drift.max_abs == pytest.approx(measured.drift.max_abs, abs=2e-6)
