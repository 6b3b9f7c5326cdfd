"""The original behind a row: found through the plan, read and decoded again as the run did."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray.archives.reading import read_inputs
from cxr_ray.archives.storage import Storage, explain
from cxr_ray.decode import decode
from cxr_ray.errors import CxrRayError, InputError, UsageError
from cxr_ray.pipeline.plan import SHARD_KIND, Plan, PlannedImage, Unit, open_plan, read_unit
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.shard_source import read_shard_unit
from cxr_ray.preprocess import COLUMNS, ROWS, preprocess
from cxr_ray.results.rows import ScoreRow

MAXIMUM_BYTES: Final = 2**30
_ADVICE: Final = (
    "give --archive-option key=value if the archive needs options, or --no-image for the maps alone"
)


def read_originals(
    plan_storage: Storage, rows: Sequence[ScoreRow], *, archive_options: Mapping[str, Any] | None = None
) -> Iterator[tuple[ScoreRow, NDArray[np.uint8]]]:
    """Each row with its preprocessed pixels ``[300, 340]`` uint8, unit by unit (not in the order given).

    Args:
        plan_storage: OUTPUT, or the run's ``plan_dir``.

    Raises:
        UsageError: an original that is gone, changed or not readable from here.
    """
    plan = open_plan(Publisher(plan_storage))
    units = {unit.unit_id: unit for unit in plan.units()}
    by_unit: dict[str, list[ScoreRow]] = {}
    for row in rows:
        by_unit.setdefault(str(row.values["unit_id"]), []).append(row)
    for unit_id, own in by_unit.items():
        if unit_id not in units:
            raise UsageError(
                f"the plan does not know the unit of image {own[0].image_id}; "
                "a run with keep_uri=false keeps its plan elsewhere: give --plan-dir, or --no-image"
            )
        yield from _read_unit(plan, units[unit_id], own, dict(archive_options or {}))


def _read_unit(
    plan: Plan, unit: Unit, rows: list[ScoreRow], options: dict[str, Any]
) -> Iterator[tuple[ScoreRow, NDArray[np.uint8]]]:
    wanted = {row.image_id: row for row in rows}
    images = [image for image in read_unit(plan.publisher, unit) if image.image_id in wanted]
    try:
        for image, pixels_HW in zip(images, _pixels(images, wanted, unit, options), strict=True):
            yield wanted[image.image_id], pixels_HW
    except InputError as error:
        raise UsageError(f"an original cannot be read again ({error}); {_ADVICE}") from error
    except CxrRayError as error:  # storage that fails, options that do not fit: sentences of their own
        raise UsageError(f"{str(error).rstrip('.')}; {_ADVICE}") from error
    except OSError as error:
        raise UsageError(f"the archive cannot be read ({explain(error)}); {_ADVICE}") from error


def _pixels(
    images: list[PlannedImage], rows: Mapping[str, ScoreRow], unit: Unit, options: dict[str, Any]
) -> Iterator[NDArray[np.uint8]]:
    if unit.kind == SHARD_KIND:
        for pixels in read_shard_unit(images, options).column("pixels").to_pylist():
            yield np.frombuffer(pixels, np.uint8).reshape(ROWS, COLUMNS)
        return
    contents = read_inputs([image.source for image in images], options, max_bytes=MAXIMUM_BYTES)
    for image, content in zip(images, contents, strict=True):
        if isinstance(content, InputError):
            raise content
        row = rows[image.image_id]
        if hashlib.sha256(content).hexdigest() != row.values["content_sha256"]:
            raise UsageError(f"the original of image {image.image_id} has changed since it was scored")
        policy = str(row.footer.get("decode_policy", "corrected"))
        yield preprocess(decode(content, policy=policy).pixels)
