"""Makes INT8 and FP16 graphs from a network's FP32 graph."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mosrt.bundle.manifest import Member
from mosrt_calibration.clips import Clip
from mosrt_calibration.graph import Topology, attribute, copied, deduplicate_constants, read_graph
from mosrt_calibration.passes.corrections import correct_biases, equalise, smooth
from mosrt_calibration.passes.fp16 import to_fp16
from mosrt_calibration.passes.qdq import with_qdq
from mosrt_calibration.passes.targets import Targets
from mosrt_calibration.passes.weight_only import dynamic_matmul, weight_only_int8
from mosrt_calibration.ranges.collector import collect
from mosrt_calibration.ranges.ranges import ranges
from mosrt_calibration.ranges.statistics import Statistics
from mosrt_calibration.scoring import ModelUnderTest

__all__ = ["Network", "Scheme", "int8_graphs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A quantisation scheme: how INT8 graphs are made, except which blocks are kept in FP32.

    Attributes:
        method: How ranges are chosen; one of `mosrt_calibration.ranges.ranges.METHODS`.
        equalised: Whether neighbouring layers are equalised.
        biases_corrected: Whether biases are corrected for the mean error of quantised weights.
        smoothed: Whether outlier channels of MatMul inputs are moved into the weights.
        dynamic_matmul: Whether MatMul is quantised dynamically.
        weight_bits: Bits of the weights, 8 or 7. Graphs for TensorRT have 8.
        symmetric: S8S8 for TensorRT instead of U8S8 for CPUs.
    """

    method: str
    equalised: bool = False
    biases_corrected: bool = False
    smoothed: bool = False
    dynamic_matmul: bool = False
    weight_bits: int = 8
    symmetric: bool = False

    def __str__(self) -> str:
        words = {
            "equalised": self.equalised,
            "smoothed": self.smoothed,
            "biases corrected": self.biases_corrected,
            "dynamic MatMul": self.dynamic_matmul,
            "7-bit weights": self.weight_bits == 7,
        }
        return ", ".join([self.method, *(word for word, applies in words.items() if applies)])

    @property
    def kind(self) -> str:
        """Numeric precision of the graphs, as the manifest names it."""
        if self.symmetric:
            return "qdq-s8s8"
        return f"qdq-u8s{self.weight_bits}{'+dynamic' if self.dynamic_matmul else ''}"

    def to_dict(self) -> dict[str, Any]:
        """The entries for the manifest, whose `kind` tells the target."""
        entries = dataclasses.asdict(self)
        del entries["symmetric"]
        return entries


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """An FP32 graph after equalisation and smoothing, which change the activations `changed`."""

    model: Any
    topology: Topology
    targets: Targets
    changed: frozenset[str]
    statistics: Statistics
    ranges: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)  # by method


class Network:
    """One network of the model under test. Statistics and ranges are computed once.

    Args:
        tested: The model under test.
        member: The network.
        clips: Calibration clips.
        histograms: Whether a range method needs histograms; min-max does not.
        cache: Directory of cached statistics.

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
    ) -> None:
        self.member = member
        self._tested = tested
        self._clips = clips
        self._histograms = histograms
        self._cache = cache
        self._model = read_graph(tested.directory / member.graph.path)
        self._topology = Topology(self._model)
        self.targets = Targets.of(self._topology)
        self._prepared: dict[tuple[bool, bool], _Prepared] = {}

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

    def int8(self, scheme: Scheme, kept_fp32: Collection[str]) -> Any:
        """An INT8 graph, an onnx.ModelProto.

        Args:
            scheme: The quantisation scheme.
            kept_fp32: Blocks, or parts of them, that compute in FP32. In graphs for CPUs they have
                weight-only INT8.
        """
        prepared = self._prepare(scheme)
        topology, targets, bits = prepared.topology, prepared.targets, scheme.weight_bits
        wanted = [name for name in targets.weighted if not targets.keeps_fp32(name, kept_fp32)]
        dynamic = []
        if scheme.dynamic_matmul:
            dynamic = [name for name in wanted if topology.nodes[name].op_type == "MatMul"]
        chosen = targets.only(topology, set(wanted) - set(dynamic), kept_fp32)
        model = prepared.model
        if scheme.biases_corrected:
            model = copied(model)
            channels = prepared.statistics.channels
            correct_biases(model, channels, chosen.weighted, weight_bits=bits)
        if scheme.method not in prepared.ranges:
            prepared.ranges[scheme.method] = ranges(prepared.statistics, scheme.method)
        found = prepared.ranges[scheme.method]
        if scheme.symmetric:
            return with_qdq(model, found, chosen.weighted, symmetric=True)
        nodes = [*chosen.weighted, *chosen.between]
        model = with_qdq(model, found, nodes, symmetric=False, weight_bits=bits)
        model = dynamic_matmul(model, dynamic, weight_bits=bits)
        in_fp32 = [name for name in targets.weighted if name not in wanted]
        return deduplicate_constants(weight_only_int8(model, in_fp32))

    def macs(self, scheme: Scheme) -> Counter[str]:
        """MACs by part of a block, over all calibration clips."""
        prepared = self._prepare(scheme)
        found: Counter[str] = Counter()
        for name in prepared.targets.weighted:
            node = prepared.topology.nodes[name]
            places = prepared.statistics.channels[node.input[0]].count
            if node.op_type == "Conv":  # padding is neglected
                places //= math.prod(attribute(node, "strides", ()))
            weights = prepared.topology.initializers[node.input[1]]
            found[prepared.targets.part[name]] += places * math.prod(weights.dims)
        return found

    def changes(self, scheme: Scheme) -> bool:
        """Whether the scheme's equalisation and smoothing change the graph."""
        return bool(self._prepare(scheme).changed)

    def _prepare(self, scheme: Scheme) -> _Prepared:
        """Only activations that equalisation or smoothing changes are collected again."""
        key = (scheme.equalised, scheme.smoothed)
        if key not in self._prepared:
            model, changed, plain = copied(self._model), frozenset[str](), Statistics()
            if any(key):
                unchanged = dataclasses.replace(scheme, equalised=False, smoothed=False)
                plain = self._prepare(unchanged).statistics
            if scheme.equalised:
                changed |= equalise(model)
            if scheme.smoothed:
                before = self._prepare(dataclasses.replace(scheme, smoothed=False))
                changed |= smooth(model, before.statistics.channels)
            topology = Topology(model)
            targets = Targets.of(topology)
            tensors = targets.tensors(topology)
            found = collect(
                self._tested,
                self.member,
                model,
                [name for name in tensors if name in changed or name not in plain.low],
                self._clips,
                histograms=self._histograms,
                cache=self._cache,
            )
            self._prepared[key] = _Prepared(
                model=model,
                topology=topology,
                targets=targets,
                changed=changed,
                statistics=plain.updated(found),
            )
        return self._prepared[key]


def int8_graphs(
    networks: Iterable[Network], scheme: Scheme, kept_fp32: Collection[str]
) -> dict[str, Any]:
    """INT8 graphs by name of the network; see `Network.int8`."""
    return {network.member.name: network.int8(scheme, kept_fp32) for network in networks}
