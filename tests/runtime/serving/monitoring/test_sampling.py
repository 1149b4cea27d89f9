"""Which requests are scored: by hash, by rate, with bounded labels."""

import shutil
import subprocess
import sys
import uuid

import pytest

from mosrt.serving.monitoring.sampling import OTHER, LabelValues, RateLimits, sampled


def test_the_share_is_sampled() -> None:
    identifiers = [str(uuid.UUID(int=i * 7919)) for i in range(20_000)]
    for share in (0.02, 0.5):
        found = sum(sampled(identifier, share) for identifier in identifiers)
        assert found == pytest.approx(20_000 * share, rel=0.15)
    assert not any(sampled(identifier, 0.0) for identifier in identifiers)
    assert all(sampled(identifier, 1.0) for identifier in identifiers)


def test_larger_samples_contain_smaller_ones() -> None:
    identifiers = range(5_000)
    small = {i for i in identifiers if sampled(i, 0.02)}
    assert small < {i for i in identifiers if sampled(i, 0.1)}


@pytest.mark.skipif(shutil.which("b2sum") is None, reason="needs b2sum")
def test_the_same_identifier_is_sampled_everywhere() -> None:
    """The published rule, with the tool of another project."""
    names = [f"request-{i}" for i in range(20)]
    for name in names:
        command = ["b2sum", "--length", "64"]
        digest = subprocess.run(command, input=name.encode(), capture_output=True, check=True)
        fraction = int(digest.stdout[:16], 16) / 2**64
        assert sampled(name, fraction + 1e-12)
        assert not sampled(name, fraction - 1e-12)
        assert sampled(name.encode(), fraction + 1e-12)


def test_other_processes_sample_alike() -> None:
    code = (
        "from mosrt.serving.monitoring.sampling import sampled\n"
        "print(*[i for i in range(200) if sampled(f'r{i}', 0.1)])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True) for _ in range(2)]
    here = [i for i in range(200) if sampled(f"r{i}", 0.1)]
    assert [run.stdout.decode().split() for run in runs] == [list(map(str, here))] * 2


def test_requests_without_identifier_are_sampled_at_random() -> None:
    assert 300 < sum(sampled(None, 0.5) for _ in range(1_000)) < 700


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_limits_per_second() -> None:
    clock = Clock()
    limits = RateLimits(2.0, 100.0, clock=clock)
    assert [limits.exceeded([]) for _ in range(3)] == [None, None, "rate"]
    clock.now += 0.5
    assert [limits.exceeded([]) for _ in range(2)] == [None, "rate"]
    clock.now += 3600  # saves up one second's clips and no more
    assert [limits.exceeded([]) for _ in range(3)] == [None, None, "rate"]


def test_rates_below_one_per_second() -> None:
    clock = Clock()
    limits = RateLimits(0.1, 1.0, clock=clock)
    assert limits.exceeded([]) is None
    clock.now += 9.9
    assert limits.exceeded([]) == "rate"
    clock.now += 0.2
    assert limits.exceeded([]) is None


def test_limits_of_each_value_of_a_label() -> None:
    """A clip that one limit refuses takes nothing from the others."""
    clock = Clock()
    limits = RateLimits(3.0, 1.0, clock=clock)
    amy, ben = [("voice", "amy")], [("voice", "ben")]
    assert limits.exceeded(amy) is None
    assert [limits.exceeded(amy) for _ in range(5)] == ["label-rate"] * 5
    assert limits.exceeded(ben) is None
    assert limits.exceeded([*amy, ("release", "1")]) == "label-rate"
    assert limits.exceeded([("release", "1")]) is None
    assert limits.exceeded([("release", "2")]) == "rate"


def test_values_of_labels_are_bounded() -> None:
    values = LabelValues(("voice", "release"), 2)
    assert values.bounded({"voice": "amy", "release": 1.4}) == ("amy", "1.4")
    assert values.bounded({"voice": "ben", "colour": "red"}) == ("ben", "")
    assert values.bounded({"voice": "cid", "release": None}) == (OTHER, "")
    assert values.bounded({"voice": "amy"}) == ("amy", "")
    (long, _) = LabelValues(("voice", "release"), 2).bounded({"voice": "x" * 10_000})
    assert long == "x" * 64
    (half, _) = LabelValues(("voice", "release"), 2).bounded({"voice": "a\ud800"})
    assert half.encode() == b"a?"
