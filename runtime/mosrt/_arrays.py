"""Array types that the packages share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "BoolArray", "Complex64Array", "Float32Array", "FloatArray", "IntArray"]

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
Complex64Array = npt.NDArray[np.complex64]
Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
