"""A stand-in for Triton: a model repository over HTTP, for machines without the server.

What it is honest about: configurations are read with Triton's own schema; a request must have the
names, types, shapes and batch that they say; what ONNX Runtime gives must have them too; ensembles
run in the order in which tensors become known; requests and answers are those of the inference
protocol (KServe version 2, with its extension for binary data). What it leaves out: everything
about time, such as queues and batches of several requests, and engines of TensorRT.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from click.testing import CliRunner, Result
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from mosrt_export.cli.export import export

Array = npt.NDArray[Any]

DTYPES: dict[Any, np.dtype[Any]] = {
    model_config_pb2.TYPE_FP32: np.dtype(np.float32),
    model_config_pb2.TYPE_INT64: np.dtype(np.int64),
}
_PROTOCOL_TYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype(np.float32),
    "INT64": np.dtype(np.int64),
}
_LENGTH = "Inference-Header-Content-Length"


def read_config(path: Path) -> Any:
    """A config.pbtxt as a `ModelConfig`; an unknown field is an error."""
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


class Repository:
    """A model repository, read once.

    Attributes:
        configs: Configurations by model.
        requests: Models that were asked, in order, steps of ensembles included.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.configs = {
            folder.name: read_config(folder / "config.pbtxt")
            for folder in sorted(path.iterdir())
            if folder.is_dir()
        }
        for name, config in self.configs.items():
            assert config.name == name
            assert [each.name for each in (path / name).iterdir() if each.is_dir()] == ["1"]
        self.requests: list[str] = []

    def infer(
        self, model: str, feeds: Mapping[str, Array], wanted: Sequence[str]
    ) -> dict[str, Array]:
        config = self.configs[model]
        self.requests.append(model)
        assert set(feeds) == {tensor.name for tensor in config.input}
        batches = {self._check(config, tensor, feeds[tensor.name]) for tensor in config.input}
        assert len(batches) == 1
        if config.HasField("ensemble_scheduling"):
            found = self._steps(config, feeds)
        else:
            found = self._run(config, feeds)
        for tensor in config.output:
            if tensor.name in found:
                assert {self._check(config, tensor, found[tensor.name])} == batches
        return {name: found[name] for name in wanted}

    def _check(self, config: Any, tensor: Any, values: Array) -> int | None:
        """The batch of a tensor, after comparing it with its description."""
        assert values.dtype == DTYPES[tensor.data_type], tensor.name
        shape = list(values.shape)
        batch = None
        if config.max_batch_size:
            batch, *shape = shape
            assert 1 <= batch <= config.max_batch_size
        assert len(shape) == len(tensor.dims), tensor.name
        assert all(b in (-1, a) for a, b in zip(shape, tensor.dims, strict=True)), tensor.name
        return batch

    def _run(self, config: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert config.backend == "onnxruntime"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            self.path / config.name / "1" / "model.onnx",
            options,
            providers=["CPUExecutionProvider"],
        )
        names = [tensor.name for tensor in config.output]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    def _steps(self, config: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
        known = dict(feeds)
        waiting = list(config.ensemble_scheduling.step)
        while waiting:
            ready = [step for step in waiting if set(step.input_map.values()) <= set(known)]
            assert ready, "steps wait for one another"
            for step in ready:
                waiting.remove(step)
                given = {own: known[ours] for own, ours in step.input_map.items()}
                found = self.infer(step.model_name, given, list(step.output_map))
                for own, ours in step.output_map.items():
                    assert ours not in known, "a tensor is made twice"
                    known[ours] = found[own]
        return known


@contextmanager
def served(repository: Repository) -> Iterator[str]:
    """Host and port where a repository answers over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            _, version, kind, model, verb = self.path.split("/")
            assert (version, kind, verb) == ("v2", "models", "infer")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            feeds, wanted = _parse(body, int(self.headers[_LENGTH]))
            try:
                answer, length = _answer(model, repository.infer(model, feeds, wanted))
                status = 200
            except (AssertionError, KeyError) as exc:
                answer = json.dumps({"error": repr(exc)}).encode()
                length, status = len(answer), 400
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.send_header(_LENGTH, str(length))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _parse(body: bytes, length: int) -> tuple[dict[str, Array], list[str]]:
    header = json.loads(body[:length])
    feeds = {}
    for tensor in header["inputs"]:
        n_bytes = tensor["parameters"]["binary_data_size"]
        dtype = _PROTOCOL_TYPES[tensor["datatype"]]
        values = np.frombuffer(body[length : length + n_bytes], dtype)
        feeds[tensor["name"]] = values.reshape(tensor["shape"])
        length += n_bytes
    assert length == len(body)
    return feeds, [tensor["name"] for tensor in header["outputs"]]


def _answer(model: str, found: Mapping[str, Array]) -> tuple[bytes, int]:
    """The whole answer, and the length of its first part."""
    types = {dtype: name for name, dtype in _PROTOCOL_TYPES.items()}
    outputs = [
        {
            "name": name,
            "datatype": types[values.dtype],
            "shape": values.shape,
            "parameters": {"binary_data_size": values.nbytes},
        }
        for name, values in found.items()
    ]
    header = json.dumps({"model_name": model, "model_version": "1", "outputs": outputs}).encode()
    return header + b"".join(values.tobytes() for values in found.values()), len(header)


def run(*args: object) -> Result:
    return CliRunner().invoke(export, ["triton", *map(str, args)], catch_exceptions=False)


def made(out: Path, *args: object) -> Repository:
    result = run(*args, "--output", out)
    assert result.exit_code == 0, result.output
    return Repository(out)


def graph_of(served: Repository, name: str) -> Any:
    path = served.path / name / "1" / "model.onnx"
    onnx.checker.check_model(path)  # with the weights beside it
    return onnx.load(path, load_external_data=False).graph
