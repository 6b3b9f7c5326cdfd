"""Audit a bundle: ``python jobs/audit.py weights=URL shards=URL manifest.path=FILE split=NAME output=URL ...``

Scores a labelled split and counts it honestly: by source, view and age, with the lungs hidden, against its own paths
and against another bundle (``compare=URL``). Every scoring of the test split is logged before it begins.
Options: ``conf/audit.yaml``. Research software, not a medical device.
"""

import hydra
from omegaconf import DictConfig

from cxr_ray.pipeline.launch import launch, run_guarded


@hydra.main(version_base="1.3", config_path="../conf", config_name="audit")
def main(config: DictConfig) -> None:
    from training.audit.job import run_audit
    from training.audit.options import audit_options

    run_guarded(lambda: run_audit(audit_options(config)))


if __name__ == "__main__":
    launch(main)
