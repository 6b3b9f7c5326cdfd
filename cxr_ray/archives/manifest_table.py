"""Read a manifest file into rows sorted by address, compactly enough for millions of them."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cxr_ray.archives.exclude import ListingReport
from cxr_ray.archives.fetch import facts, open_file
from cxr_ray.archives.storage import Storage
from cxr_ray.errors import ArchiveError, CxrRayError

# Our name -> what the column may be called, case ignored, when the options do not say.
ALIASES: dict[str, tuple[str, ...]] = {
    "uri": ("uri", "file", "path"),
    "member": ("member",),
    "patient": ("patient", "patient_id"),
    "study": ("study", "study_id"),
    "label": ("label",),
    "view": ("view",),
    "sex": ("sex",),
    "age": ("age", "age_years"),
}
_SAID = ("patient", "study", "label", "view", "sex", "age")
_BATCH = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestOptions:
    """How to read a manifest."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name -> the manifest's column, for uri, member, patient, study, label, view, sex and age."""
    root: str | None = None
    """Address that relative uris are relative to; default: the folder of the manifest."""
    carry: Sequence[str] = ()
    """Columns of the manifest to keep in the table's ``carry``."""


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One row: canonical address, member name or None, and the ArchiveInput fields it fills."""

    uri: str
    member: str | None
    said: dict[str, Any]


def read_rows(storage: Storage, options: ManifestOptions, report: ListingReport) -> Iterator[ManifestRow]:
    """Yield the rows of a .csv or .parquet manifest, sorted by (uri, member), without member first.

    Every value is text, as written (so "007" stays "007"); empty values are None. Columns that no option
    or alias asks for are not read. Held in memory: the columns read, as Arrow text.

    Raises:
        ArchiveError: no uri column, a column that was asked for is not there or stands twice, or no table.
    """
    carry = list(options.carry)
    unknown = sorted(set(options.columns) - set(ALIASES))
    if unknown:
        raise ArchiveError(
            f"Unknown manifest column names: {', '.join(unknown)}; known are {', '.join(ALIASES)}."
        )
    table, ours = _read_columns(storage, options, carry)
    theirs = table.column(ours["uri"])
    table = table.append_column("\0uri", _canonical(theirs, storage, options.root))
    table = table.filter(pc.is_valid(table.column("\0uri")))
    report.rows_without_uri += len(theirs) - len(table)
    members = table.column(ours["member"]) if "member" in ours else pa.nulls(len(table), pa.large_string())
    table = table.append_column("\0member", pc.fill_null(members, ""))
    # Row numbers make the order of equal keys that of the manifest.
    table = table.append_column("\0row", pa.array(range(len(table)), pa.int64()))
    order = pc.sort_indices(table, sort_keys=[(key, "ascending") for key in ("\0uri", "\0member", "\0row")])
    for start in range(0, len(order), _BATCH):
        for row in table.take(order.slice(start, _BATCH)).to_pylist():
            said: dict[str, Any] = {name: row[ours[name]] or None for name in _SAID if name in ours}
            if carry:
                said["carry"] = tuple((name, row[name]) for name in carry if row[name])
            yield ManifestRow(row["\0uri"], row["\0member"] or None, said)


def _read_columns(
    storage: Storage, options: ManifestOptions, carry: list[str]
) -> tuple[pa.Table, dict[str, str]]:
    """Return the wanted columns as text, and our name -> theirs."""
    try:
        with open_file(storage, storage.path, facts(storage, storage.path)) as file:
            if storage.path.lower().endswith(".parquet"):
                parquet = pq.ParquetFile(file)
                found = list(parquet.schema_arrow.names)
                ours = _choose(found, options, carry)
                table = parquet.read(columns=_distinct([*ours.values(), *carry]))
                return table.cast(pa.schema([(name, pa.large_string()) for name in table.column_names])), ours
            found, delimiter = _csv_header(file)
            ours = _choose(found, options, carry)
            wanted = _distinct([*ours.values(), *carry])
            file.seek(0)
            table = pa_csv.read_csv(
                file,
                parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=wanted,
                    column_types={name: pa.large_string() for name in wanted},
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                    null_values=[""],
                ),
            )
            return table, ours
    except CxrRayError:
        raise
    except (pa.ArrowException, UnicodeDecodeError, csv.Error, ValueError, OSError) as error:
        # pyarrow's text quotes cells, which may hold identifiers; the kind of error is enough.
        kind = "Parquet" if storage.path.lower().endswith(".parquet") else "UTF-8 CSV"
        raise ArchiveError(
            f"The manifest {storage.url} cannot be read as {kind} ({type(error).__name__}); "
            "check that every row has as many fields as the header."
        ) from error


def _csv_header(file: BinaryIO) -> tuple[list[str], str]:
    head = file.read(1 << 20).decode("utf-8-sig", "replace")
    first_line = head.split("\n", 1)[0]
    delimiter = max(",;\t", key=first_line.count)
    row = next(csv.reader(io.StringIO(head), delimiter=delimiter), [])
    return row, delimiter


def _choose(found: list[str], options: ManifestOptions, carry: list[str]) -> dict[str, str]:
    ours: dict[str, str] = {}
    for name, aliases in ALIASES.items():
        if name in options.columns:
            ours[name] = options.columns[name]
        else:
            match = [column for alias in aliases for column in found if column.lower() == alias]
            if match:
                ours[name] = match[0]
    columns = ", ".join(found) or "none"
    if "uri" not in ours:
        raise ArchiveError(
            "The manifest has no column uri (or file, or path); name yours in the manifest's columns. "
            f"Columns found: {columns}."
        )
    for column in [*ours.values(), *carry]:
        if found.count(column) != 1:
            how = "has no column" if column not in found else "has more than one column"
            raise ArchiveError(f"The manifest {how} {column!r}. Columns found: {columns}.")
    return ours


def _distinct(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _canonical(column: pa.ChunkedArray, storage: Storage, root: str | None) -> pa.ChunkedArray:
    """Turn uris as written into canonical ones; empty ones become null."""
    base = storage.at(root) if root else storage.at(storage.url.rsplit("/", 1)[0] or storage.url)
    by_protocol = {storage.protocol: storage}

    def canonical(text: str | None) -> str | None:
        text = (text or "").strip()
        if not text:
            return None
        if "://" in text:
            protocol = text.split("://")[0]
            if protocol not in by_protocol:
                by_protocol[protocol] = storage.at(text)
            owner = by_protocol[protocol]
            return owner.uri_of(owner.path_of(text))
        if text.startswith(("/", "~")):
            return storage.at(text).url
        joined = f"{base.path.rstrip('/')}/{text}"
        if any(part in ("", ".", "..") for part in text.split("/")):
            joined = posixpath.normpath(joined)
        return base.uri_of(joined)

    chunks = [pa.array(map(canonical, chunk.to_pylist()), pa.large_string()) for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.large_string())
