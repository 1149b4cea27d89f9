"""Decides which requests are scored: a share of all, at most so many per second, bounded labels."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

__all__ = ["OTHER", "LabelValues", "RateLimits", "sampled"]

OTHER: Final = "other"
"""The value of a label beyond the number that is kept apart."""
_HASH_BYTES: Final = 8
_MAX_CHARACTERS: Final = 64


def sampled(request_id: object, share: float) -> bool:
    """Whether a request belongs to the sample. Everywhere and always the same for one identifier.

    A request is in the sample if the first 8 bytes of the BLAKE2b hash (digest size 8, no key) of
    its identifier, as a big-endian integer, are below `share` times 2**64.

    Args:
        request_id: Bytes, or what `str` gives as UTF-8. None is sampled at random.
        share: Share of requests in the sample, 0 to 1.
    """
    if request_id is None:
        return random.random() < share  # noqa: S311 - no secret
    raw = request_id if isinstance(request_id, bytes) else str(request_id).encode(errors="replace")
    digest = hashlib.blake2b(raw, digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest, "big") < share * 256**_HASH_BYTES


class RateLimits:
    """At most so many clips per second, in all and for each value of a label.

    A second without clips saves up no more than one second's clips. Not safe for several threads.

    Args:
        per_second: Clips per second, above 0.
        per_value: Clips per second with the same value of a label, above 0.
        clock: Gives the time in seconds.
    """

    def __init__(
        self, per_second: float, per_value: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rates = per_second, per_value
        self._clock = clock
        self._last: dict[tuple[str, str] | None, tuple[float, float]] = {}  # when, and clips left

    def exceeded(self, labels: Iterable[tuple[str, str]]) -> str | None:
        """Takes a clip with these labels in, or tells which limit is against it.

        Returns:
            None, "rate" or "label-rate".
        """
        now = self._clock()
        left: dict[tuple[str, str] | None, float] = {None: self._left(None, self._rates[0], now)}
        for label in labels:
            left[label] = self._left(label, self._rates[1], now)
        refusing = [key for key, clips in left.items() if clips < 1.0]
        if refusing:
            return "rate" if None in refusing else "label-rate"
        self._last.update({key: (now, clips - 1.0) for key, clips in left.items()})
        return None

    def _left(self, key: tuple[str, str] | None, rate: float, now: float) -> float:
        most = max(1.0, rate)
        when, clips = self._last.get(key, (-math.inf, 0.0))
        return min(most, clips + (now - when) * rate)


class LabelValues:
    """Bounds the values of labels: each label has at most so many, and one for all others.

    Args:
        names: Names of the labels.
        most: Values of each label that are kept apart: those that come first.
    """

    def __init__(self, names: Iterable[str], most: int) -> None:
        self._known: dict[str, dict[str, None]] = {name: {} for name in names}
        self._most = most

    def bounded(self, given: Mapping[str, object]) -> tuple[str, ...]:
        """The value of every label, in the order of their names: "" where none is given.

        Labels of other names are left out. Values are shortened to 64 characters.
        """
        return tuple(self._value(known, given.get(name)) for name, known in self._known.items())

    def _value(self, known: dict[str, None], value: object) -> str:
        if value is None or (text := str(value)[:_MAX_CHARACTERS]) == "":
            return ""
        text = text.encode(errors="replace").decode()  # half characters are no UTF-8
        if text not in known:
            if len(known) >= self._most:
                return OTHER
            known[text] = None
        return text
