"""``OUTPUT/calibrations/``: how the rows' ``p_calibrated`` and ``decision`` were made, one small file for each way.

Written create-only by a run that is about to publish, so an OUTPUT explains itself without its bundle. Usually it
holds one file; more mean that the OUTPUT was extended after a recalibration, and ``results`` then computes these
columns anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from cxr_ray.calibration import Calibration
from cxr_ray.errors import BundleError, OutputError
from cxr_ray.pipeline.publish import Publisher

CALIBRATIONS_FOLDER = "calibrations"

_NONE = "none"


@dataclass(frozen=True, kw_only=True)
class RecordedCalibration:
    """A calibration that a run scored with.

    Attributes:
        weights: name of the bundle.
        attempt: the first run that used it; names of runs sort by time.
    """

    calibration: Calibration
    weights: str | None
    attempt: str


def record_calibration(
    publisher: Publisher, calibration: Calibration, *, weights: str | None, attempt: str
) -> int:
    """Record it, unless it is there already; returns how many OUTPUT now records."""
    record = {
        "calibration_id": calibration.id,
        "weights": weights,
        "attempt": attempt,
        **calibration.record(),
    }
    data = json.dumps(record, indent=2, sort_keys=True).encode() + b"\n"
    publisher.publish(f"{CALIBRATIONS_FOLDER}/{calibration.id or _NONE}.json", data)
    return len(publisher.names(CALIBRATIONS_FOLDER))


def recorded_calibrations(publisher: Publisher) -> list[RecordedCalibration]:
    """All of an OUTPUT, oldest first; empty for shards and for an OUTPUT that is not begun.

    Raises:
        OutputError: a file of them is damaged.
    """
    found = []
    for name in publisher.names(CALIBRATIONS_FOLDER):
        raw = publisher.read(f"{CALIBRATIONS_FOLDER}/{name}")
        try:
            record = json.loads(raw or b"")
            calibration = Calibration.from_record(record)
            intact = f"{calibration.id or _NONE}.json" == name
            found.append(
                RecordedCalibration(
                    calibration=calibration, weights=record["weights"], attempt=str(record["attempt"])
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError, BundleError):
            intact = False
        if not intact:
            raise OutputError(
                f"{publisher.storage.url}/{CALIBRATIONS_FOLDER}/{name} is damaged; restore it from a backup, "
                "or give the calibration with --weights BUNDLE (calibration= in Python)"
            )
    return sorted(found, key=lambda entry: entry.attempt)
