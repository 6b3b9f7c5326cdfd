"""The scoring job with ``MadeScorer``: values from the pixels, no network, so that tests of the pipeline are quick.

python tests/end_to_end/cheap_score.py archive=URL output=URL [options of jobs/score.py]
"""

from __future__ import annotations

import sys

from made_output import MadeScorer
from omegaconf import OmegaConf

from cxr_ray.pipeline.launch import run_job
from cxr_ray.pipeline.options import ScoreOptions


def run_cheap_score(options: ScoreOptions) -> int:
    """``run_score`` without the network."""
    from cxr_ray.pipeline.score_job import run_score

    return run_score(options, scorer=MadeScorer)


if __name__ == "__main__":
    run_job(OmegaConf.from_dotlist(["weights=seeded", *sys.argv[1:]]), ScoreOptions, run_cheap_score)
