"""The scoring job with a scorer that misbehaves on bright films.

python tests/end_to_end/faulty_score.py hang|die archive=URL output=URL [options of jobs/score.py]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import numpy as np
from made_output import MadeScorer
from omegaconf import OmegaConf

from cxr_ray.pipeline.launch import run_job
from cxr_ray.pipeline.options import ScoreOptions

#: Mean grey level (equalised) above which a frame is a victim; others lie near 128.
BRIGHT = 200


class Hanging(MadeScorer):
    """Never returns from a bright frame."""

    def score(self, pixels_BHW: np.ndarray) -> Any:
        if pixels_BHW.mean(axis=(1, 2)).max() > BRIGHT:
            time.sleep(3600)
        return super().score(pixels_BHW)


class Dying(MadeScorer):
    """Kills its process on a bright frame, as the kernel does when memory runs out."""

    def score(self, pixels_BHW: np.ndarray) -> Any:
        if pixels_BHW.mean(axis=(1, 2)).max() > BRIGHT:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(pixels_BHW)


SCORERS = {"hang": Hanging, "die": Dying}


def run_faulty_score(options: ScoreOptions) -> int:
    """``run_score`` with the scorer named first on the command line."""
    from cxr_ray.pipeline.score_job import run_score

    return run_score(options, scorer=SCORERS[sys.argv[1]])


if __name__ == "__main__":
    run_job(OmegaConf.from_dotlist(["weights=seeded", *sys.argv[2:]]), ScoreOptions, run_faulty_score)
