"""Score an archive: ``python jobs/score.py archive=URL output=URL [weights=default|seeded|URL] ...``

The same through a job server: ``ray job submit --working-dir . -- python jobs/score.py ...``.
Options: ``conf/score.yaml`` and ``docs/reference/options.md``. Research software, not a medical device.
"""

import hydra
from omegaconf import DictConfig

from cxr_ray.pipeline.launch import launch, run_job
from cxr_ray.pipeline.options import ScoreOptions


@hydra.main(version_base="1.3", config_path="../conf", config_name="score")
def main(config: DictConfig) -> None:
    from cxr_ray.pipeline.score_job import run_score

    run_job(config, ScoreOptions, run_score)


if __name__ == "__main__":
    launch(main)
