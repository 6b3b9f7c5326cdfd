"""Which calibration, prevalence and threshold the columns ``p_calibrated``, ``decision`` and ``threshold_name``
are read at, if not as they were stored.

They are derived from ``logit`` and ``p_covid``, so any of it can be changed after scoring without touching a part.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cxr_ray.archives.storage import Storage, explain, open_storage
from cxr_ray.calibration import Calibration, Readout
from cxr_ray.errors import BundleError, CxrRayError, UsageError
from cxr_ray.pipeline.calibrations import recorded_calibrations
from cxr_ray.pipeline.identity import Identity
from cxr_ray.pipeline.publish import Publisher

DEFAULT: Final = "default"
BUNDLED: Final = Path(__file__).parents[1] / "weights" / DEFAULT
META_FILE: Final = "bundle.json"

CalibrationSource = Calibration | str | os.PathLike[str]


class MixedCalibration(UserWarning):
    """The rows of an OUTPUT were calibrated in different ways when they were scored."""


def choose_readout(
    storage: Storage,
    identity: Identity,
    *,
    prevalence: float | None = None,
    threshold: str | float | None = None,
    calibration: CalibrationSource | None = None,
    calibration_options: Mapping[str, Any] | None = None,
) -> Readout | None:
    """How to compute the three columns; None: they hold as they are stored.

    Without ``calibration`` it is the one that OUTPUT records; where it records several (it was extended after a
    recalibration) the one that was recorded last, for all rows, and a ``MixedCalibration`` warning says so.

    Raises:
        UsageError: an unknown threshold, a prevalence out of range, or weights that did not score this OUTPUT.
        BundleError: ``calibration`` names no bundle, or a damaged one.
        OutputError: a damaged record in OUTPUT.
    """
    if isinstance(calibration, Calibration):
        chosen = calibration
    elif calibration is not None:
        chosen = read_calibration(calibration, identity, options=calibration_options)
    else:
        recorded = recorded_calibrations(Publisher(storage))
        if len(recorded) < 2 and prevalence is None and threshold is None:
            return None
        usable = [entry.calibration for entry in recorded if entry.calibration.id is not None]
        chosen = usable[-1] if usable else Calibration()
        if len(recorded) > 1:
            warnings.warn(
                f"the rows of {storage.url} were scored with {len(recorded)} calibrations; p_calibrated, decision "
                f"and threshold_name are computed anew for all rows, with the one recorded last ({chosen.id})",
                MixedCalibration,
                stacklevel=3,
            )
    return chosen.readout(prevalence=prevalence, threshold=threshold)


def read_calibration(
    source: str | os.PathLike[str], identity: Identity, *, options: Mapping[str, Any] | None = None
) -> Calibration:
    """The calibration in a bundle's ``bundle.json``; the tensors are not read.

    Args:
        source: ``default`` (the bundled weights), or folder or URL of a bundle.
        identity: of the OUTPUT; a bundle of other networks, or fitted for another mask style, is refused.

    Raises:
        BundleError: no bundle there, or a damaged one.
        UsageError: the bundle does not speak of this OUTPUT's scores.
    """
    address = str(BUNDLED) if os.fspath(source) == DEFAULT else os.fspath(source)
    storage = open_storage(address, options)
    try:
        raw = Publisher(storage).read(META_FILE)
    except CxrRayError:
        raise
    except Exception as error:  # storage clients raise what they like
        raise BundleError(
            f"cannot read the weights bundle at {storage.url} ({explain(error)}); check address and options"
        ) from error
    if raw is None:
        raise BundleError(f"no weights bundle at {storage.url}: expected a folder with {META_FILE}")
    try:
        record = json.loads(raw)
        calibration = Calibration.from_record(record)
        hashes = {name: table["sha256"] for name, table in record["tensors"].items()}
    except BundleError as error:
        raise BundleError(f"weights bundle at {storage.url}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{META_FILE} at {storage.url} is damaged; fetch the bundle again") from error
    _check_same_networks(storage.url, record, hashes, identity)
    return calibration


def _check_same_networks(
    url: str, record: Mapping[str, Any], hashes: Mapping[str, str], identity: Identity
) -> None:
    """A calibration belongs to the networks, and to the masks, that it was fitted with."""
    scored_with = identity.document.get("weights")
    if scored_with is None:
        return
    if dict(scored_with["tensors"]) != dict(hashes):
        raise UsageError(
            f"OUTPUT was scored by other networks than those of the bundle at {url}; its calibration says nothing "
            "about these scores: give a bundle with the same tensors"
        )
    variant = identity.document.get("score", {}).get("variant")
    if scored_with["mask_style"] != record.get("mask_style") or variant is not None:
        raise UsageError(
            f"OUTPUT was scored with mask_style={scored_with['mask_style']} and variant={variant}, but the bundle "
            f"at {url} is calibrated for mask_style={record.get('mask_style')} without a variant"
        )
