from pathlib import Path

import pytest

from mosrt.backends import OrtBackend
from mosrt.bundle.manifest import Variant
from mosrt_calibration.clips import Choice
from mosrt_calibration.scoring import ModelUnderTest
from mosrt_calibration.search.batch_invariance import BatchInvarianceError, fixed_batch
from mosrt_calibration.search.evaluate import written
from mosrt_calibration.search.network import Network, Scheme


def _variant(tested: ModelUnderTest, choice: Choice, tmp_path: Path, *, dynamic: bool) -> Variant:
    """An INT8 variant of a model with one network."""
    (member,) = tested.reference.members
    network = Network(tested, member, choice.calibration, cache=tmp_path / "cache")
    models = {member.name: network.int8(Scheme(method="min-max", dynamic_matmul=dynamic), ())}
    return written(tested, models, tested.directory, "int8", None)


def test_a_dynamic_scale_depends_on_the_whole_batch(
    transformer_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    variant = _variant(transformer_model, choice, tmp_path, dynamic=True)
    assert fixed_batch(transformer_model, variant, choice.evaluation) == 1


def test_a_static_scale_does_not_depend_on_the_batch(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    variant = _variant(conv_model, choice, tmp_path, dynamic=False)
    assert fixed_batch(conv_model, variant, choice.evaluation) is None


def test_a_variant_that_does_not_repeat_itself_is_refused(
    conv_model: ModelUnderTest, choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    run = OrtBackend.run

    def restless(self: OrtBackend, feeds: object, outputs: object) -> object:
        calls.append(1)
        found = run(self, feeds, outputs)  # type: ignore[arg-type]
        return {name: value + len(calls) for name, value in found.items()}

    monkeypatch.setattr(OrtBackend, "run", restless)
    with pytest.raises(BatchInvarianceError, match="two scores"):
        fixed_batch(conv_model, conv_model.reference, choice.evaluation)
