"""``cxr-ray compact``: write ``OUTPUT/light/``, the table without its pictures in few large sorted files.

DuckDB sorts the rows by image_id and spills to disk (TMPDIR), so memory does not grow with the table. The new files
get names that no file had before; then the marker is replaced, in one step; then the files of the old marker go. So a
reader finds the old copy whole, or the new one, or, if it comes between the marker and the files, an error and no
wrong row. Parts are only read. Running it twice at once wastes work and harms nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.archives.storage import Storage, explain, is_storage_error
from cxr_ray.errors import OutputError, UsageError
from cxr_ray.pipeline.identity import Identity
from cxr_ray.pipeline.parts import FOOTER_KEY
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.publishing.sweep import UPLOAD_SECONDS, modified_time
from cxr_ray.results.light import (
    LIGHT_FOLDER,
    LIGHT_SCHEMA,
    MARKER,
    LightFile,
    LightMarker,
    parts_digest,
    read_marker,
)
from cxr_ray.results.query import import_duckdb
from cxr_ray.results.table import is_local, open_output, open_parts, score_parts

ROWS_PER_FILE: Final = 1_000_000
ROW_GROUP_ROWS: Final = 131_072

#: What DuckDB may keep in memory while it sorts; the rest goes to disk.
_SORT_MEMORY: Final = "1GB"
_BATCH_ROWS: Final = 32_768


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What ``compact_output`` wrote."""

    folder: str
    marker: LightMarker

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.marker.files)


def compact_output(
    output: str | os.PathLike[str],
    *,
    rows_per_file: int = ROWS_PER_FILE,
    storage_options: Mapping[str, Any] | None = None,
) -> Compacted:
    """Write the light copy of the parts published so far, in place of an earlier one.

    Args:
        rows_per_file: fewest rows of one file; there are as many files as that allows (one, of a smaller table).

    Raises:
        UsageError: ``rows_per_file`` under 1.
        OutputError: no score table there, a part that cannot be read, or no leave to write.
        MissingExtra: DuckDB is not installed.
    """
    if rows_per_file < 1:
        raise UsageError(f"--rows-per-file takes a number of at least 1, got {rows_per_file}")
    storage, identity = open_output(output, storage_options)
    parts = score_parts(storage, identity)
    publisher = Publisher(storage)
    duckdb = import_duckdb()
    try:
        with tempfile.TemporaryDirectory(prefix="cxr-ray-compact-") as spill:
            marker = _write(publisher, identity, parts, rows_per_file, Path(spill), duckdb)
            before = read_marker(publisher)
            with _writing(publisher):
                publisher.replace(MARKER, marker.to_json())
    except duckdb.Error as error:
        raise OutputError(
            f"the table cannot be read ({str(error).splitlines()[0]}); `cxr-ray verify` says which part is damaged"
        ) from error
    except pa.ArrowException as error:
        raise OutputError(
            f"a part cannot be read ({type(error).__name__}); `cxr-ray verify` says which one is damaged"
        ) from error
    _remove_old(publisher, before, marker)
    return Compacted(folder=f"{storage.url.rstrip('/')}/{LIGHT_FOLDER}", marker=marker)


def _write(
    publisher: Publisher, identity: Identity, parts: list[str], rows_per_file: int, spill: Path, duckdb: Any
) -> LightMarker:
    connection = duckdb.connect(
        ":memory:", config={"temp_directory": str(spill), "memory_limit": _SORT_MEMORY}
    )
    token = secrets.token_hex(4)
    files: list[LightFile] = []
    try:
        _open_parts(connection, publisher.storage, parts)
        ((rows,),) = connection.execute("SELECT count(*) FROM parts").fetchall()
        found = connection.execute("SELECT DISTINCT generation FROM parts ORDER BY 1").fetchall()
        names = ", ".join(f'"{name}"' for name in LIGHT_SCHEMA.names)
        stream = connection.sql(f"SELECT {names} FROM parts ORDER BY image_id").to_arrow_reader(_BATCH_ROWS)
        schema = LIGHT_SCHEMA.with_metadata(
            {FOOTER_KEY: json.dumps({"identity": identity.hash, "derived_from": len(parts)}).encode()}
        )
        batches = (pa.Table.from_batches([batch]).cast(LIGHT_SCHEMA) for batch in stream)
        for number, tables in enumerate(_cut(batches, _sizes(rows, rows_per_file))):
            name = f"scores-{token}-{number:05d}.parquet"
            spooled = spill / name
            count = _write_file(spooled, schema, tables)
            files.append(LightFile(name=name, rows=count, bytes=spooled.stat().st_size))
            with _writing(publisher):
                publisher.upload(f"{LIGHT_FOLDER}/{name}", spooled)
            spooled.unlink()
    finally:
        connection.close()
    return LightMarker(
        identity=identity.hash,
        generations=[row[0] for row in found],
        parts=len(parts),
        parts_sha256=parts_digest(parts),
        rows=rows,
        files=files,
    )


def _open_parts(connection: Any, storage: Storage, parts: list[str]) -> None:
    if is_local(storage):
        connection.read_parquet(parts).create_view("parts")
    else:
        connection.register("parts", open_parts(storage, parts))


def _sizes(rows: int, rows_per_file: int) -> list[int]:
    """Rows of each file: as many files as leave none with fewer than ``rows_per_file``, about equally large."""
    count = max(1, rows // rows_per_file)
    return [rows // count + (1 if number < rows % count else 0) for number in range(count)]


def _cut(tables: Iterator[pa.Table], sizes: list[int]) -> Iterator[Iterator[pa.Table]]:
    """The rows of ``tables`` as consecutive runs of ``sizes`` rows; each is to be consumed before the next."""
    rest: list[pa.Table] = []

    def run(size: int) -> Iterator[pa.Table]:
        while size:
            table = rest.pop() if rest else next(tables)
            if table.num_rows > size:
                rest.append(table.slice(size))
                table = table.slice(0, size)
            size -= table.num_rows
            yield table

    for size in sizes:
        yield run(size)


def _write_file(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> int:
    """One Parquet file with statistics and a page index; returns its rows."""
    texts = [field.name for field in schema if pa.types.is_string(field.type) and field.name != "image_id"]
    rows = waiting = 0
    held: list[pa.Table] = []
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=texts,
        write_statistics=True,
        write_page_index=True,
        write_page_checksum=True,
        sorting_columns=[pq.SortingColumn(schema.get_field_index("image_id"))],
    ) as writer:

        def flush() -> None:
            if held:
                writer.write_table(pa.concat_tables(held), row_group_size=ROW_GROUP_ROWS)
            held.clear()

        for table in tables:
            held.append(table)
            rows, waiting = rows + table.num_rows, waiting + table.num_rows
            if waiting >= ROW_GROUP_ROWS:
                flush()
                waiting = 0
        flush()
    return rows


@contextmanager
def _writing(publisher: Publisher) -> Iterator[None]:
    """Turn what storage clients raise into one sentence."""
    try:
        yield
    except Exception as error:
        if not is_storage_error(error):
            raise
        raise OutputError(
            f"OUTPUT {publisher.storage.url} cannot be written ({explain(error)}); compact needs leave to write there"
        ) from error


def _remove_old(publisher: Publisher, before: LightMarker | None, now: LightMarker) -> None:
    """Remove the files of the marker that was replaced, and those of a ``compact`` that was killed a day ago.

    Best effort: what stays is never read. Younger files may be of a ``compact`` that is still running.
    """
    fs = publisher.storage.fs
    kept = {file.name for file in now.files} | {MARKER.rsplit("/", 1)[-1]}
    replaced = {file.name for file in before.files} if before else set()
    with suppress(Exception):
        fs.invalidate_cache()
        entries = [
            entry for entry in fs.ls(publisher.path(LIGHT_FOLDER), detail=True) if entry["type"] == "file"
        ]
        times = {entry["name"].rsplit("/", 1)[-1]: modified_time(entry) for entry in entries}
        clock = times.get(MARKER.rsplit("/", 1)[-1])
        for name, when in times.items():
            abandoned = when is not None and clock is not None and clock - when > UPLOAD_SECONDS
            if name not in kept and (name in replaced or abandoned):
                with suppress(FileNotFoundError):
                    fs.rm_file(publisher.path(f"{LIGHT_FOLDER}/{name}"))
