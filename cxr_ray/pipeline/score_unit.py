"""From the unit table to scores: the network over every ready row, in table order.

Pure Python, no Ray. The scorer is anything with ``score(pixels_BHW) -> Scores``; the benchmark passes one
that costs nothing.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from cxr_ray.calibration import Readout
from cxr_ray.pipeline.decode_unit import Report, no_report
from cxr_ray.pipeline.score_table import SCORED_UNIT_SCHEMA, UNCALIBRATED, score_values
from cxr_ray.preprocess import COLUMNS, ROWS
from cxr_ray.shards import QUARANTINED, READY, iter_pixels, table_of

DONE = "done"

#: Images handed to the scorer at a time: a few compute batches. Only bounds memory and paces progress;
#: the scorer itself cuts them into its fixed compute batch, so the figures never change a value.
_LEAST_CHUNK = 8
_BATCHES_PER_CHUNK = 4


class ScoresPixels(Protocol):
    """What the pipeline needs of a scorer."""

    @property
    def compute_batch(self) -> int:
        """Images per network call."""

    def score(self, pixels_BHW: np.ndarray) -> Any:
        """``Scores`` of uint8 pixels [B, 300, 340]."""


def score_unit(
    unit: pa.Table,
    scorer: ScoresPixels,
    *,
    min_lung_fraction: float,
    readout: Readout = UNCALIBRATED,
    report: Report = no_report,
) -> pa.Table:
    """Scored unit (``SCORED_UNIT_SCHEMA``): every row of ``unit`` in order, quarantined ones unchanged."""
    rows = unit.drop_columns(["pixels"]).to_pylist()
    ready: list[tuple[int, memoryview]] = []
    for index, pixels in enumerate(iter_pixels(unit)):
        if rows[index]["status"] == READY and pixels is not None:
            ready.append((index, pixels))
    report(DONE, len(rows) - len(ready))
    report(QUARANTINED, len(rows) - len(ready))
    size = max(_LEAST_CHUNK, _BATCHES_PER_CHUNK * scorer.compute_batch)
    for start in range(0, len(ready), size):
        chunk = ready[start : start + size]
        pixels_BHW = np.stack([np.frombuffer(p, np.uint8).reshape(ROWS, COLUMNS) for _, p in chunk])
        scores = scorer.score(pixels_BHW)
        for position, (index, _) in enumerate(chunk):
            values = score_values(scores, position, min_lung_fraction=min_lung_fraction, readout=readout)
            rows[index]["flags"] = sorted({*rows[index]["flags"], *values.pop("add_flags")})
            rows[index].update(values)
        report(DONE, len(chunk))
        report(QUARANTINED, sum(rows[index]["status"] == QUARANTINED for index, _ in chunk))
    return table_of(rows, SCORED_UNIT_SCHEMA)
