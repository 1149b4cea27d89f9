"""Makes INT8 and FP16 graphs from a network's FP32 graph."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosrt.bundle.manifest import Member
from mosrt_calibration.clips import Clip
from mosrt_calibration.graph import Topology, copied, deduplicate_constants, read_graph
from mosrt_calibration.passes.bias_correction import correct_biases
from mosrt_calibration.passes.equalisation import equalise
from mosrt_calibration.passes.fp16 import to_fp16
from mosrt_calibration.passes.qdq import qdq_s8s8, qdq_u8s8
from mosrt_calibration.passes.smoothing import smooth
from mosrt_calibration.passes.targets import Targets
from mosrt_calibration.passes.weight_only import dynamic_matmul, weight_only_int8
from mosrt_calibration.ranges.collector import Statistics, collect
from mosrt_calibration.ranges.ranges import ranges
from mosrt_calibration.scoring import ModelUnderTest, Progress

__all__ = ["Network", "Scheme", "int8_graphs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """An FP32 graph after equalisation and smoothing."""

    model: Any
    topology: Topology
    targets: Targets
    changed: frozenset[str]


class Network:
    """One network of the model under test. Statistics and ranges are computed once.

    Args:
        tested: The model under test.
        member: The network.
        clips: Calibration clips.
        histograms: Whether a range method needs histograms; min-max does not.
        cache: Directory of cached statistics.
        progress: Makes progress bars.

    Attributes:
        member: The network.
        targets: The nodes to quantise in the original graph.
    """

    def __init__(
        self,
        tested: ModelUnderTest,
        member: Member,
        clips: Sequence[Clip],
        *,
        histograms: bool = True,
        cache: Path,
        progress: Progress,
    ) -> None:
        self.member = member
        self._tested = tested
        self._clips = clips
        self._histograms = histograms
        self._cache = cache
        self._progress = progress
        self._model = read_graph(tested.directory / member.graph.path)
        self._topology = Topology(self._model)
        self.targets = Targets.of(self._topology)
        self._prepared: dict[tuple[bool, bool], _Prepared] = {}
        self._statistics: dict[tuple[bool, bool], Statistics] = {}
        self._ranges: dict[tuple[bool, bool, str], dict[str, tuple[float, float]]] = {}

    @property
    def has_weights(self) -> bool:
        """Whether there are nodes to quantise."""
        return bool(self.targets.weighted)

    @property
    def has_matmul(self) -> bool:
        """Whether some of these nodes are MatMul, as in transformers."""
        nodes = self._topology.nodes
        return any(nodes[name].op_type == "MatMul" for name in self.targets.weighted)

    def fp16(self) -> Any:
        """The FP16 graph, an onnx.ModelProto."""
        return to_fp16(self._model)

    def int8(self, scheme: Scheme, kept_fp32: Collection[str], *, symmetric: bool) -> Any:
        """An INT8 graph, an onnx.ModelProto.

        Args:
            scheme: The quantisation scheme.
            kept_fp32: Blocks, or parts of them, that compute in FP32. In graphs for CPUs they have
                weight-only INT8.
            symmetric: S8S8 for TensorRT instead of U8S8 for CPUs.
        """
        prepared = self._prepare(scheme)
        statistics = self._statistic(scheme, prepared)
        topology = prepared.topology
        targets = prepared.targets
        wanted = [name for name in targets.weighted if not targets.keeps_fp32(name, kept_fp32)]
        dynamic = [
            name for name in wanted if scheme.dynamic and topology.nodes[name].op_type == "MatMul"
        ]
        chosen = targets.only(topology, set(wanted) - set(dynamic), kept_fp32)
        model = prepared.model
        if scheme.correct_biases:
            model = copied(model)
            bits = scheme.weight_bits
            correct_biases(model, statistics.channels, chosen.weighted, weight_bits=bits)
        key = (scheme.equalise, scheme.smooth, scheme.method)
        if key not in self._ranges:
            self._ranges[key] = ranges(statistics, scheme.method)
        found = self._ranges[key]
        if symmetric:
            return qdq_s8s8(model, found, chosen.weighted)
        nodes = [*chosen.weighted, *chosen.between]
        model = qdq_u8s8(model, found, nodes, weight_bits=scheme.weight_bits)
        model = dynamic_matmul(model, dynamic, weight_bits=scheme.weight_bits)
        in_fp32 = [name for name in targets.weighted if name not in wanted]
        return deduplicate_constants(weight_only_int8(model, in_fp32))

    def macs(self, scheme: Scheme) -> dict[str, int]:
        """MACs by part of a block, over all calibration clips."""
        prepared = self._prepare(scheme)
        topology = prepared.topology
        channels = self._statistic(scheme, prepared).channels
        found: Counter[str] = Counter()
        for name in prepared.targets.weighted:
            node = topology.nodes[name]
            places = channels[node.input[0]].count
            if node.op_type == "Conv":  # padding is neglected
                strides = next((a.ints for a in node.attribute if a.name == "strides"), ())
                places //= math.prod(strides)
            part = prepared.targets.part[name]
            found[part] += places * math.prod(topology.initializers[node.input[1]].dims)
        return dict(found)

    def changes(self, scheme: Scheme) -> bool:
        """Whether the scheme's equalisation and smoothing change the graph."""
        return bool(self._prepare(scheme).changed)

    def _prepare(self, scheme: Scheme) -> _Prepared:
        key = (scheme.equalise, scheme.smooth)
        if key not in self._prepared:
            model, changed = copied(self._model), frozenset[str]()
            if scheme.equalise:
                changed |= equalise(model)
            if scheme.smooth:
                before = dataclasses.replace(scheme, smooth=False)
                statistics = self._statistic(before, self._prepare(before))
                changed |= smooth(model, statistics.channels)
            topology = Topology(model)
            targets = Targets.of(topology)
            self._prepared[key] = _Prepared(
                model=model, topology=topology, targets=targets, changed=changed
            )
        return self._prepared[key]

    def _statistic(self, scheme: Scheme, prepared: _Prepared) -> Statistics:
        """Statistics of a prepared graph; only changed activations are collected again."""
        key = (scheme.equalise, scheme.smooth)
        if key not in self._statistics:
            tensors = prepared.targets.tensors(prepared.topology)
            before = None
            if scheme.equalise or scheme.smooth:
                plain = dataclasses.replace(scheme, equalise=False, smooth=False)
                before = self._statistic(plain, self._prepare(plain))
                tensors = tuple(n for n in tensors if n in prepared.changed or n not in before.low)
            found = collect(
                self._tested,
                self.member,
                prepared.model,
                tensors,
                self._clips,
                histograms=self._histograms,
                cache=self._cache,
                progress=self._progress,
            )
            self._statistics[key] = found if before is None else before.updated(found)
        return self._statistics[key]


def int8_graphs(
    networks: Iterable[Network], scheme: Scheme, kept_fp32: Collection[str], *, symmetric: bool
) -> dict[str, Any]:
    """INT8 graphs by name of the network; see `Network.int8`."""
    return {
        network.member.name: network.int8(scheme, kept_fp32, symmetric=symmetric)
        for network in networks
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A quantisation scheme: how INT8 graphs are made, except which blocks are kept in FP32.

    Attributes:
        method: How ranges are chosen; one of `mosrt_calibration.ranges.ranges.METHODS`.
        equalise: Whether neighbouring layers are equalised.
        correct_biases: Whether biases are corrected for the mean error of quantised weights.
        smooth: Whether outlier channels of MatMul inputs are moved into the weights.
        dynamic: Whether MatMul is quantised dynamically.
        weight_bits: Bits of the weights, 8 or 7. Graphs for TensorRT have 8.
    """

    method: str
    equalise: bool = False
    correct_biases: bool = False
    smooth: bool = False
    dynamic: bool = False
    weight_bits: int = 8

    def __str__(self) -> str:
        parts = [self.method]
        parts += ["equalised"] if self.equalise else []
        parts += ["smoothed"] if self.smooth else []
        parts += ["biases corrected"] if self.correct_biases else []
        parts += ["dynamic MatMul"] if self.dynamic else []
        parts += ["7-bit weights"] if self.weight_bits == 7 else []
        return ", ".join(parts)

    def kind(self, *, symmetric: bool) -> str:
        """Numeric precision of the graphs, as the manifest names it; `symmetric` for TensorRT."""
        if symmetric:
            return "qdq-s8s8"
        return f"qdq-u8s{self.weight_bits}{'+dynamic' if self.dynamic else ''}"

    def to_dict(self) -> dict[str, Any]:
        """The entries for the manifest."""
        return {
            "method": self.method,
            "equalised": self.equalise,
            "biases_corrected": self.correct_biases,
            "smoothed": self.smooth,
            "dynamic_matmul": self.dynamic,
            "weight_bits": self.weight_bits,
        }
