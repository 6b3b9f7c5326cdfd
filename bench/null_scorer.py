"""The scoring job with a scorer that costs nothing: what is left is the pipeline.

    python bench/null_scorer.py archive=URL output=URL [any option of jobs/score.py]

The environment variable NULL_SCORER_SECONDS makes it sleep so long per image, which costs no CPU. Its scores mean
nothing.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[1]))

from cxr_ray.pipeline.launch import run_job
from cxr_ray.pipeline.options import ScoreOptions
from cxr_ray.preprocess import COLUMNS, ROWS


class NullScorer:
    """The same plausible maps for every image."""

    compute_batch = 16

    def __init__(self, seconds_per_image: float = 0.0) -> None:
        self.seconds_per_image = seconds_per_image
        rows, columns = np.mgrid[0:75, 0:85]
        evidence = 20 * np.sin(rows / 9) * np.cos(columns / 7) + rows / 10
        self.levels = np.rint((evidence - evidence.min()) / np.ptp(evidence) * 255).astype(np.uint8)
        mask = np.zeros((ROWS, COLUMNS), np.uint8)
        cv2.ellipse(mask, (105, 150), (55, 110), 0, 0, 360, 1, -1)
        cv2.ellipse(mask, (235, 150), (55, 110), 0, 0, 360, 1, -1)
        self.bits = np.packbits(mask)

    def score(self, pixels_BHW: np.ndarray) -> Any:
        from cxr_ray.scorer import Scores

        batch = len(pixels_BHW)
        time.sleep(self.seconds_per_image * batch)
        half = np.full(batch, 0.5, np.float32)
        return Scores(
            p_covid=half,
            logit=np.zeros(batch, np.float32),
            path_logits=np.zeros((batch, 6), np.float32),
            p_std=half,
            class_probs=np.full((batch, 2), 0.5, np.float32),
            lung_fraction=half,
            lung_probability=np.empty((batch, 0, 0), np.float32),
            evidence_map=np.empty((batch, 0, 0), np.float32),
            heat_map=np.broadcast_to(self.levels, (batch, *self.levels.shape)),
            heat_lo=np.zeros(batch, np.float32),
            heat_hi=np.full(batch, 30, np.float32),
            lung_mask=np.empty((batch, 0, 0), bool),
            lung_bits=np.broadcast_to(self.bits, (batch, *self.bits.shape)),
            has_lungs=np.ones(batch, bool),
        )


def run_null_score(options: ScoreOptions) -> int:
    """``run_score`` without the network."""
    from cxr_ray.pipeline.score_job import run_score

    seconds = float(os.environ.get("NULL_SCORER_SECONDS", "0"))
    return run_score(options, scorer=partial(NullScorer, seconds_per_image=seconds))


if __name__ == "__main__":
    run_job(OmegaConf.from_dotlist(["weights=seeded", *sys.argv[1:]]), ScoreOptions, run_null_score)
