"""Options of the jobs: names, types and defaults, one docstring per field.

``conf/score.yaml`` and ``conf/ingest.yaml`` carry the same names (held by a test), so that
``python jobs/score.py --help`` and this page never drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cxr_ray.errors import UsageError


@dataclass(kw_only=True)
class ManifestConfig:
    """How to read ``archive=`` where it is a CSV or Parquet manifest."""

    columns: dict[str, str] = field(default_factory=dict)
    """Our column name -> theirs, e.g. ``{uri: file, patient: patient_id}``."""
    root: str | None = None
    """URL that relative URIs start from; default: the manifest's own folder."""
    inventory: bool | None = None
    """Take size and version from the manifest; default: where it has columns for both, and none of members."""


@dataclass(kw_only=True)
class JobOptions:
    """What ingest and score have in common."""

    archive: str = MISSING
    """What to read: directory, tar, tar.gz, zip, manifest, inventory, S3 Inventory (its ``manifest.json``) or (score
    only) shards, on any fsspec URL."""
    output: str = MISSING
    """Where to write: a new place, or one that an earlier run of the same settings began."""
    archive_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options of the archive (endpoint_url, key, secret, profile, anon, ...); never recorded."""
    output_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options of OUTPUT; never recorded."""

    # -- the plan --
    limit: int | None = None
    """Plan at most this many images in the generation planned now."""
    extend: bool = True
    """List the archive again after finishing what is planned, and append what is new."""
    unit_size: int = 1000
    """Most images of one part file, 1 to 1000; the first units of a generation are smaller."""
    exclude: list[str] | None = None
    """File names left out (globs); default: names that are clearly no images, such as ``*.csv``."""
    manifest: ManifestConfig = field(default_factory=ManifestConfig)
    """How to read a manifest."""
    carry: list[str] = field(default_factory=list)
    """Manifest columns to keep in the column ``carry``."""
    dry_run: bool = False
    """List, score a small sample in the driver, say what the run will take; write nothing."""

    # -- identity --
    decode_policy: str = "corrected"
    """``corrected``, ``published`` or ``windowed`` (DESIGN section 1)."""
    keep_uri: bool = True
    """Keep paths in table, plan and logs; false needs a key and ``plan_dir``."""
    keep_year: bool = False
    """Keep the study year."""
    manifest_ids: str = "raw"
    """``raw``: hash patient and study of the manifest; ``pseudonyms``: they are safe already."""
    key_env: str | None = "CXR_RAY_KEY"
    """Environment variable that holds the secret for patient, study and instance keys."""
    key_file: str | None = None
    """File that holds the secret; wins over ``key_env``."""

    # -- execution: may change at every run --
    plan_dir: str | None = None
    """Folder of the plan; default OUTPUT. Needed, and kept private, with ``keep_uri=false``."""
    plan_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options of ``plan_dir``."""
    decode_tasks: int | None = None
    """Decode tasks at a time; default: what the CPUs allow."""
    max_bytes: int = 512 * 2**20
    """Encoded bytes of one image beyond which it is quarantined as ``oversized``."""
    max_pixels: int = 150_000_000
    """Pixels of one image beyond which it is quarantined as ``oversized``."""
    decode_seconds: float = 30.0
    """Processor seconds of decoding one image beyond which it is quarantined as ``time_limit``."""
    decode_memory: int = 4 * 2**30
    """Bytes of memory of one decode process beyond which its image is quarantined as ``memory_limit``."""
    fencing: str = "create_only"
    """``create_only``, or ``single_writer`` for stores without a create-only write."""
    max_quarantined: float = 1.0
    """Exit with 3 when a larger share was quarantined."""
    progress_seconds: float = 5.0
    """Seconds between progress lines."""
    unit_retries: int = 3
    """New tries of a unit by its worker, after 1, 4 and 16 s, where a failure may pass (storage, killed worker)."""
    rounds: int = 2
    """Passes over the units that failed; what fails in the last one is left for the next run (exit 1)."""
    no_progress_seconds: float = 600.0
    """End the run with exit 1 when nothing was done or tried again for so long; above ten ``decode_seconds``."""
    ray_address: str | None = None
    """Ray cluster to join; default: RAY_ADDRESS where set (a submitted job), else a local one."""


@dataclass(kw_only=True)
class IngestOptions(JobOptions):
    """``jobs/ingest.py``: archive -> shards of preprocessed pixels and facts."""


@dataclass(kw_only=True)
class ScoreOptions(JobOptions):
    """``jobs/score.py``: archive or shards -> score table."""

    weights: str = "default"
    """``default`` (the bundle shipped with the package), ``seeded`` (untrained: for trials only) or a URL."""
    weights_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options of the bundle."""

    # -- identity --
    variant: str | None = None
    """Optional variant of the paths: ``threshold`` or ``multiply``."""
    dtype: str = "float32"
    """Arithmetic of the networks."""
    mask_style: str | None = None
    """Which Module 1 of the bundle: ``v7`` or ``jms``; default: the bundle's choice."""
    compute_batch: int | None = None
    """Images per network call; default: OUTPUT's when continuing one, else 1 on a CPU (which takes them one by one
    in any case) and 64 on a GPU (not tuned)."""
    threads: int | None = None
    """CPU threads of one scorer; default as for ``compute_batch``."""
    min_lung_fraction: float = 0.08
    """Below this share of lung the row is flagged ``lungs_small``."""

    # -- execution --
    actors: int | None = None
    """Scorers at a time; default: one per GPU, else one per CPU."""
    min_actors: int | None = None
    """Start with so many scorers and let their number follow the work, up to ``actors``; default: always ``actors``."""


def job_options(config: DictConfig, schema: type[JobOptions]) -> Any:
    """Typed options of a composed Hydra config.

    Raises:
        UsageError: unknown names, wrong types, missing ``archive`` or ``output``, values out of range.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        options = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise UsageError(f"{_name(error)} is missing; give archive=URL and output=URL") from error
    except OmegaConfBaseException as error:
        # The text of the error may quote the value, and a storage option may be a secret.
        raise UsageError(
            f"option {_name(error)} has a value of the wrong kind; see docs/reference/options.md"
        ) from error
    assert isinstance(options, schema)
    for name in ("archive", "output"):
        if not str(getattr(options, name)).strip():
            raise UsageError(f"{name} is empty; give {name}=URL")
    _in_range("unit_size", options.unit_size, 1, 1000)
    _in_range("decode_seconds", options.decode_seconds, 1, 86_400)
    _in_range("decode_memory", options.decode_memory, 2**28, 2**60)
    _in_range("max_quarantined", options.max_quarantined, 0, 1)
    _in_range("progress_seconds", options.progress_seconds, 0.1, 3600)
    _in_range("no_progress_seconds", options.no_progress_seconds, 10, 10**6)
    _in_range("unit_retries", options.unit_retries, 0, 20)
    _in_range("rounds", options.rounds, 1, 20)
    for name in ("limit", "decode_tasks", "max_bytes", "max_pixels"):
        _at_least_one(name, getattr(options, name))
    if isinstance(options, ScoreOptions):
        _in_range("min_lung_fraction", options.min_lung_fraction, 0, 1)
        for name in ("actors", "min_actors", "compute_batch", "threads"):
            _at_least_one(name, getattr(options, name))
    return options


def _at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UsageError(f"{name} must be at least 1, not {value}")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} must lie between {low} and {high}, not {value}")


def _name(error: OmegaConfBaseException) -> str:
    return str(getattr(error, "full_key", None) or getattr(error, "key", None) or "?")
