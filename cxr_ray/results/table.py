"""Opening the score table of an OUTPUT, finished or still growing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs

from cxr_ray.archives.storage import Storage, explain, open_storage
from cxr_ray.errors import CxrRayError, OutputError
from cxr_ray.pipeline.identity import KIND_SHARDS, Identity, read_identity
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.score_table import SCORE_FOLDER, SCORE_SCHEMA
from cxr_ray.results.light import LIGHT_SCHEMA, ScoreDataset, current_files
from cxr_ray.results.recalibrate import CalibrationSource, choose_readout
from cxr_ray.results.recomputed import RecomputedScores


def open_scores(
    output: str | os.PathLike[str],
    *,
    prevalence: float | None = None,
    threshold: str | float | None = None,
    calibration: CalibrationSource | None = None,
    **storage_options: Any,
) -> ds.Dataset | RecomputedScores:
    """The score table as a pyarrow Dataset over the part files published so far.

    Where ``cxr-ray compact`` has made a light copy of just these parts, scans that need neither picture read that.
    The order of rows is not promised.

    Safe while a run is going on: a part appears whole or not at all, and the Dataset keeps the parts that it
    found when it was opened. Filters and column choices are pushed down (``dataset.to_table(columns=...,
    filter=...)``); leave ``heat_map`` and ``lung_mask`` out unless they are needed, they are nine tenths of
    the bytes.

    Args:
        output: a folder or any fsspec URL.
        prevalence: share of the positive class, above 0 and below 1, that ``p_calibrated`` shall be valid at;
            default: that of the data it was fitted on. Decisions do not depend on it.
        threshold: name of an operating threshold of the bundle, or a raw ``p_covid``, for ``decision``.
        calibration: folder or URL of a bundle of the same networks (or ``default``), whose calibration and
            thresholds replace those recorded in OUTPUT.
        storage_options: go to fsspec as given (``endpoint_url``, ``profile``, ``anon``, ...).

    Returns:
        A Dataset of the columns as stored. With ``prevalence``, ``threshold`` or ``calibration``, or where the rows
        were calibrated in different ways, ``RecomputedScores``, which is read in the same way.

    Raises:
        OutputError: no score table there, or nothing published yet.
        UsageError: an unknown threshold, a prevalence out of range, or none to shift.
        BundleError: ``calibration`` is no bundle.
    """
    storage, identity = open_output(output, storage_options)
    stored = open_table(storage, score_parts(storage, identity))
    readout = choose_readout(
        storage, identity, prevalence=prevalence, threshold=threshold, calibration=calibration
    )
    return stored if readout is None else RecomputedScores(stored, readout)


def open_output(
    output: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> tuple[Storage, Identity]:
    """The storage of an OUTPUT and the identity that it was begun with.

    Raises:
        OutputError: nothing of cxr_ray there, a damaged identity, or no access.
    """
    storage = open_storage(os.fspath(output), storage_options)
    try:
        identity = read_identity(Publisher(storage))
    except CxrRayError:
        raise
    except Exception as error:  # the storage library's own: no network, no access, no such bucket
        raise OutputError(
            f"{storage.url} cannot be read ({explain(error)}); check address and options"
        ) from error
    if identity is None:
        raise OutputError(f"{storage.url} holds no table; give the output folder of a job")
    return storage, identity


def open_table(storage: Storage, parts: list[str]) -> ds.Dataset:
    """A Dataset over the parts; where a light copy stands for them, scans without pictures read that one."""
    light = current_files(storage, parts)
    dataset = open_parts(storage, parts)
    return dataset if light is None else ScoreDataset.over(dataset, open_light(storage, light))


def open_light(storage: Storage, files: list[str]) -> ds.Dataset:
    """A Dataset over files of the light copy."""
    return ds.dataset(files, schema=LIGHT_SCHEMA, format="parquet", filesystem=arrow_filesystem(storage))


def open_parts(storage: Storage, parts: list[str]) -> ds.Dataset:
    """A Dataset over the given part files (paths of ``storage.fs``)."""
    return ds.dataset(parts, schema=SCORE_SCHEMA, format="parquet", filesystem=arrow_filesystem(storage))


def score_parts(storage: Storage, identity: Identity) -> list[str]:
    """Paths of the published parts, in name order.

    Raises:
        OutputError: shards instead of scores, or nothing published yet.
    """
    if identity.kind == KIND_SHARDS:
        raise OutputError(
            f"{storage.url} holds shards (preprocessed pixels), no scores; "
            "score them with jobs/score.py and give that output"
        )
    parts = [path for path in folder_files(storage, SCORE_FOLDER) if is_part(path)]
    if not parts:
        raise OutputError(f"{storage.url} has no published part yet; wait for the run, or run the job again")
    return parts


def is_part(path: str) -> bool:
    """True for names that a run publishes: ``part-<unit_id>.parquet``."""
    name = path.rsplit("/", 1)[-1]
    return name.startswith("part-") and name.endswith(".parquet")


def folder_files(storage: Storage, folder: str) -> list[str]:
    """Paths of everything directly in ``OUTPUT/folder``, sorted; empty where there is no such folder."""
    storage.fs.invalidate_cache()
    base = f"{storage.path.rstrip('/')}/{folder}"
    try:
        entries = storage.fs.ls(base, detail=False)
    except FileNotFoundError:
        return []
    return sorted(entry for entry in entries if entry.rstrip("/") != base)


def is_local(storage: Storage) -> bool:
    """True where Arrow and DuckDB can open the paths themselves."""
    return storage.is_local


def arrow_filesystem(storage: Storage) -> pa.fs.FileSystem:
    """The Arrow filesystem of a storage: Arrow's own for local paths, fsspec's for all others."""
    if is_local(storage):
        return pa.fs.LocalFileSystem()
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(storage.fs))


def footer_record(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The ``cxr_ray`` record in a part's footer; empty where there is none or it is no JSON object."""
    try:
        record = json.loads((metadata or {}).get(b"cxr_ray", b"{}"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
