"""A machine with a GPU, TensorRT and engines in its cache, all stand-ins."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mosrt.backends.cuda import Cuda
from mosrt.backends.engine_file import EngineFiles, EngineKey, Profile, Target
from mosrt.backends.trt import TrtBackend
from mosrt.bundle.manifest import File, Member, TensorSpec, Variant
from tests.fakes.cudart import FakeCudart
from tests.fakes.tensorrt import FakeTensorRt, Tensors, engine_bytes, expected

Array = npt.NDArray[Any]
INPUTS: Tensors = {"images": ("FLOAT", [-1, 3, 4]), "draws": ("INT64", [-1, 2])}
OUTPUTS: Tensors = {"mos": ("FLOAT", [-1, 5]), "features": ("FLOAT", [-1, 6])}
PROFILE: Profile = {
    "images": ((2, 3, 4), (4, 3, 4), (6, 3, 4)),
    "draws": ((2, 2), (4, 2), (6, 2)),
}
TARGET = Target(module="tensorrt", version="10.3.0", compute_capability="8.7")
_DTYPES = {"FLOAT": "float32", "INT64": "int64"}


def specs(tensors: Tensors, first: str = "batch", last: str = "samples") -> list[TensorSpec]:
    return [
        TensorSpec(
            name=name,
            dtype=_DTYPES[dtype],
            shape=tuple(
                size if size != -1 else first if i == 0 else last for i, size in enumerate(shape)
            ),
        )
        for name, (dtype, shape) in tensors.items()
    ]


def variant(n_members: int = 1) -> Variant:
    members = []
    for i in range(n_members):
        digest = hashlib.sha256(str(i).encode()).hexdigest()
        graph = File(path=f"model{i}.onnx", sha256=digest, bytes=1)
        members.append(Member(name=f"fold{i}", graph=graph))
    return Variant(opset=18, members=tuple(members))


def feeds(n: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "images": rng.standard_normal((n, 3, 4)).astype(np.float32),
        "draws": rng.integers(0, 9, (n, 2)),
    }


class Machine:
    """A GPU, a TensorRT and a cache with engines."""

    def __init__(self, directory: Path) -> None:
        self.cudart = FakeCudart()
        self.trt = FakeTensorRt(self.cudart)
        self.files = EngineFiles(directory)

    def put(
        self,
        chosen: Variant,
        *,
        inputs: Tensors = INPUTS,
        outputs: Tensors = OUTPUTS,
        profile: Profile = PROFILE,
        target: Target = TARGET,
    ) -> list[Path]:
        """Engines of all networks of a variant."""
        content = engine_bytes(inputs, outputs, dict(profile))
        return [
            self.files.write(
                EngineKey(graph=member.sha256, target=target, profile=profile), content, {}
            )
            for member in chosen.members
        ]

    def open(
        self, chosen: Variant, *, inputs: Tensors = INPUTS, outputs: Tensors = OUTPUTS
    ) -> TrtBackend:
        return TrtBackend(
            Path("bundle"),
            chosen,
            inputs=specs(inputs),
            outputs=specs(outputs),
            files=self.files,
            cuda=Cuda(self.cudart),
        )


def check(backend: TrtBackend, given: dict[str, Array], names: tuple[str, ...] = ("mos",)) -> None:
    """The backend's answer, against the sum that the stand-in is told to make."""
    n = len(given["images"])
    found = backend.run(given, names)
    assert set(found) == set(names)
    for name in names:
        wanted = expected(given, (n, OUTPUTS[name][1][-1]))
        assert found[name].shape == (2, *wanted.shape)
        assert found[name].dtype == np.float32
        # A sum of a few float32 values, at most a hundred large.
        np.testing.assert_allclose(found[name], np.stack([wanted, wanted]), rtol=1e-5, atol=1e-4)
