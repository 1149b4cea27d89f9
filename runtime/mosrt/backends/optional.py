"""Engines that need packages of their own: the names of their providers.

Apart from the engines, so that a start imports only the one that it runs.
"""

from __future__ import annotations

from typing import Final

__all__ = ["OPENVINO", "TENSORRT"]

OPENVINO: Final = ("openvino", "openvino-bf16", "openvino-fp32")
TENSORRT: Final = ("tensorrt",)
