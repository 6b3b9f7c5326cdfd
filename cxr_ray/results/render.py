"""Pictures of scored images, as files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import OutputError, UsageError
from cxr_ray.results.figure import draw_figure
from cxr_ray.results.originals import read_originals
from cxr_ray.results.rows import ScoreRow, fetch_rows, top_ids
from cxr_ray.results.table import open_output


def render_images(
    output: str | os.PathLike[str],
    image_ids: Sequence[str],
    destination: str | os.PathLike[str],
    *,
    with_image: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    archive_options: Mapping[str, Any] | None = None,
    plan: str | os.PathLike[str] | None = None,
    plan_options: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Draw the four-panel figure of each image.

    Args:
        destination: a file ending in ``.png`` for one image; else a folder, made if needed, that receives
            ``<image_id>.png`` per image.
        with_image: read the originals again for the background; False draws the maps on the lung outline.
        plan: where the plan lies if not in ``output`` (``plan_dir`` of a run with ``keep_uri=false``).

    Returns:
        The files, in the order of ``image_ids``.

    Raises:
        UsageError: an unknown or quarantined image, or an original that cannot be read again.
        OutputError: no score table there, or ``destination`` cannot be written.
        MissingExtra: DuckDB or matplotlib is not installed.
    """
    storage, identity = open_output(output, storage_options)
    rows = fetch_rows(storage, identity, image_ids)
    for row in rows:
        _check_scored(row)
    target = Path(destination)
    single = target.suffix.lower() == ".png"
    if single and len(rows) != 1:
        raise UsageError(f"--out names one file, but there are {len(rows)} images; give a folder")
    # Pixels arrive unit by unit, so one container is opened once; draw as they come, never hold them all.
    pairs: Iterable[tuple[ScoreRow, NDArray[np.uint8] | None]] = ((row, None) for row in rows)
    if with_image:
        source = storage if plan is None else open_storage(os.fspath(plan), plan_options)
        pairs = read_originals(source, rows, archive_options=archive_options)
    written: dict[str, Path] = {}
    for row, image_HW in pairs:
        path = target if single else target / f"{row.image_id}.png"
        _write(path, draw_figure(row.values, image_HW, weights=row.footer.get("weights")))
        written[row.image_id] = path
    return [written[row.image_id] for row in rows]


def render_top(
    output: str | os.PathLike[str],
    count: int,
    destination: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[Path]:
    """Draw the ``count`` images of highest p_covid into a folder; options as for :func:`render_images`."""
    ids = top_ids(*open_output(output, storage_options), count)
    return render_images(output, ids, destination, storage_options=storage_options, **options)


def _check_scored(row: ScoreRow) -> None:
    if row.values["status"] != "scored":
        raise UsageError(
            f"image {row.image_id} was quarantined, so it has no maps: {row.values['reason']} "
            f"({row.values['detail']})"
        )


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"the picture cannot be written to {path} ({error.strerror})") from error
