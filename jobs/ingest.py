"""Preprocess an archive into shards: ``python jobs/ingest.py archive=URL output=URL ...``

The shards hold the 300 x 340 frames and the header facts; ``jobs/score.py archive=SHARDS`` and training
read them. Options: ``conf/ingest.yaml`` and ``docs/reference/options.md``.
"""

import hydra
from omegaconf import DictConfig

from cxr_ray.pipeline.launch import launch, run_job
from cxr_ray.pipeline.options import IngestOptions


@hydra.main(version_base="1.3", config_path="../conf", config_name="ingest")
def main(config: DictConfig) -> None:
    from cxr_ray.pipeline.ingest_job import run_ingest

    run_job(config, IngestOptions, run_ingest)


if __name__ == "__main__":
    launch(main)
