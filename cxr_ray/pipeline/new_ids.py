"""Which listed ids are new: compared as 16-byte binary, in memory that ten million of them can afford.

Per listed id 21 bytes are held (two words, a position, a mark); the ids planned already pass by in chunks.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_BUCKETS = 64


def first_unknown(
    ids: Iterable[np.ndarray], count: int, known: Iterable[np.ndarray]
) -> tuple[np.ndarray, int]:
    """Mark the first of every id that is not known.

    Args:
        ids: ``count`` ids in chunks (dtype ``S16``), in listing order.
        known: ids to leave out, in chunks of any order.

    Returns:
        A mark per listed id (bool [count]), and how many repeat an earlier one.
    """
    high, low = np.empty(count, np.uint64), np.empty(count, np.uint64)
    filled = 0
    for chunk in ids:
        high[filled : filled + len(chunk)], low[filled : filled + len(chunk)] = _words(chunk)
        filled += len(chunk)
    assert filled == count
    order = _sorted_positions(high, low)
    high = high[order]  # one after the other: both at once would be a third of the peak
    low = low[order]
    marks = np.ones(count, bool)
    repeats = order[1:][(high[1:] == high[:-1]) & (low[1:] == low[:-1])]
    marks[repeats] = False
    for chunk in known:
        marks[order[_found(high, low, *_words(chunk))]] = False
    return marks, len(repeats)


def _words(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each id as two numbers. Their order is not that of the bytes, but it is an order."""
    words = np.ascontiguousarray(ids).view(np.uint64).reshape(-1, 2)
    return words[:, 0], words[:, 1]


def _sorted_positions(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Positions in ascending order of (high, low), equal ones in ascending order of position.

    Sorted bucket by bucket, since a sort of everything at once takes several times the memory of the result.
    """
    order = np.empty(len(high), np.uint32 if len(high) < 2**32 else np.uint64)
    bucket = np.empty(len(high), np.uint8)
    for start in range(0, len(high), 1 << 20):
        bucket[start : start + (1 << 20)] = high[start : start + (1 << 20)] >> np.uint64(58)
    filled = 0
    for number in range(_BUCKETS):
        positions = np.flatnonzero(bucket == number)
        order[filled : filled + len(positions)] = positions[np.lexsort((low[positions], high[positions]))]
        filled += len(positions)
    return order


def _found(high: np.ndarray, low: np.ndarray, known_high: np.ndarray, known_low: np.ndarray) -> np.ndarray:
    """Places in the sorted (high, low) of the known ids that are there: the first place of each."""
    ascending = np.argsort(known_high)  # neighbours are looked for in neighbouring memory
    known_high, known_low = known_high[ascending], known_low[ascending]
    place = np.searchsorted(high, known_high)
    found = []
    while len(place):  # once, unless two ids agree in their first eight bytes
        within = place < len(high)
        place, known_high, known_low = place[within], known_high[within], known_low[within]
        near = high[place] == known_high
        place, known_high, known_low = place[near], known_high[near], known_low[near]
        same = low[place] == known_low
        found.append(place[same])
        place, known_high, known_low = place[~same] + 1, known_high[~same], known_low[~same]
    return np.concatenate(found) if found else np.empty(0, np.int64)
