"""Emits scores as events of OpenTelemetry, through its API only.

All names that OpenTelemetry gives are here. Those for generative AI are still in development:
semantic conventions for generative AI, `gen_ai.evaluation.result`, as of November 2026. Without an
SDK that the program configures, the API does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context
from opentelemetry._logs import LogRecord, SeverityNumber, get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mosrt.score import Score

__all__ = ["Context", "caller_context", "emit_failure", "emit_score"]

Context = context.Context

EVENT: Final = "gen_ai.evaluation.result"
NAME: Final = "gen_ai.evaluation.name"
VALUE: Final = "gen_ai.evaluation.score.value"
EXPLANATION: Final = "gen_ai.evaluation.explanation"
RESPONSE_ID: Final = "gen_ai.response.id"
ERROR_TYPE: Final = "error.type"
# What the conventions have no name for.
MODEL: Final = "mosrt.model"
DIGEST: Final = "mosrt.model.digest"
DOMAIN: Final = "mosrt.domain"
FLAGS: Final = "mosrt.flags"
LABEL: Final = "mosrt.label."

_EVALUATION: Final = "MOS"


def caller_context() -> Context:
    """The context of the caller, with its span."""
    return context.get_current()


def emit_score(
    score: Score, *, digest: str, request_id: str | None, labels: Mapping[str, str], caller: Context
) -> None:
    """Emits a score as an event of the caller's span."""
    attributes: dict[str, Any] = {VALUE: score.mos, DOMAIN: score.domain}
    if score.flags:
        attributes[FLAGS] = list(score.flags)
        attributes[EXPLANATION] = f"flags: {', '.join(score.flags)}"
    _emit(attributes, score.model, digest, request_id, labels, caller)


def emit_failure(
    reason: str,
    *,
    model: str,
    digest: str,
    request_id: str | None,
    labels: Mapping[str, str],
    caller: Context,
) -> None:
    """Emits that a clip got no score: a flag, or the name of an exception."""
    _emit({ERROR_TYPE: reason}, model, digest, request_id, labels, caller)


def _emit(
    attributes: dict[str, Any],
    model: str,
    digest: str,
    request_id: str | None,
    labels: Mapping[str, str],
    caller: Context,
) -> None:
    attributes |= {NAME: _EVALUATION, MODEL: model, DIGEST: digest}
    attributes |= {f"{LABEL}{name}": value for name, value in labels.items() if value}
    if request_id is not None:
        attributes[RESPONSE_ID] = request_id
    severity = SeverityNumber.WARN if ERROR_TYPE in attributes else SeverityNumber.INFO
    get_logger("mosrt").emit(
        LogRecord(event_name=EVENT, context=caller, severity_number=severity, attributes=attributes)
    )
