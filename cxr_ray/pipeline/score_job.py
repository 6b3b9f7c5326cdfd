"""``jobs/score.py``: archive or shards -> score table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cxr_ray.archives.storage import explain, open_storage
from cxr_ray.calibration import Calibration
from cxr_ray.errors import BundleError, UsageError
from cxr_ray.pipeline import cluster
from cxr_ray.pipeline.code_version import code_version
from cxr_ray.pipeline.identity import KIND_SCORES, Identity, check_identity
from cxr_ray.pipeline.job import Job, open_job, preprocessing_id, report_end
from cxr_ray.pipeline.options import ScoreOptions
from cxr_ray.pipeline.parts import PartFooter
from cxr_ray.pipeline.resources import Resources, local_gpus, share
from cxr_ray.pipeline.score_table import SCORE_SCHEMA_VERSION
from cxr_ray.pipeline.screening import Screening, Work
from cxr_ray.weights import Bundle, bundle_from_bytes, bundle_to_bytes, load_bundle
from cxr_ray.weights.files import FILES, META_FILE, unpack
from cxr_ray.weights.storage import DEFAULT, SEEDED


@dataclass(frozen=True, kw_only=True)
class ScorerFactory:
    """Builds the scorer inside an actor, from bytes: no worker needs to see the driver's files."""

    bundle: bytes
    device: str
    dtype: str
    variant: str | None
    mask_style: str | None
    compute_batch: int
    threads: int

    def __call__(self) -> Any:
        from cxr_ray.scorer import Scorer

        return Scorer(
            bundle_from_bytes(self.bundle),
            device=self.device,
            dtype=self.dtype,
            variant=self.variant,  # type: ignore[arg-type]  # the scorer checks it
            mask_style=self.mask_style,
            compute_batch=self.compute_batch,
            threads=self.threads,
            full_maps=False,
        )


def run_score(options: ScoreOptions, scorer: Callable[[], Any] | None = None) -> int:
    """Run the scoring job; returns its exit code (0, or 3 with too many quarantined).

    Args:
        options: see ``ScoreOptions``.
        scorer: replaces the network, for benchmarks of the pipeline alone. Picklable factory.

    Raises:
        UsageError: exit code 2.
        CxrRayError: exit code 1.
    """
    from cxr_ray.scorer import check_dtype

    check_score_options(options)
    bundle = read_bundle(options)
    if options.mask_style is not None and options.mask_style not in bundle.meta.mask_styles:
        raise UsageError(
            f"mask_style={options.mask_style} is not in the bundle; it has {', '.join(bundle.meta.mask_styles)}"
        )
    job = open_job(options, KIND_SCORES)
    with cluster.machines(options.ray_address, dry_run=options.dry_run, gpus=local_gpus()) as machines:
        resources = share(
            cpus=machines.cpus,
            gpus=machines.gpus,
            local=machines.local,
            scoring=True,
            actors=options.actors,
            decode_tasks=options.decode_tasks,
            min_actors=options.min_actors,
        )
        check_dtype(options.dtype, resources.device)
        shape = compute_shape(options, job.existing, resources)
        identity = score_identity(options, job, bundle, shape)
        check_identity(job.existing, identity, job.output.storage.url)
        packed = bundle_to_bytes(bundle)
        calibration = valid_calibration(options, bundle)
        factory = scorer or ScorerFactory(
            bundle=packed,
            device=resources.device,
            dtype=options.dtype,
            variant=options.variant,
            mask_style=options.mask_style,
            **shape,
        )
        work = Work(
            identity=identity,
            settings=job.settings,
            footer=score_footer(
                identity, options, resources, shape, weights=bundle.meta.name, calibration_id=calibration.id
            ),
            resources=resources,
            scorer=factory,
            bundle=packed,
            min_lung_fraction=options.min_lung_fraction,
            calibration=calibration,
        )
        screening = Screening(
            options=options,
            archive=job.archive,
            output=job.output,
            plan_store=job.plan_store,
            work=work,
            from_shards=job.shards is not None,
            say=job.say,
            ray_ready=not machines.local,
        )
        job.say(f"weights: {bundle.meta.name}; scorers: {resources.actors} on {resources.device}")
        if not bundle.meta.trained:
            job.say("these weights are UNTRAINED: every score of this run means nothing")
        if calibration.id != bundle.meta.score_calibration.id:
            job.say(
                f"note: the bundle was calibrated with mask_style={bundle.meta.mask_style} and no variant, so "
                "p_calibrated and decision stay empty"
            )
        return report_end(screening, job)


def check_score_options(options: ScoreOptions) -> None:
    """Refuse on the driver what a scorer would refuse on an actor, long after OUTPUT was begun.

    Raises:
        UsageError: naming the option and what it may be.
    """
    from cxr_ray.scorer import DTYPES, VARIANTS

    if options.variant is not None and options.variant not in VARIANTS:
        raise UsageError(
            f"variant={options.variant} is unknown; leave it out or use one of {', '.join(VARIANTS)}"
        )
    if options.dtype not in DTYPES:
        raise UsageError(f"dtype={options.dtype} is not offered; use {', '.join(DTYPES)}")


def read_bundle(options: ScoreOptions) -> Bundle:
    """The bundle that ``weights`` names, read once, by the driver.

    Raises:
        BundleError: not there, damaged, or made for another network.
    """
    if options.weights in (DEFAULT, SEEDED) or "://" not in options.weights:
        return load_bundle(options.weights)
    storage = open_storage(options.weights, options.weights_options)
    try:
        storage.quick_probe()
        names = [name for name in FILES if storage.fs.exists(f"{storage.path.rstrip('/')}/{name}")]
        files = {name: storage.fs.cat_file(f"{storage.path.rstrip('/')}/{name}") for name in names}
    except Exception as error:  # storage clients raise what they like
        raise BundleError(
            f"cannot read the weights bundle at {storage.url} ({explain(error)}); check weights= and weights_options"
        ) from error
    if META_FILE not in files:
        raise BundleError(f"no weights bundle at {storage.url}: expected a folder with {META_FILE}")
    return unpack(files)


def valid_calibration(options: ScoreOptions, bundle: Bundle) -> Calibration:
    """The bundle's calibration, or none where the networks run in another way than it was fitted for."""
    own_way = options.mask_style in (None, bundle.meta.mask_style) and options.variant is None
    return bundle.meta.score_calibration if own_way else Calibration()


def compute_shape(options: ScoreOptions, existing: Identity | None, resources: Resources) -> dict[str, int]:
    """``compute_batch`` and ``threads``: as asked, else as OUTPUT was begun, else by device."""
    from cxr_ray.scorer import DEFAULT_COMPUTE_BATCH, DEFAULT_THREADS

    begun = existing.document.get("score", {}) if existing is not None else {}
    shape = {}
    defaults = {"compute_batch": DEFAULT_COMPUTE_BATCH[resources.device], "threads": DEFAULT_THREADS}
    for name, default in defaults.items():
        asked = getattr(options, name)
        value = asked if asked is not None else begun.get(name, default)
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
        shape[name] = int(value)
    return shape


def score_identity(options: ScoreOptions, job: Job, bundle: Bundle, shape: dict[str, int]) -> Identity:
    """Everything that decides the bytes of a score row (DESIGN promise 7)."""
    meta = bundle.meta
    if job.shards is None:
        preprocessing, privacy = preprocessing_id(options.decode_policy), job.settings.privacy.document()
    else:
        preprocessing = job.shards.document["preprocessing"]
        privacy = job.shards.document["privacy"]
    return Identity(
        kind=KIND_SCORES,
        document={
            "schema_version": SCORE_SCHEMA_VERSION,
            "preprocessing": preprocessing,
            "privacy": privacy,
            "weights": {
                "tensors": dict(bundle.tensor_sha256),
                "mask_style": options.mask_style or meta.mask_style,
                "mask_threshold": meta.mask_threshold,
                "lung_gate": meta.lung_gate,
                "classes": list(meta.classes),
                "positive_class": meta.positive_class,
                "standardisation": [meta.standardisation_mean, meta.standardisation_std],
            },
            "score": {
                "variant": options.variant,
                "dtype": options.dtype,
                "min_lung_fraction": options.min_lung_fraction,
                **shape,
            },
        },
    )


def score_footer(
    identity: Identity,
    options: ScoreOptions,
    resources: Resources,
    shape: dict[str, int],
    *,
    weights: str,
    calibration_id: str | None,
) -> PartFooter:
    """The footer shared by all parts of a run."""
    return PartFooter(
        identity=identity.hash,
        unit_id="",
        generation=0,
        attempt="",
        code_version=code_version(),
        device=resources.device,  # each scorer puts its own model here
        dtype=options.dtype,
        weights=weights,
        calibration_id=calibration_id,
        fencing=options.fencing,
        decode_policy=identity.document["preprocessing"].rsplit("/", 1)[-1],
        compute_batch=shape["compute_batch"],
        threads=shape["threads"],
    )
