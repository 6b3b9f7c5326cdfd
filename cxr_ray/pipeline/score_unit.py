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


class UnitInScoring:
    """One unit on its way through a scorer, in three steps, of which only ``score`` needs the scorer.

    So the next unit can be prepared, and the last one packed, while another is scored.
    """

    def __init__(self, unit: pa.Table, report: Report = no_report) -> None:
        self.report = report
        self.rows = unit.drop_columns(["pixels"]).to_pylist()
        self.ready: list[tuple[int, memoryview]] = []
        self.scored: list[tuple[list[int], Any]] = []
        for index, pixels in enumerate(iter_pixels(unit)):
            if self.rows[index]["status"] == READY and pixels is not None:
                self.ready.append((index, pixels))
        unscored = len(self.rows) - len(self.ready)
        report(DONE, unscored)
        report(QUARANTINED, unscored)

    def score(self, scorer: ScoresPixels) -> None:
        """The network over every ready row, in table order. Nothing else, so that a GPU waits for nothing."""
        size = max(_LEAST_CHUNK, _BATCHES_PER_CHUNK * scorer.compute_batch)
        for start in range(0, len(self.ready), size):
            chunk = self.ready[start : start + size]
            pixels_BHW = np.stack([np.frombuffer(p, np.uint8).reshape(ROWS, COLUMNS) for _, p in chunk])
            self.scored.append(([index for index, _ in chunk], scorer.score(pixels_BHW)))
            self.report(DONE, len(chunk))

    def packed(self, *, min_lung_fraction: float, readout: Readout = UNCALIBRATED) -> pa.Table:
        """Scored unit (``SCORED_UNIT_SCHEMA``): every row in order, quarantined ones unchanged."""
        rows = self.rows
        for indices, scores in self.scored:
            for position, index in enumerate(indices):
                values = score_values(scores, position, min_lung_fraction=min_lung_fraction, readout=readout)
                rows[index]["flags"] = sorted({*rows[index]["flags"], *values.pop("add_flags")})
                rows[index].update(values)
            self.report(QUARANTINED, sum(rows[index]["status"] == QUARANTINED for index in indices))
        return table_of(self.rows, SCORED_UNIT_SCHEMA)


def score_unit(
    unit: pa.Table,
    scorer: ScoresPixels,
    *,
    min_lung_fraction: float,
    readout: Readout = UNCALIBRATED,
    report: Report = no_report,
) -> pa.Table:
    """The three steps of ``UnitInScoring`` in one."""
    scoring = UnitInScoring(unit, report)
    scoring.score(scorer)
    return scoring.packed(min_lung_fraction=min_lung_fraction, readout=readout)
