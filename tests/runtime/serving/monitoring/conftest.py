"""A monitor of the smallest embedded model, and speech to offer to it."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import CollectorRegistry

import mosrt

MakeMonitor = Callable[..., mosrt.Monitor]
FREE = {"sample": 1.0, "max_per_second": 1e6, "max_per_label_value": 1e6, "max_queue": 1000}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def make_monitor(registry: CollectorRegistry) -> Iterator[MakeMonitor]:
    """Makes monitors of `nano` that score everything, and closes them."""
    made: list[mosrt.Monitor] = []

    def make(**options: Any) -> mosrt.Monitor:
        made.append(mosrt.Monitor("nano", **{**FREE, "registry": registry, **options}))
        return made[-1]

    yield make
    for monitor in made:
        monitor.close(drain=False)


@pytest.fixture(scope="session")
def pcm(speech: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """A second of speech at 16 kHz, (16000,)."""
    return (speech[8_000:24_000] * 32_767).astype(np.int16)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """The value of a metric."""
    return registry.get_sample_value(f"mosrt_{name}", labels)
