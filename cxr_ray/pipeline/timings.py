"""Where the time of a run went: median and 95th percentile per stage, slowest units, share of each node.

Kept in a few bytes per unit, so that the driver stays small however many there are.
"""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxr_ray.pipeline.parts import PartRecord
from cxr_ray.pipeline.unit_rows import Journey

_SLOWEST = 10


@dataclass
class _Node:
    units: int = 0
    images: int = 0
    seconds: float = 0.0


@dataclass
class Timings:
    """Timings of the units published by this attempt."""

    units: int = 0
    images: int = 0
    retries: int = 0
    _seconds: dict[str, array[float]] = field(default_factory=dict)
    _slowest: list[tuple[float, str, dict[str, float], int, str | None]] = field(default_factory=list)
    _nodes: dict[str, _Node] = field(default_factory=dict)
    _micro_batches: set[int] = field(default_factory=set)

    def add(self, record: PartRecord, journey: Journey) -> None:
        """A unit that was published."""
        self.units += 1
        self.images += record.images
        self.retries += journey.retries
        if journey.micro_batch is not None:
            self._micro_batches.add(journey.micro_batch)
        for stage, seconds in journey.seconds.items():
            self._seconds.setdefault(stage, array("f")).append(seconds)
        total = sum(journey.seconds.values())
        heapq.heappush(self._slowest, (total, record.unit_id, journey.seconds, record.images, journey.node))
        if len(self._slowest) > _SLOWEST:
            heapq.heappop(self._slowest)
        node = self._nodes.setdefault(journey.node or "?", _Node())
        node.units += 1
        node.images += record.images
        node.seconds += total

    def summary(self) -> dict[str, Any]:
        """For ``runs/<attempt>.json``; seconds are per unit, and stages overlap in time."""
        return {
            "units": self.units,
            "images": self.images,
            "retries": self.retries,
            "micro_batches": sorted(self._micro_batches),
            "stages": {stage: _spread(values) for stage, values in self._seconds.items()},
            "slowest_units": [
                {
                    "unit_id": unit_id,
                    "images": images,
                    "node": node,
                    "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
                }
                for _, unit_id, seconds, images, node in sorted(self._slowest, reverse=True)
            ],
            "nodes": {
                name: {"units": node.units, "images": node.images, "seconds": round(node.seconds, 3)}
                for name, node in sorted(self._nodes.items())
            },
        }


def _spread(values: array[float]) -> dict[str, float]:
    seconds = np.asarray(values, np.float64)
    return {
        "median": round(float(np.median(seconds)), 3),
        "p95": round(float(np.percentile(seconds, 95)), 3),
        "total": round(float(seconds.sum()), 3),
    }
