"""Which ids are new: against a Python set, with ids made to collide in their halves."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cxr_ray.pipeline.new_ids import first_unknown


def made_ids(source: random.Random, count: int, halves: int) -> list[bytes]:
    """Ids whose two halves come from a few values each, zero bytes and all; so they collide often."""
    few = [source.randbytes(8) for _ in range(halves - 2)] + [bytes(8), b"\xff" * 8]
    return [source.choice(few) + source.choice(few) for _ in range(count)]


def chunks(ids: list[bytes], size: int) -> list[np.ndarray]:
    return [np.array(ids[start : start + size], "S16") for start in range(0, len(ids), size)]


@pytest.mark.parametrize("seed", range(20))
def test_as_a_set_would_have_it(seed: int) -> None:
    source = random.Random(seed)
    halves = source.choice([3, 10, 1000])
    ids = made_ids(source, source.choice([0, 1, 50, 3000]), halves)
    known = made_ids(source, source.choice([0, 1, 40, 3000]), halves) + source.sample(ids, len(ids) // 3)
    marks, repeated = first_unknown(chunks(ids, 700), len(ids), chunks(known, 333))
    seen, expected = set(known), []
    for one in ids:
        expected.append(one not in seen)
        seen.add(one)
    assert marks.tolist() == expected
    assert repeated == len(ids) - len(set(ids))
