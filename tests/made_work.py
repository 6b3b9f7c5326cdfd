"""Work for other processes in tests: a module of its own, so that they start without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def adding(amount: int) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]:
    """A function that sums up each frame and adds ``amount``."""
    return lambda pixels: {"sum": pixels.sum(axis=(1, 2)) + amount}
