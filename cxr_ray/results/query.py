"""SQL over the score table with DuckDB.

Tables: ``scores``, and two views over ``content_sha256`` (the encoded bytes): ``duplicates`` holds every row
whose content occurs more than once, ``scores_unique`` one row of each content (that of the smallest image_id;
rows whose content could not be read are all kept).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cxr_ray.archives.storage import Storage
from cxr_ray.calibration import Readout
from cxr_ray.errors import MissingExtra, OutputError, UsageError
from cxr_ray.pipeline.identity import Identity
from cxr_ray.pipeline.score_table import SCORE_SCHEMA
from cxr_ray.results.light import PICTURES, current_files
from cxr_ray.results.recalibrate import CalibrationSource, choose_readout
from cxr_ray.results.recomputed import replacement_sql
from cxr_ray.results.table import is_local, open_light, open_output, open_parts, score_parts

VIEWS = """
CREATE TEMP VIEW duplicates AS SELECT * FROM scores WHERE content_sha256 IN
    (SELECT content_sha256 FROM scores WHERE content_sha256 IS NOT NULL GROUP BY ALL HAVING count(*) > 1);
CREATE TEMP VIEW scores_unique AS SELECT * FROM scores WHERE content_sha256 IS NULL OR image_id IN
    (SELECT min(image_id) FROM scores WHERE content_sha256 IS NOT NULL GROUP BY content_sha256);
"""

_FETCH = 1000
_DESCRIBES = re.compile(r"\s*(describe|desc|show|summarize)\b", re.IGNORECASE)


@dataclass(frozen=True)
class QueryResult:
    """Column names and a stream of rows, read as it is consumed."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]


def run_query(
    output: str | os.PathLike[str],
    sql: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    prevalence: float | None = None,
    threshold: str | float | None = None,
    calibration: CalibrationSource | None = None,
    calibration_options: Mapping[str, Any] | None = None,
) -> QueryResult:
    """Run one SQL statement (or several; the last one's result counts) over the parts published so far.

    ``prevalence``, ``threshold`` and ``calibration`` are those of ``open_scores``: p_calibrated, decision and
    threshold_name are then computed anew. ``calibration_options`` go to fsspec for the bundle.

    Raises:
        UsageError: the statement is wrong (the message is DuckDB's), or one of these three does not serve.
        BundleError: ``calibration`` is no bundle.
        OutputError: no score table there.
        MissingExtra: DuckDB is not installed.
    """
    storage, identity = open_output(output, storage_options)
    readout = choose_readout(
        storage,
        identity,
        prevalence=prevalence,
        threshold=threshold,
        calibration=calibration,
        calibration_options=calibration_options,
    )
    return ask(storage, identity, sql, readout=readout)


def ask(
    storage: Storage,
    identity: Identity,
    sql: str,
    parameters: Sequence[Any] = (),
    *,
    readout: Readout | None = None,
) -> QueryResult:
    """Run ``sql`` over the light copy of the table where it is current and holds all that is asked for, else the parts.

    Raises: as ``run_query``.
    """
    parts = score_parts(storage, identity)
    light = current_files(storage, parts)
    if light is not None and _without_pictures(sql, parameters, readout):
        # Whatever is wrong with the copy (damaged, or just replaced by another), the parts are the truth; and an
        # error of the statement is the same over them.
        with suppress(UsageError, OutputError):
            return execute(connect(storage, light, readout, light=True), sql, parameters)
    return execute(connect(storage, parts, readout), sql, parameters)


def connect(
    storage: Storage, files: list[str], readout: Readout | None = None, *, light: bool = False
) -> Any:
    """An in-memory DuckDB connection with ``scores``, ``duplicates`` and ``scores_unique`` over part files.

    With a ``readout``, ``scores`` computes the calibrated columns by it (``stored_scores`` is the table as written).
    With ``light``, the files are those of the light copy, and a query that evaluates a picture fails.

    Local files are read by DuckDB itself; all others through a pyarrow Dataset over the same fsspec
    filesystem that wrote them, so that every storage and credential that works for a job works here.
    """
    duckdb = import_duckdb()
    connection = duckdb.connect(":memory:")
    try:
        if is_local(storage):
            connection.read_parquet(files).create_view("files")
        else:
            connection.register("files", (open_light if light else open_parts)(storage, files))
        if light:
            pictures = ", ".join(
                f"CAST(error('the light copy has no {name}') AS BLOB) AS {name}" for name in PICTURES
            )
            connection.execute(f"CREATE TEMP VIEW stored_scores AS SELECT *, {pictures} FROM files")
        else:
            connection.execute("CREATE TEMP VIEW stored_scores AS SELECT * FROM files")
        _create_views(connection, readout)
    except duckdb.Error as error:
        raise OutputError(
            f"the table cannot be read ({_short(error)}); `cxr-ray verify` says which part is damaged"
        ) from error
    return connection


def _create_views(connection: Any, readout: Readout | None) -> None:
    columns = "*" if readout is None else f"* REPLACE ({replacement_sql(readout)})"
    connection.execute(f"CREATE TEMP VIEW scores AS SELECT {columns} FROM stored_scores")
    connection.execute(VIEWS)


def _without_pictures(sql: str, parameters: Sequence[Any], readout: Readout | None) -> bool:
    """Whether a statement is a single SELECT that reads no picture.

    DuckDB itself is asked: its plan names the columns that are read, whatever the statement looks like. The table
    planned for is an empty Arrow one, of which it knows no statistics that could simplify the plan. Anything unclear
    is a no.
    """
    duckdb = import_duckdb()
    with duckdb.connect(":memory:") as connection:
        connection.register("stored_scores", SCORE_SCHEMA.empty_table())
        _create_views(connection, readout)
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                return False
            if _DESCRIBES.match(statements[0].query):  # counts as SELECT, and plans nothing
                return False
            explained = connection.execute(f"EXPLAIN (FORMAT json) {statements[0].query}", list(parameters))
            plan = str(explained.fetchall())
            return not any(name in plan for name in PICTURES)
        except duckdb.Error:
            return False


def execute(connection: Any, sql: str, parameters: Sequence[Any] = ()) -> QueryResult:
    """Run ``sql`` on an open connection. Raises: UsageError with DuckDB's own words."""
    duckdb = import_duckdb()
    try:
        cursor = connection.execute(sql, list(parameters))
        if cursor is None:
            raise UsageError("the statement is empty; give SQL such as: SELECT count(*) FROM scores")
        columns = tuple(column[0] for column in cursor.description or ())
        # The first rows here: an error in the data (a cast, a division) must be an error of the statement.
        first = cursor.fetchmany(_FETCH) if columns else []
    except duckdb.Error as error:
        raise UsageError(f"the query failed: {_short(error)}") from error
    return QueryResult(columns=columns, rows=_rows(cursor, first, duckdb))


def import_duckdb() -> ModuleType:
    """DuckDB, or a MissingExtra that says how to get it."""
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtra("queries need DuckDB; install it with: pip install 'cxr_ray[results]'") from error
    return duckdb


def _rows(cursor: Any, first: list[tuple[Any, ...]], duckdb: ModuleType) -> Iterator[tuple[Any, ...]]:
    batch = first
    while batch:
        yield from batch
        try:
            batch = cursor.fetchmany(_FETCH)
        except duckdb.Error as error:
            raise UsageError(f"the query failed: {_short(error)}") from error


def _short(error: Exception) -> str:
    """DuckDB's message without the drawing of the statement below it."""
    lines = [line.strip() for line in str(error).split("\nLINE ")[0].splitlines() if line.strip()]
    return " ".join(lines)
