"""Copies of the tiny bundle with more variants."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np


def with_variants(tiny: Path, target: Path, *names: str) -> Path:
    """A copy whose variants of these names all mean the fp32 graphs."""
    shutil.copytree(tiny, target)
    _edit(target, lambda fp32: dict.fromkeys(names, fp32))
    return target


def with_int8(tiny: Path, target: Path) -> Path:
    """A copy with fp32 and a true int8-cpu: U8S8 Q/DQ by ONNX Runtime's own tool (needs onnx)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    shutil.copytree(tiny, target)

    class Noise(CalibrationDataReader):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self._feeds = iter(
                {
                    "waveform": rng.standard_normal((1, 48_000), np.float32),
                    "images": rng.random((1, 8, 512, 512), np.float32),
                }
                for _ in range(2)
            )

        def get_next(self) -> Any:
            return next(self._feeds, None)

    def variants(fp32: dict[str, Any]) -> dict[str, Any]:
        members = []
        for member in fp32["members"]:
            graph = target / f"model.{member['name']}.int8-cpu.onnx"
            quantize_static(
                target / member["graph"]["path"],
                graph,
                Noise(),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
            members.append({"name": member["name"], "graph": _file(graph), "weights": None})
        return {"fp32": fp32, "int8-cpu": {**fp32, "members": members}}

    _edit(target, variants)
    return target


def with_types(tiny: Path, target: Path) -> Path:
    """A copy whose graphs name the type of every tensor, as exported ones do (needs onnx)."""
    import onnx

    shutil.copytree(tiny, target)

    def variants(fp32: dict[str, Any]) -> dict[str, Any]:
        members = []
        for member in fp32["members"]:
            graph = target / member["graph"]["path"]
            onnx.save(onnx.shape_inference.infer_shapes(onnx.load(graph)), graph)
            members.append({**member, "graph": _file(graph)})
        return {"fp32": {**fp32, "members": members}}

    _edit(target, variants)
    return target


def _file(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"path": path.name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _edit(bundle: Path, variants: Any) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["variants"] = variants(manifest["variants"]["fp32"])
    path.write_text(json.dumps(manifest))
