import copy
import json
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mosrt_export.errors import ConfigError
from mosrt_export.graphs.rewrites import MeanAttention, fold_batch_norm
from mosrt_export.utmosv2.config import Kind, ModelConfig
from mosrt_export.utmosv2.fusion import Fusion, GraphModel, Model, build
from mosrt_export.utmosv2.spectrogram import build_backbone
from tests.golden.utmosv2_model import CASES, load_case
from tests.standins.utmosv2 import (
    GOLDEN,
    SMALL,
    TWO_LAYERS,
    fusion_state_dict,
    small_config,
    small_feeds,
    small_model,
)

KINDS: tuple[Kind, ...] = ("fusion", "spec", "ssl")


def all_domains(model: Model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Scores (batch, domains), one run of the faithful module per domain."""
    columns = []
    batch = next(iter(inputs.values())).shape[0]
    for domain in range(model.n_domains):
        one_hot = nn.functional.one_hot(torch.tensor(domain), model.n_domains).float()
        columns.append(model(inputs, one_hot.expand(batch, -1)))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_simplified_equals_faithful(kind: Kind) -> None:
    config = small_config(ssl=TWO_LAYERS)
    model = small_model(kind, config)
    feeds = small_feeds(config, kind, batch=2)
    inputs = {name: torch.from_numpy(value) for name, value in feeds.items()}
    with torch.inference_mode():
        expected = [all_domains(model, inputs), *model.features(inputs).values()]
    graph = GraphModel(small_model(kind, config))
    with torch.inference_mode():
        found = graph(*inputs.values())
    assert graph.input_names == tuple(inputs)
    assert list(graph.output_sizes) == ["mos", *model.features(inputs)]
    for one, other in zip(found, expected, strict=True):
        # rounding of float32 through some twenty layers
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    spread = expected[0].max(dim=1).values - expected[0].min(dim=1).values
    assert (spread > 1e-3).all(), "the domains must differ for this test to see them"


@pytest.mark.parametrize(
    ("backbone", "folded"),
    [
        ("test_efficientnet", True),
        ("test_resnet", True),
        ("test_convnext", False),
        ("test_nfnet", False),  # standardises its kernels, so nothing may be folded into them
    ],
)
def test_other_backbones_simplify(backbone: str, folded: bool) -> None:
    config = small_config(spectrogram={**SMALL["spectrogram"], "backbone": backbone})
    model = small_model("spec", config)
    images = torch.from_numpy(small_feeds(config, "spec", batch=2)["images"])
    with torch.inference_mode():
        expected = model.features({"images": images})["spec_features"]
    graph = GraphModel(model)
    norms = [m for m in graph.modules() if isinstance(m, nn.BatchNorm2d)]
    assert bool(norms) is False or not folded
    with torch.inference_mode():
        torch.testing.assert_close(graph(images)[1], expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_is_folded_exactly() -> None:
    network = build_backbone("test_efficientnet")
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    image = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        exact = copy.deepcopy(network).double()(image.double())
        assert fold_batch_norm(network, image) > 5
        found = network(image)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    error = (found - exact).abs().max() / exact.abs().max()
    assert error < 1e-5


def test_a_shared_convolution_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.first, self.second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.second(self.conv(self.first(self.conv(x))))
            return y

    network = Shared().eval()
    nn.init.constant_(network.second.weight, 3.0)
    image = torch.rand(1, 2, 5, 5)
    with torch.inference_mode():
        expected = network(image)
        assert fold_batch_norm(network, image) == 0
        assert torch.equal(network(image), expected)


def test_mean_attention_against_float64_formula() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(24, 3, batch_first=True).eval()
    nn.init.uniform_(attention.in_proj_bias)
    nn.init.uniform_(attention.out_proj.bias)
    x = torch.rand(2, 7, 24)
    with torch.inference_mode():
        found = MeanAttention(attention)(x).numpy()
    w = attention.in_proj_weight.detach().double().numpy()
    b = attention.in_proj_bias.detach().double().numpy()
    y = x.double().numpy() @ w.T + b
    query, key, value = (part.reshape(2, 7, 3, 8).swapaxes(1, 2) for part in np.split(y, 3, axis=2))
    logits = query @ key.swapaxes(2, 3) / math.sqrt(8)
    weights = np.exp(logits) / np.exp(logits).sum(axis=3, keepdims=True)
    joined = (weights @ value).swapaxes(1, 2).reshape(2, 7, 24)
    out = attention.out_proj
    projected = joined @ out.weight.detach().double().numpy().T + out.bias.detach().numpy()
    np.testing.assert_allclose(found, projected.mean(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        ("ssl", {"attention_heads": 5}, "ssl.attention_heads .5. does not divide"),
        ("spectrogram", {"attention_heads": 7}, "spectrogram.attention_heads .7. does not divide"),
        ("spectrogram", {"backbone": "test_vit"}, "needs a convolutional feature map"),
        ("spectrogram", {"backbone": "swin_tiny_patch4_window7_224"}, "cannot read images of 64"),
    ],
)
def test_what_cannot_be_built_is_named(
    table: str, changes: dict[str, object], message: str
) -> None:
    config = small_config(**{table: {**SMALL[table], **changes}})
    with pytest.raises(ConfigError, match=message):
        build("fusion", config, 3)


@pytest.mark.parametrize(
    "encoder",
    ["hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", "wav2vec2-conformer"],
)
def test_other_encoders_simplify(encoder: str) -> None:
    settings = {**TWO_LAYERS["encoder"], "model_type": encoder}
    if encoder == "data2vec-audio":
        settings |= {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}
    config = small_config(ssl={**SMALL["ssl"], "encoder": settings})
    model = small_model("ssl", config)
    waveform = torch.from_numpy(small_feeds(config, "ssl", batch=2)["waveform"])
    with torch.inference_mode():
        expected = model.features({"waveform": waveform})["ssl_features"]
        found = GraphModel(model)(waveform)[1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_last_hidden_state_is_the_normalised_one() -> None:
    """As in transformers 4; for encoders with layer norm first, 5 records it before the norm."""
    stable = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
    settings = {**TWO_LAYERS["encoder"], **stable}
    model = small_model("ssl", small_config(ssl={**SMALL["ssl"], "encoder": settings}))
    encoder = model.get_submodule("encoder")
    waveform = torch.from_numpy(small_feeds(small_config(), "ssl")["waveform"])
    with torch.inference_mode():
        states = encoder(waveform)
        last = encoder.get_submodule("model")(waveform).last_hidden_state
    assert len(states) == 3
    assert torch.equal(states[-1], last)


@pytest.mark.full
def test_golden_vectors() -> None:
    """The reference's own outputs, with weights made from the keys of its state dict."""
    shapes = json.loads((GOLDEN / "utmosv2" / "state_dict.json").read_text())
    model = build("fusion", ModelConfig(), 10)
    assert isinstance(model, Fusion)
    assert list(model.state_dict()) == list(shapes)
    model.load_state_dict(fusion_state_dict())
    cases = [load_case(name) for name in CASES]
    for case in cases:
        named = {
            "waveform": torch.from_numpy(case.waveform),
            "images": torch.from_numpy(case.images),
        }
        with torch.inference_mode():
            features = model.features(named)
            mos = model.score(features, torch.from_numpy(case.domain)).item()
        assert relative(features["ssl_features"], case.ssl_features) < 1e-4
        assert relative(features["spec_features"], case.spec_features) < 1e-4
        assert abs(mos - case.mos) < 1e-3
    graph = GraphModel(model)
    for case in cases:
        with torch.inference_mode():
            scores, ssl, spec = graph(
                torch.from_numpy(case.waveform), torch.from_numpy(case.images)
            )
        assert relative(ssl, case.ssl_features) < 1e-4
        assert relative(spec, case.spec_features) < 1e-4
        assert abs(float(scores[0] @ torch.from_numpy(case.domain[0])) - case.mos) < 1e-3


def relative(found: torch.Tensor, expected: NDArray[np.float32]) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(found[0].numpy() - expected).max() / np.abs(expected).max())
