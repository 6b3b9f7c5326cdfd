"""What a weights bundle says about itself: the content of ``bundle.json`` but for its tensor tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cxr_ray.calibration import DEFAULT_THRESHOLD, Calibration, check_calibration
from cxr_ray.errors import BundleError
from cxr_ray.preprocess import COLUMNS, PREPROCESSING_VERSION, ROWS


@dataclass(frozen=True, kw_only=True)
class BundleMeta:
    """Everything about a bundle that is not a tensor."""

    name: str
    """Short name for people; nothing depends on it."""
    trained: bool
    """False: made from a seed, its scores mean nothing."""
    classes: tuple[str, ...] = ("Covid+", "Covid-")
    """Names of the class map's channels, in order."""
    positive_class: str = "Covid+"
    """The class that ``p_covid`` and the logits speak of."""
    paths: int = 6
    """Number of paths (k)."""
    standardisation_mean: float
    """Grey level subtracted from the equalised frame."""
    standardisation_std: float
    """Grey levels per unit of the standardised frame."""
    mask_style: str
    """The segmenter that the paths were trained with; masks of another style are not interchangeable."""
    mask_styles: tuple[str, ...]
    """The segmenters in the bundle."""
    mask_threshold: float = 0.3
    """Mask value above which a place counts as lung."""
    lung_gate: bool = False
    """True: the scattering channels are multiplied by the binary lung mask (see ``nets.path``)."""
    rows: int = ROWS
    columns: int = COLUMNS
    preprocessing_version: str = PREPROCESSING_VERSION
    """Version of ``cxr_ray.preprocess`` whose frames the weights expect."""
    calibration: dict[str, Any] | None = None
    """{"method": "platt", "slope", "intercept", "prevalence", "n", "n_positive"}: of the ensemble's logit, fitted with
    ``mask_style``; valid at that prevalence."""
    thresholds: dict[str, Any] = field(default_factory=dict)
    """Name -> {"p_covid": raw probability from which on it is positive, "sensitivity": [value, low, high],
    "specificity": [value, low, high]}."""
    default_threshold: str | None = DEFAULT_THRESHOLD
    """The threshold that the column ``decision`` is made at; None: no decision. Means nothing without thresholds."""
    trained_on: str | None = None
    """One line for people: which data."""
    training_data_fingerprint: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    """Measured performance: name -> value, [value, low, high], or an object of these (by source, style, ...)."""
    licence_basis: str
    """On what ground the weights may be used and passed on."""

    @property
    def positive_index(self) -> int:
        """Channel of the positive class."""
        return self.classes.index(self.positive_class)

    @property
    def score_calibration(self) -> Calibration:
        """How a score is read: calibration, thresholds and default threshold together."""
        return Calibration(
            calibration=self.calibration, thresholds=self.thresholds, default_threshold=self.default_threshold
        )


def check_meta(meta: BundleMeta) -> None:
    """Raise BundleError for facts that contradict each other or this version of the code."""
    for name in ("paths", "standardisation_mean", "standardisation_std", "mask_threshold"):
        value = getattr(meta, name)
        if isinstance(value, bool) or not isinstance(value, int if name == "paths" else int | float):
            raise BundleError(f"{name} should be a number, found {value!r}")
    if not (isinstance(meta.classes, tuple) and isinstance(meta.mask_styles, tuple)):
        raise BundleError("classes and mask_styles should be lists of names")
    if len(meta.classes) < 2 or len(set(meta.classes)) != len(meta.classes):
        raise BundleError(f"a bundle needs two or more distinct classes, found {list(meta.classes)}")
    if meta.positive_class not in meta.classes:
        raise BundleError(
            f"positive_class {meta.positive_class!r} is none of the classes {list(meta.classes)}"
        )
    if meta.mask_style not in meta.mask_styles:
        raise BundleError(f"mask_style {meta.mask_style!r} is none of the stored {list(meta.mask_styles)}")
    if meta.paths < 1:
        raise BundleError(f"a bundle needs at least one path, found {meta.paths}")
    if not (meta.standardisation_std > 0 and 0 < meta.mask_threshold < 1):
        raise BundleError(
            "standardisation_std must be above 0 and mask_threshold between 0 and 1, found "
            f"{meta.standardisation_std} and {meta.mask_threshold}"
        )
    if meta.preprocessing_version != PREPROCESSING_VERSION:
        raise BundleError(
            f"the bundle expects preprocessing version {meta.preprocessing_version}, this package "
            f"has {PREPROCESSING_VERSION}; use the cxr_ray release that the bundle was made for"
        )
    if (meta.rows, meta.columns) != (ROWS, COLUMNS):
        raise BundleError(
            f"the bundle expects {meta.rows} x {meta.columns} frames, this package makes {ROWS} x {COLUMNS}"
        )
    check_calibration(meta.score_calibration)
