from pathlib import Path
from typing import Any

import pytest

from mosrt_export.errors import ConfigError
from mosrt_export.utmosv2.config import PUBLISHED_DOMAINS, EncoderConfig, ModelConfig
from mosrt_export.utmosv2.spectrogram import build_backbone
from mosrt_export.utmosv2.ssl_encoder import build_encoder
from tests.standins.utmosv2 import SMALL, small_config


def test_an_empty_file_is_the_published_model(tmp_path: Path) -> None:
    file = tmp_path / "empty.toml"
    file.write_text("")
    config = ModelConfig.from_toml(file)
    assert config == ModelConfig()
    # the published facts, written out once more
    assert config.ssl.crop_samples == 3 * 16_000
    assert config.spectrogram.crop_samples == round(1.4 * 16_000)
    assert config.spectrogram.windows == (4096, 2048, 1024, 512)
    assert len(PUBLISHED_DOMAINS) == 10


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text(
        """
        name = "ours"
        domains = ["a", "b"]
        default_domain = "b"

        [ssl]
        epsilon = 1

        [ssl.encoder]
        model_type = "wavlm"
        hidden_size = 1024

        [spectrogram]
        backbone = "tf_efficientnetv2_b0"
        windows = [2048, 512]
        n_crops = 3
        """
    )
    config = ModelConfig.from_toml(file)
    assert config.domains == ("a", "b")
    assert config.default_domain == "b"
    assert config.ssl.epsilon == 1.0
    assert isinstance(config.ssl.epsilon, float)
    assert config.ssl.encoder == EncoderConfig(model_type="wavlm", overrides={"hidden_size": 1024})
    assert config.spectrogram.windows == (2048, 512)
    assert config.spectrogram.n_crops == 3
    assert config.spectrogram.n_fft == ModelConfig().spectrogram.n_fft


@pytest.mark.parametrize(
    "config",
    [ModelConfig(), small_config(), small_config(licence="CC0", training_data="A\nB" * 999)],
)
def test_dict_round_trip(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"domians": ["a"]}, "unknown key 'domians'; did you mean 'domains'"),
        ({"spectrogram": {"window": [512]}}, "'spectrogram.window'; did you mean 'windows'"),
        ({"qqqq": 1}, "unknown key 'qqqq'; known: default_domain"),
        ({"licence": 1}, "licence must be str, not int"),
        ({"domains": "a"}, "domains must be list, not str"),
        ({"domains": [1]}, r"domains\[0\] must be str, not int"),
        ({"domains": []}, "at least one"),
        ({"domains": ["a", "a"]}, "without repetition"),
        ({"domains": ["a"], "default_domain": "b"}, "'b' is not among domains: a"),
        ({"default_domain": "b"}, "'b' is not among domains: bvcc, sarulab"),
        ({"kind": "both"}, "kind must be one of fusion, spec, ssl, not 'both'"),
        ({"ssl": 3}, r"write \[ssl\] above its keys"),
        ({"ssl": {"crop_samples": 1.5}}, "ssl.crop_samples must be int, not float"),
        ({"ssl": {"crop_samples": True}}, "ssl.crop_samples must be int, not bool"),
        ({"ssl": {"crop_samples": 0}}, "ssl.crop_samples must be from 1 to 2000000, not 0"),
        ({"ssl": {"epsilon": float("nan")}}, "ssl.epsilon must be from .*, not nan"),
        ({"ssl": {"epsilon": float("inf")}}, "ssl.epsilon must be from .* to 1.0, not inf"),
        ({"ssl": {"crop_samples": 10**12}}, "ssl.crop_samples must be from 1 to"),
        ({"spectrogram": {"hop_length": -1}}, "spectrogram.hop_length must be from 1 to"),
        (
            {"spectrogram": {"hop_length": 1, "n_fft": 65_536}},
            r"crop_samples / hop_length \* n_fft",
        ),
        ({"spectrogram": {"n_mels": 10**9}}, "spectrogram.n_mels must be from 1 to"),
        ({"spectrogram": {"windows": [512] * 99}}, "spectrogram.windows: number of items"),
        ({"spectrogram": {"windows": []}}, "spectrogram.windows: number of items"),
        (
            {"spectrogram": {"windows": [8192]}},
            "windows must be at most n_fft, which is 4096",
        ),
        ({"spectrogram": {"n_crops": 64}}, "larger than mosrt makes; lower n_crops"),
        ({"spectrogram": {"f_min_hz": 9000.0}}, "spectrogram needs 0 <= f_min_hz < f_max_hz"),
        ({"spectrogram": {"f_max_hz": 9000.0}}, "9000.0 at 16000 Hz"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(values)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing.toml: cannot read"):
        ModelConfig.from_toml(tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("domains = [")
    with pytest.raises(ConfigError, match=r"broken.toml: not valid TOML"):
        ModelConfig.from_toml(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"broken.toml: not valid TOML"):
        ModelConfig.from_toml(broken)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("wav2vec2-bert", "log-mel features"),
        ("w2v-bert", "log-mel features"),
        ("whisper", "encoder-decoder"),
        ("wavlmm", "did you mean 'wavlm'"),
        ("bert", "not a waveform encoder"),
    ],
)
def test_encoders_that_hear_no_waveform_are_refused(model_type: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(EncoderConfig(model_type=model_type))


def test_unknown_encoder_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'ssl.encoder.hiden_size'; did you mean 'hidden_size'"):
        build_encoder(EncoderConfig(overrides={"hiden_size": 8}))
    overrides = {**SMALL["ssl"]["encoder"], "hidden_size": 33}
    overrides.pop("model_type")
    with pytest.raises(ConfigError, match="transformers refuses"):
        build_encoder(EncoderConfig(overrides=overrides))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"hidden_size": 10**9}, "hidden_size is 1000000000, as in no model"),
        ({"intermediate_size": 10**6, "hidden_size": 96_000}, "it has .* parameters; at most"),
        ({"num_hidden_layers": 10**5}, "num_hidden_layers is 100000"),
        ({"hidden_size": -8}, "hidden_size is -8"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps is inf"),
        ({"conv_dim": [512] * 10**5}, r"conv_dim is \[512, 512"),
        ({"hidden_act": "none"}, "transformers refuses these values"),
    ],
)
def test_encoders_that_take_all_memory_are_refused(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(EncoderConfig(overrides=override))


def test_unknown_backbones_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'efficientnetv2_x' is not a timm network; some near"):
        build_backbone("efficientnetv2_x")
