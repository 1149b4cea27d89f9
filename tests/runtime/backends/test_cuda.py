import re
from pathlib import Path

import numpy as np
import pytest

import mosrt
from mosrt.backends import cuda as _cuda
from mosrt.backends.cuda import Cuda, DeviceBuffer, Event, HostBuffer, Stream
from tests.fakes.cudart import FakeCudart


@pytest.fixture
def library() -> FakeCudart:
    return FakeCudart()


def test_a_round_trip_through_the_device(library: FakeCudart) -> None:
    cuda = Cuda(library)
    stream, event = Stream(cuda), Event(cuda)
    there, back, device = HostBuffer(cuda, 32), HostBuffer(cuda, 32), DeviceBuffer(cuda, 32)
    there.array((2, 4), np.float32)[...] = np.arange(8).reshape(2, 4)
    cuda.copy(device, there, 32, stream)
    cuda.copy(back, device, 32, stream)
    event.record(stream)
    assert not np.array_equal(back.array((8,), np.float32), np.arange(8))  # nothing ran yet
    event.synchronize()
    np.testing.assert_array_equal(back.array((8,), np.float32), np.arange(8))
    for handle in (event, stream, there, back, device):
        handle.close()
        handle.close()
    assert +library.live == {}
    with pytest.raises(RuntimeError, match="DeviceBuffer is used after it was closed"):
        _ = device.address


def test_captured_work_runs_when_the_graph_is_launched(library: FakeCudart) -> None:
    cuda = Cuda(library)
    stream, host, device = Stream(cuda), HostBuffer(cuda, 4), DeviceBuffer(cuda, 4)
    host.array((4,), np.uint8)[...] = 7
    graph = stream.capture(lambda: cuda.copy(device, host, 4, stream))
    stream.synchronize()
    assert not library.memory(device.address).any()
    graph.launch(stream)
    stream.synchronize()
    assert (library.memory(device.address) == 7).all()
    graph.close()
    assert library.live["template"] == library.live["graph"] == 0


@pytest.mark.parametrize(
    ("function", "code"),
    [("cudaMemcpyAsync", 901), ("cudaStreamEndCapture", 901), ("cudaGraphInstantiateWithFlags", 2)],
)
def test_a_capture_that_fails_leaves_a_usable_stream(
    library: FakeCudart, function: str, code: int
) -> None:
    cuda = Cuda(library)
    stream, host, device = Stream(cuda), HostBuffer(cuda, 4), DeviceBuffer(cuda, 4)
    library.failures[function, 1] = code
    with pytest.raises(mosrt.ProviderError, match=function):
        stream.capture(lambda: cuda.copy(device, host, 4, stream))
    cuda.copy(device, host, 4, stream)
    stream.synchronize()
    assert library.live["template"] == library.live["graph"] == 0
    assert library.last_error == 0  # else the next launch would report it


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, "cudaMalloc failed with cudaErrorMemoryAllocation .2, .*smaller --max-batch"),
        (100, "cudaErrorNoDevice.*check that there is an NVIDIA GPU"),
        (35, "cudaErrorInsufficientDriver.*its driver supports"),
    ],
)
def test_errors_name_the_function_and_the_cure(library: FakeCudart, code: int, words: str) -> None:
    library.failures["cudaMalloc", 1] = code
    with pytest.raises(mosrt.ProviderError, match=words):
        DeviceBuffer(Cuda(library), 1)
    assert library.last_error == 0


def test_compute_capability(library: FakeCudart) -> None:
    assert Cuda(library).compute_capability() == "8.7"
    with pytest.raises(mosrt.ProviderError, match="CUDA_VISIBLE_DEVICES"):
        Cuda(FakeCudart(devices=0)).compute_capability()


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "_candidates", lambda: iter(["/nowhere/libcudart.so"]))
    with pytest.raises(mosrt.ProviderError, match="JetPack.*nvidia-cuda-runtime.*LD_LIBRARY_PATH"):
        Cuda.open()


def test_libraries_of_jetpack_and_wheels_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("sys.path", ["/site"])
    names = list(_cuda._candidates())
    assert names[0] == "libcudart.so.13"
    assert "/usr/local/cuda/targets/aarch64-linux/lib/libcudart.so.12" in names
    assert "/site/nvidia/cu13/lib/libcudart.so.13" in names
    assert "/site/nvidia/cuda_runtime/lib/libcudart.so.12" in names


def test_the_real_library_has_every_function() -> None:
    """Without a GPU the library must report an error instead of crashing on a wrong signature."""
    try:
        cuda = Cuda.open()
    except mosrt.ProviderError:
        pytest.skip("needs libcudart: pip install nvidia-cuda-runtime")
    used = set(re.findall(r'"(cuda[A-Z]\w+)"', Path(_cuda.__file__).read_text(encoding="utf-8")))
    assert len(used) > 15
    for name in used:
        assert hasattr(cuda._library, name), name
    try:
        assert re.fullmatch(r"\d+\.\d", cuda.compute_capability())
    except mosrt.ProviderError as exc:
        assert "check that there is an NVIDIA GPU" in str(exc)
