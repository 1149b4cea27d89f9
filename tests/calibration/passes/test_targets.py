from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mosrt_calibration.graph import Topology
from mosrt_calibration.passes.targets import Targets, blocks, heads
from tests.standins.quantizable import convolutional, transformer


def _topology(model: onnx.ModelProto) -> Topology:
    return Topology(onnx.shape_inference.infer_shapes(model))


def _chain(*names: str) -> Topology:
    """1x1 convolutions one after the other."""
    kernel = numpy_helper.from_array(np.ones((1, 1, 1), np.float32), "kernel")
    nodes = [
        helper.make_node("Conv", [f"t{i}", "kernel"], [f"t{i + 1}"], name=name)
        for i, name in enumerate(names)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, 9])
        for name in ("t0", f"t{len(names)}")
    ]
    return Topology(
        helper.make_model(helper.make_graph(nodes, "chain", ends[:1], ends[1:], [kernel]))
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # an image network of timm's: stem, blocks in stages, head
        (
            [
                "spec.nets.0.conv_stem/Conv",
                "spec.nets.0.blocks.1.0.conv_exp/Conv",
                "spec.nets.0.blocks.1.0.conv_pwl/Conv",
                "spec.nets.0.blocks.1.1.conv_exp/Conv",
                "spec.nets.0.blocks.1.1.conv_pwl/Conv",
                "spec.nets.0.conv_head/Conv",
            ],
            [
                "spec.nets.0.conv_stem",
                "spec.nets.0.blocks.1.0",
                "spec.nets.0.blocks.1.0",
                "spec.nets.0.blocks.1.1",
                "spec.nets.0.blocks.1.1",
                "spec.nets.0.conv_head",
            ],
        ),
        # a transformer
        (
            ["ssl.layers.3.attention.q_proj/Conv", "ssl.layers.3.feed_forward.dense/Conv"],
            ["ssl.layers.3", "ssl.layers.3"],
        ),
        # plain stages, and a residual one
        (
            ["mel.stages.0.0/Conv", "mel.stages.3.first.0/Conv", "mel.stages.3.second.0/Conv"],
            ["mel.stages.0", "mel.stages.3", "mel.stages.3"],
        ),
        # no modules at all
        (["Conv_0", "Conv_1"], ["Conv_0", "Conv_1"]),
    ],
)
def test_blocks(names: list[str], expected: list[str]) -> None:
    assert list(blocks(_chain(*names)).values()) == expected


def test_nodes_without_a_module_belong_to_what_feeds_them() -> None:
    nodes = [
        helper.make_node("Relu", ["t1"], ["u"], name="Relu_7"),
        *_chain("net.0.a/Conv").nodes.values(),
    ]
    topology: Any = _chain("net.0.a/Conv")
    topology.nodes["Relu_7"] = nodes[0]
    assert blocks(topology)["Relu_7"] == "net.0"


def test_a_network_is_quantised_up_to_its_head() -> None:
    topology = _topology(convolutional())
    targets = Targets.of(topology)
    assert heads(topology) == {"head/Gemm"}
    assert len(targets.weighted) == 9
    assert tuple(targets.parts) == ("net.stem", *(f"net.blocks.{i}" for i in range(4)))
    # nodes after the last convolution gain nothing from INT8
    assert "net.blocks.2/Add" in targets.between
    assert "net.blocks.3/Add" not in targets.between
    assert "net/GlobalAveragePool" not in targets.between


def test_norms_softmax_and_logits_of_a_transformer_stay_float() -> None:
    topology = _topology(transformer())
    targets = Targets.of(topology)
    kinds = {topology.nodes[name].op_type for name in (*targets.weighted, *targets.between)}
    assert kinds <= {"Conv", "MatMul", "Transpose", "Relu", "Add"}
    assert not [name for name in targets.weighted if "logits" in name or "mixed" in name]
    assert tuple(targets.parts) == ("net.frames", "net.layers.0")


def test_leaving_a_block_out_leaves_out_what_hangs_on_it() -> None:
    topology = _topology(convolutional())
    targets = Targets.of(topology)
    kept = [name for name in targets.weighted if not targets.keeps_fp32(name, ["net.blocks.1"])]
    left = targets.only(topology, kept, ["net.blocks.1"])
    assert not [name for name in (*left.weighted, *left.between) if ".blocks.1" in name]
    # it would add FP32 to INT8
    assert "net.blocks.1/Add" in targets.between
    assert SimpleNamespace(**left.block) == SimpleNamespace(**targets.block)


@pytest.mark.parametrize(("n_stages", "by_stage"), [(2, None), (4, False), (6, True)])
def test_blocks_of_large_models_are_put_together(n_stages: int, by_stage: bool | None) -> None:
    """Those of like branches first, and then by stage."""
    names = [
        f"spec.nets.{net}.blocks.{stage}.{block}.{conv}/Conv"
        for net in range(2)
        for stage in range(n_stages)
        for block in range(10)
        for conv in ("first", "second")
    ]
    names += [f"ssl.layers.{layer}.{n}/Conv" for layer in range(12) for n in ("query", "key")]
    targets = Targets.of(_chain("front/Conv", *names))
    assert len(targets.weighted) == len(names) + 1
    branches = ("0", "1") if by_stage is None else ("*",)
    blocks = [
        f"spec.nets.{net}.blocks.{stage}{'' if by_stage else f'.{block}'}"
        for net in branches
        for stage in range(n_stages)
        for block in range(10)
    ]
    layers = [f"ssl.layers.{layer}" for layer in range(12)]
    assert tuple(targets.parts) == ("front", *dict.fromkeys(blocks), *layers)
    stage = list(targets.parts)[-13]
    numbers = range(10) if by_stage else ()
    assert targets.parts[stage] == (tuple(f"{stage}.{i}" for i in numbers) or (stage,))
    assert targets.parts["ssl.layers.3"] == ("ssl.layers.3",)


def test_a_part_of_a_block_stays_alone() -> None:
    names = [f"net.0.blocks.{i}.{j}.{k}/Conv" for i in range(9) for j in range(9) for k in "ab"]
    targets = Targets.of(_chain("front/Conv", *names))
    stays = {
        left: [name for name in targets.weighted if targets.keeps_fp32(name, [left])]
        for left in ("net.*.blocks.2", "net.*.blocks.2.5")
    }
    assert [len(found) for found in stays.values()] == [18, 2]
    assert stays["net.*.blocks.2.5"] == ["net.0.blocks.2.5.a/Conv", "net.0.blocks.2.5.b/Conv"]
