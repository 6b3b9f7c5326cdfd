"""Options of ``jobs/audit.py``; ``conf/audit.yaml`` carries the same names and defaults (held by a test)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cxr_ray.errors import UsageError
from training.audit.classification import AuditSettings
from training.data.manifest import ManifestSettings

TASKS = ("classification", "segmentation")
_REQUIRED = ("weights", "shards", "split", "output")
_USAGE = "give weights=URL shards=URL manifest.path=FILE split=NAME output=URL"


@dataclass(kw_only=True)
class AuditOptions:
    """``jobs/audit.py``: a bundle on labelled pictures -> ``OUTPUT/audit/<split>/``."""

    weights: str = MISSING
    """The audited bundle: ``default``, ``seeded`` or a URL."""
    shards: str = MISSING
    """OUTPUT of ``jobs/ingest.py``."""
    manifest: ManifestSettings = field(default_factory=ManifestSettings)
    """Labels, masks, patients, groups and sources of the pictures."""
    split: str = MISSING
    """Value of the manifest's ``split`` that is audited."""
    output: str = MISSING
    """Where ``audit/<split>/`` is written; a training output, or any folder."""
    task: str = "classification"
    """``classification`` (scores against labels) or ``segmentation`` (lungs against masks)."""
    compare: str | None = None
    """Another bundle, scored on the same pictures and compared in pairs."""
    mask_style: str | None = None
    """Which Module 1 of the bundle gives the lungs (classification); default: the bundle's choice."""
    hide_and_seek: bool = True
    """Also score with the lungs removed and with the lungs only."""
    settings: AuditSettings = field(default_factory=AuditSettings)
    """Bootstrap, threshold, mixed sources."""
    test_split: str = "test"
    """The split of which every scoring is logged."""
    test_log: str | None = None
    """Markdown file that gets a line before the test split is scored; default: ``test_uses.md`` beside OUTPUT."""
    again: bool = False
    """Score the test split although the log holds these weights and pictures already; that is logged too."""
    device: str = "auto"
    """``cpu``, ``cuda``, or ``auto``: a GPU where there is one."""
    processes: int | None = None
    """Single-threaded processes on a CPU; default: one per CPU, at most 8."""
    weights_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options of ``weights`` and ``compare``; never recorded."""
    shards_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options of ``shards``; never recorded."""
    output_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options of ``output``; never recorded."""
    progress_seconds: float = 10.0
    """Seconds between progress lines."""


def audit_options(config: DictConfig) -> AuditOptions:
    """Typed options of a composed Hydra config.

    Raises:
        UsageError: unknown names, wrong types, missing or empty values, values out of range.
    """
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AuditOptions), config))
    except MissingMandatoryValue as error:
        raise UsageError(f"{_name(error)} is missing; {_USAGE}") from error
    except OmegaConfBaseException as error:
        # The text of the error may quote the value, and a storage option may be a secret.
        raise UsageError(
            f"option {_name(error)} is unknown or has a value of the wrong kind; {_USAGE}"
        ) from error
    assert isinstance(options, AuditOptions)
    for name in _REQUIRED:
        if not str(getattr(options, name)).strip():
            raise UsageError(f"{name} is empty; {_USAGE}")
    if "/" in options.split or options.split in (".", ".."):
        raise UsageError(f"split names a folder of OUTPUT, so it may hold no slash; found {options.split!r}")
    if options.task not in TASKS:
        raise UsageError(f"expected task to be one of {', '.join(TASKS)}, found {options.task!r}")
    if options.settings.draws < 1:
        raise UsageError(f"settings.draws must be at least 1, not {options.settings.draws}")
    if not 0 <= options.settings.threshold <= 1:
        raise UsageError(f"settings.threshold must lie between 0 and 1, not {options.settings.threshold}")
    if options.processes is not None and options.processes < 1:
        raise UsageError(f"processes must be at least 1, not {options.processes}")
    return options


def _name(error: OmegaConfBaseException) -> str:
    return str(getattr(error, "full_key", None) or getattr(error, "key", None) or "?")
