"""CPU features: which narrow arithmetic this processor does fast."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["CpuFeatures"]

_CPUINFO: Final = Path("/proc/cpuinfo")
_ARCHITECTURES: Final = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
# By architecture, flags as Linux names them, best first.
_INT8_DOT: Final[Mapping[str, tuple[str, ...]]] = {
    "x86_64": ("amx_int8", "avx512_vnni", "avx_vnni"),
    "aarch64": ("i8mm", "asimddp"),
}
_BF16: Final[Mapping[str, tuple[str, ...]]] = {"x86_64": ("amx_bf16", "avx512_bf16")}


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFeatures:
    """A processor as far as the choice of a precision depends on it.

    Attributes:
        architecture: "x86_64", "aarch64", or another as the system names it.
        model: The maker's name for it, empty where Linux gives none.
        flags: Extensions as /proc/cpuinfo names them; empty where there is no such file.
    """

    architecture: str
    model: str = ""
    flags: frozenset[str] = frozenset()

    @classmethod
    def read(cls, cpuinfo: Path = _CPUINFO, architecture: str | None = None) -> CpuFeatures:
        """This machine's processor.

        Args:
            cpuinfo: Linux's description of the processors, of which the first counts. Without
                it, on macOS and Windows, the processor has no known flags.
            architecture: As the system names it, by default this machine's.
        """
        machine = (architecture or platform.machine()).lower()
        try:
            text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        pairs = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
        fields = {name.strip(): value.strip() for name, _, value in pairs}
        return cls(
            architecture=_ARCHITECTURES.get(machine, machine),
            model=fields.get("model name", ""),
            flags=frozenset((fields.get("flags") or fields.get("Features", "")).split()),
        )

    def to_dict(self) -> dict[str, Any]:
        """The processor as JSON-ready values."""
        return {
            "architecture": self.architecture,
            "model": self.model,
            "flags": sorted(self.flags),
        }

    @property
    def int8_dot(self) -> str | None:
        """The flag of the best dot products of 8-bit integers, or None if there are none."""
        return self._first(_INT8_DOT)

    @property
    def bf16(self) -> str | None:
        """The flag of the best products of bfloat16 numbers, or None if there are none."""
        return self._first(_BF16)

    def _first(self, wanted: Mapping[str, tuple[str, ...]]) -> str | None:
        names = wanted.get(self.architecture, ())
        return next((name for name in names if name in self.flags), None)
