"""Every draw of a training run, derived from what it is for and never from when or where it happens.

A draw belongs to (seed, purpose, epoch, picture), so that a batch is the same in one process or eight, and a run that
was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive(seed: int, *parts: str | int) -> int:
    """A 63-bit number that depends on every part: the seed of one draw."""
    text = "|".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def random_state(seed: int, *parts: str | int) -> np.random.RandomState:
    """A generator for one purpose. The legacy kind, because the original's augmentation is defined on its stream."""
    return np.random.RandomState(derive(seed, *parts) % 2**32)


def epoch_order(count: int, seed: int, *parts: str | int, shuffle: bool = True) -> NDArray[np.int64]:
    """In which order an epoch visits ``count`` pictures."""
    order = np.arange(count)
    return random_state(seed, *parts).permutation(order) if shuffle else order
