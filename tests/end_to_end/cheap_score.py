"""The scoring job with ``MadeScorer``: values from the pixels, no network, so that tests of the pipeline are quick.

python tests/end_to_end/cheap_score.py archive=URL output=URL [options of jobs/score.py]

The environment variable CHEAP_SCORE_SECONDS makes it slower by so much per image.
"""

from __future__ import annotations

import os
import sys
from functools import partial

from made_output import MadeScorer
from omegaconf import OmegaConf

from cxr_ray.pipeline.launch import run_job
from cxr_ray.pipeline.options import ScoreOptions


def run_cheap_score(options: ScoreOptions) -> int:
    """``run_score`` without the network."""
    from cxr_ray.pipeline.score_job import run_score

    seconds = float(os.environ.get("CHEAP_SCORE_SECONDS", "0"))
    return run_score(options, scorer=partial(MadeScorer, seconds_per_image=seconds))


if __name__ == "__main__":
    run_job(OmegaConf.from_dotlist(["weights=seeded", *sys.argv[1:]]), ScoreOptions, run_cheap_score)
