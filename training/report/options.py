"""Options of ``jobs/report.py``; ``conf/report.yaml`` carries the same names (held by a test)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cxr_ray.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """``jobs/report.py``: a training output -> one HTML page."""

    training: str = MISSING
    """URL of an output of ``jobs/train.py``; for an assembled one the outputs that it was made from are read too."""
    output: str = MISSING
    """HTML file to write, on any fsspec URL; a report that is there already is replaced."""
    classification: str | None = None
    """URL of the classification's output, where it is not ``training`` and not where the assembly found it."""
    segmentation: str | None = None
    """URL of the segmentation's output, likewise."""
    audit: str | None = None
    """URL of an output of ``jobs/audit.py`` on the same bundle, where it was not written into ``training``."""
    draws: int = 2000
    """Resamples of each bootstrap interval."""
    title: str | None = None
    """Title of the page; default: made from the bundle's name."""
    training_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options of all that is read; never recorded."""
    output_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options of ``output``; never recorded."""


def report_options(config: DictConfig) -> ReportOptions:
    """Typed options of a composed Hydra config.

    Raises:
        UsageError: unknown names, wrong types, ``training`` or ``output`` missing or empty.
    """
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ReportOptions), config))
    except MissingMandatoryValue as error:
        raise UsageError(
            f"{error.full_key or 'an option'} is missing; give training=URL and output=FILE.html"
        ) from error
    except OmegaConfBaseException as error:
        # The text of the error may quote the value, and a storage option may be a secret.
        name = getattr(error, "full_key", None) or "?"
        raise UsageError(f"option {name} is unknown or has a value of the wrong kind") from error
    assert isinstance(options, ReportOptions)
    for name in ("training", "output"):
        if not str(getattr(options, name)).strip():
            raise UsageError(f"{name} is empty; give training=URL and output=FILE.html")
    if options.draws < 100:
        raise UsageError(f"expected at least 100 draws for a 95 % interval, got draws={options.draws}")
    return options
