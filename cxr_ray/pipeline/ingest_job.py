"""``jobs/ingest.py``: archive -> shards of preprocessed pixels and facts."""

from __future__ import annotations

from cxr_ray.errors import UsageError
from cxr_ray.pipeline import cluster
from cxr_ray.pipeline.code_version import code_version
from cxr_ray.pipeline.identity import KIND_SHARDS, Identity, check_identity
from cxr_ray.pipeline.job import Job, open_job, preprocessing_id, report_end
from cxr_ray.pipeline.options import IngestOptions
from cxr_ray.pipeline.parts import PartFooter
from cxr_ray.pipeline.resources import share
from cxr_ray.pipeline.screening import Screening, Work
from cxr_ray.shards import SHARD_SCHEMA_VERSION


def run_ingest(options: IngestOptions) -> int:
    """Run the ingest job; returns its exit code (0, or 3 with too many quarantined).

    Raises:
        UsageError: exit code 2.
        CxrRayError: exit code 1.
    """
    job = open_job(options, KIND_SHARDS)
    if job.shards is not None:
        raise UsageError(
            f"archive {job.archive.url} holds shards already; give the images, or score these shards"
        )
    identity = shard_identity(options, job)
    check_identity(job.existing, identity, job.output.storage.url)
    with cluster.machines(options.ray_address, dry_run=options.dry_run, gpus=0) as machines:
        resources = share(
            cpus=machines.cpus,
            gpus=machines.gpus,
            local=machines.local,
            scoring=False,
            actors=None,
            decode_tasks=options.decode_tasks,
        )
        footer = PartFooter(
            identity=identity.hash,
            unit_id="",
            generation=0,
            attempt="",
            code_version=code_version(),
            device="cpu",
            compute_batch=None,
            threads=None,
            dtype=None,
            weights=None,
            calibration_id=None,
            decode_policy=options.decode_policy,
            fencing=options.fencing,
        )
        work = Work(identity=identity, settings=job.settings, footer=footer, resources=resources)
        screening = Screening(
            options=options,
            archive=job.archive,
            output=job.output,
            plan_store=job.plan_store,
            work=work,
            from_shards=False,
            say=job.say,
            ray_ready=not machines.local,
        )
        return report_end(screening, job)


def shard_identity(options: IngestOptions, job: Job) -> Identity:
    """Everything that decides the bytes of a shard row."""
    return Identity(
        kind=KIND_SHARDS,
        document={
            "schema_version": SHARD_SCHEMA_VERSION,
            "preprocessing": preprocessing_id(options.decode_policy),
            "privacy": job.settings.privacy.document(),
        },
    )
