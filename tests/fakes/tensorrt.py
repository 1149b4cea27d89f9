"""A stand-in for TensorRT's module, whose engines run on the stand-in for CUDA.

A context serves one run at a time, and forgets nothing but what it is
told. Misuse is an AssertionError. The computation is made up: element j of an output's last axis
is (j + 1) times the sum of each input over all axes but the first.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.fakes.cudart import FakeCudart

Array = npt.NDArray[Any]


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT64 = 2


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}
Tensors = dict[str, tuple[str, list[int]]]


def engine_bytes(inputs: Tensors, outputs: Tensors, profile: dict[str, Any]) -> bytes:
    """What the stand-in takes for a serialised engine; tensors by name as (type, shape).

    A size of -1 is the first input's: the first of an output its batch, others its last.
    """
    described = {"inputs": inputs, "outputs": outputs, "profile": profile}
    return json.dumps(described).encode()


class ILogger:
    Severity = Severity

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class FakeTensorRt(types.ModuleType):
    """A module "tensorrt" whose engines run on a `FakeCudart`.

    Attributes:
        released: Names of what was released, in order.
        n_contexts: Contexts made so far.
        refuse_recording: Whether a run inside of a capture fails, as of an engine with loops.
    """

    def __init__(self, cudart: FakeCudart, version: str = "10.3.0", name: str = "tensorrt") -> None:
        super().__init__(name)
        self.__version__ = version
        self.__spec__ = ModuleSpec(name, None)
        self.ILogger = ILogger
        self.TensorIOMode = TensorIOMode
        self.cudart = cudart
        self.released: list[str] = []
        self.n_contexts = 0
        self.refuse_recording = False
        self.Runtime = lambda logger: _Runtime(self, logger)


class _Runtime:
    def __init__(self, trt: FakeTensorRt, logger: ILogger) -> None:
        self.trt = trt
        self._logger = logger

    def deserialize_cuda_engine(self, content: Any) -> _Engine | None:
        try:
            return _Engine(self, json.loads(bytes(content)), self._logger)
        except ValueError:
            self._logger.log(Severity.ERROR, "Serialization assertion magicTag failed.")
            return None

    def __del__(self) -> None:
        self.trt.released.append("runtime")


class _Engine:
    def __init__(self, runtime: _Runtime, described: dict[str, Any], logger: ILogger) -> None:
        self.trt = runtime.trt
        self.described = described
        self.logger = logger
        self._tensors: Tensors = {**described["inputs"], **described["outputs"]}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode["INPUT" if name in self.described["inputs"] else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._tensors[name][0]]

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self._tensors[name][1])

    def create_execution_context(self) -> _Context:
        self.trt.n_contexts += 1
        return _Context(self)

    def __del__(self) -> None:
        self.trt.released.append("engine")


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._busy = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self._engine.described["profile"][name]
        fits = all(a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True))
        if not fits:
            self._engine.logger.log(Severity.ERROR, f"{name}: {shape} is outside of the profile")
        else:
            self._shapes[name] = tuple(shape)
        return fits

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine.described["inputs"] if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        first = self._shapes[next(iter(self._engine.described["inputs"]))]
        _, shape = self._engine.described["outputs"][name]
        sizes = [first[0] if i == 0 else first[-1] for i in range(len(shape))]
        return tuple(
            size if known == -1 else known for known, size in zip(shape, sizes, strict=True)
        )

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        trt = self._engine.trt
        recording = trt.cudart._get("stream", ctypes.c_void_p(stream)).recorded is not None
        if recording and trt.refuse_recording:
            self._engine.logger.log(Severity.ERROR, "operation not permitted while capturing")
            return False
        assert not self._busy, "two runs of a context at once"
        self._busy = not recording
        inputs = {name: self._tensor(name) for name in self._engine.described["inputs"]}
        outputs = {name: self._tensor(name) for name in self._engine.described["outputs"]}

        def compute() -> None:
            self._busy = False
            for output in outputs.values():
                output[...] = expected(inputs, output.shape)

        trt.cudart.queue(stream, compute)
        return True

    def _tensor(self, name: str) -> Array:
        """A tensor in device memory, at its present shape."""
        shape = self.get_tensor_shape(name)
        dtype = np.dtype(_NUMPY[self._engine.get_tensor_dtype(name).name])
        memory = self._engine.trt.cudart.memory(self._addresses[name])
        return memory[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    def __del__(self) -> None:
        self._engine.trt.released.append("context")


def expected(inputs: dict[str, Array], shape: tuple[int, ...]) -> Array:
    """What the stand-in computes for an output of `shape`, float64."""
    total = sum(
        values.astype(np.float64).reshape(len(values), -1).sum(1) for values in inputs.values()
    )
    factors = np.arange(1, shape[-1] + 1)
    return np.broadcast_to(np.reshape(total, (-1, *[1] * (len(shape) - 1))) * factors, shape)
