"""Train CXR-Net: ``python jobs/train.py task=segmentation|classification|assemble shards=URL output=URL ...``

Options: ``conf/train.yaml``, ``conf/recipe`` and ``docs/reference/train-options.md``; how to:
``docs/how-to/train-on-your-own-data.md``.
"""

import hydra
from omegaconf import DictConfig

from cxr_ray.pipeline.launch import launch, run_guarded


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(config: DictConfig) -> None:
    from training.job import run_training
    from training.options import train_options

    run_guarded(lambda: run_training(train_options(config)))


if __name__ == "__main__":
    launch(main)
