import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> None:
    """Small models gain nothing from threads, and lose much on a busy machine."""
    if request.node.get_closest_marker("full") is None:
        torch.set_num_threads(1)
