"""Report on a training: ``python jobs/report.py training=URL output=FILE.html [segmentation=URL] ...``

One self-contained HTML page. Options: ``conf/report.yaml``; how to read it:
``docs/how-to/read-a-training-report.md``. Research software, not a medical device.
"""

import hydra
from omegaconf import DictConfig

from cxr_ray.pipeline.launch import launch, run_guarded


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def main(config: DictConfig) -> None:
    from training.report.options import report_options
    from training.report.writing import run_report

    run_guarded(lambda: run_report(report_options(config)))


if __name__ == "__main__":
    launch(main)
