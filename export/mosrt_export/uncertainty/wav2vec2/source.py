"""Loads transformers models, and the facts about them in the files beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from mosrt_export.errors import CheckpointError
from mosrt_export.limits import build_refusals, check_parameters, check_settings

__all__ = ["Head", "Source", "load_source"]

Head = Literal["ctc", "pretraining"]

_MODEL_TYPES: Final = ("wav2vec2", "hubert")
_SPECIAL_TOKENS: Final = ("<s>", "</s>", "<unk>")
# The vocabulary of wav2vec2-base-960h and kin: blank, <s>, </s>, <unk>, |, letters.
_LETTERS_VOCABULARY: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A transformers model in evaluation mode.

    Attributes:
        name: Name or directory that it was loaded from.
        model: The model with its head, or without one if it has none.
        base: The model without its head.
        head: The CTC head, or None.
        normalised: Whether its input waveforms have zero mean and unit variance.
        dropped_columns: Columns of the logits for special tokens, which are not used.
    """

    name: str
    model: Any
    base: Any
    head: Any
    normalised: bool
    dropped_columns: tuple[int, ...] = ()

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.model.config


def load_source(name: str, head: Head) -> Source:
    """Loads a model, a name on Hugging Face or a directory, in float32 with eager attention.

    `head` is "ctc" for the CTC head, or the hidden units if there is none, or "pretraining" for
    wav2vec 2.0's contrastive head.

    Raises:
        CheckpointError: The model cannot be loaded, or has another architecture.
    """
    import transformers  # noqa: PLC0415 - seconds to import

    def wrong(text: str) -> CheckpointError:
        return CheckpointError(f"{name}: {text}")

    with build_refusals("not a transformers model", wrong):
        # Nothing is imported from the model's files, and nobody is asked whether to.
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    if config.model_type not in _MODEL_TYPES:
        raise CheckpointError(
            f"{name}: a model of type {config.model_type!r}; this command supports "
            f"{' and '.join(_MODEL_TYPES)}"
        )
    if getattr(config, "add_adapter", False):
        raise CheckpointError(f"{name}: has an adapter, which this command does not support")
    kinds = config.architectures or []
    has_ctc = any(kind.endswith("ForCTC") for kind in kinds)
    if head == "pretraining":
        if not any(kind == "Wav2Vec2ForPreTraining" for kind in kinds):
            raise CheckpointError(
                f"{name}: has no pretraining head ({', '.join(kinds) or 'no architecture named'}); "
                "use --head ctc, or a checkpoint that was not fine-tuned, such as "
                "facebook/wav2vec2-base"
            )
        loader = transformers.AutoModelForPreTraining
    else:
        loader = transformers.AutoModelForCTC if has_ctc else transformers.AutoModel
    with build_refusals("cannot be loaded", wrong):
        check_settings(config.to_dict())
        check_parameters(lambda: loader.from_config(config, trust_remote_code=False))
        model = loader.from_pretrained(
            name, attn_implementation="eager", trust_remote_code=False, weights_only=True
        )
    model = model.float().eval()
    is_ctc = head == "ctc" and has_ctc
    return Source(
        name=name,
        model=model,
        base=model.base_model,
        head=model.lm_head if is_ctc else None,
        normalised=_normalised(name, config),
        dropped_columns=_special_columns(name, config.vocab_size) if is_ctc else (),
    )


def _normalised(name: str, config: Any) -> bool:
    """Reads it from the feature extractor's file; without one, layer-norm models need it."""
    settings = _side_file(name, "preprocessor_config.json")
    if settings is None:
        return str(config.feat_extract_norm) == "layer"
    return bool(settings.get("do_normalize", True))


def _special_columns(name: str, n_columns: int) -> tuple[int, ...]:
    """Columns of <s>, </s> and <unk>, which the published code drops; it keeps blank."""
    vocabulary = _side_file(name, "vocab.json")
    if vocabulary is None:
        return (1, 2, 3) if n_columns == _LETTERS_VOCABULARY else ()
    found = (vocabulary.get(token) for token in _SPECIAL_TOKENS)
    return tuple(sorted(i for i in found if isinstance(i, int) and 0 <= i < n_columns))


def _side_file(name: str, file: str) -> Mapping[str, Any] | None:
    """A JSON file beside the weights, or None if there is none."""
    from transformers.utils import cached_file  # noqa: PLC0415 - seconds to import

    path = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if path is None:
        return None
    loaded = json.loads(Path(path).read_text(encoding="utf-8"))
    return loaded if isinstance(loaded, Mapping) else None
