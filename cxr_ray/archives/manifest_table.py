"""Read a manifest file: its columns in batches, or its rows sorted by address."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cxr_ray.archives.addresses import manifest_addresses
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
    "size": ("size",),
    "etag": ("etag", "e_tag", "version"),
    "modified": ("last_modified", "last_modified_date", "mtime"),
}
#: What a manifest says about an input, and the table keeps.
SAID = ("patient", "study", "label", "view", "sex", "age")
_FACTS = ("size", "etag", "modified")
_BATCH = 4096
_BATCH_ROWS = 50_000
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestOptions:
    """How to read a manifest."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name -> the manifest's column, for uri, member, patient, study, label, view, sex, age, size, etag and
    modified."""
    root: str | None = None
    """Address that relative uris are relative to; default: the folder of the manifest."""
    carry: Sequence[str] = ()
    """Columns of the manifest to keep in the table's ``carry``."""
    inventory: bool | None = None
    """Whether size and version are taken from the manifest; None: where it has columns of such names, and none
    of member names."""


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One row: canonical address, member name or None, and the ArchiveInput fields it fills."""

    uri: str
    member: str | None
    said: dict[str, Any]


class Manifest:
    """An open manifest.

    Attributes:
        ours: our name -> the manifest's column, for the columns that are read.
        is_inventory: whether it says size and version of what it names.
    """

    def __init__(self, file: BinaryIO, storage: Storage, options: ManifestOptions) -> None:
        self._file, self._parquet, self._delimiter = file, None, ","
        if storage.path.lower().endswith(".parquet"):
            # A buffer makes it read column chunks piece by piece, however large the file's row groups are.
            self._parquet = pq.ParquetFile(file, buffer_size=_BLOCK_BYTES)
            found = list(self._parquet.schema_arrow.names)
        else:
            found, self._delimiter = _csv_header(file)
        chosen = _choose(found, options)
        self.is_inventory = _is_inventory(chosen, options)
        self.ours = {
            name: column for name, column in chosen.items() if self.is_inventory or name not in _FACTS
        }
        self._wanted = list(dict.fromkeys([*self.ours.values(), *options.carry]))
        for column in self._wanted:
            if found.count(column) != 1:
                how = "has no column" if column not in found else "has more than one column"
                raise ArchiveError(f"The manifest {how} {column!r}. Columns found: {_listed(found)}.")

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The wanted columns in the manifest's order: text where the file is CSV, else as they are stored."""
        if self._parquet is not None:
            yield from self._parquet.iter_batches(_BATCH_ROWS, columns=self._wanted)
            return
        self._file.seek(0)
        yield from pa_csv.open_csv(
            self._file,
            read_options=pa_csv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=pa_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                include_columns=self._wanted,
                column_types={name: pa.string() for name in self._wanted},
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
                null_values=[""],
            ),
        )


@contextmanager
def open_manifest(storage: Storage, options: ManifestOptions) -> Iterator[Manifest]:
    """Open the .csv or .parquet manifest at the root of ``storage``.

    Raises (there, or while it is read):
        ArchiveError: no uri column, a column that was asked for is not there or stands twice, or no table.
    """
    unknown = sorted(set(options.columns) - set(ALIASES))
    if unknown:
        raise ArchiveError(
            f"Unknown manifest column names: {', '.join(unknown)}; known are {', '.join(ALIASES)}."
        )
    try:
        with open_file(storage, storage.path, facts(storage, storage.path)) as file:
            yield Manifest(file, storage, options)
    except CxrRayError:
        raise
    except (pa.ArrowException, UnicodeDecodeError, csv.Error, ValueError, OSError) as error:
        # pyarrow's text quotes cells, which may hold identifiers; the kind of error is enough.
        kind = "Parquet" if storage.path.lower().endswith(".parquet") else "UTF-8 CSV"
        raise ArchiveError(
            f"The manifest {storage.url} cannot be read as {kind} ({type(error).__name__}); "
            "check that every row has as many fields as the header."
        ) from error


def read_rows(storage: Storage, options: ManifestOptions, report: ListingReport) -> Iterator[ManifestRow]:
    """Yield the rows of a manifest, sorted by (uri, member), without member first.

    Every value is text, as written (so "007" stays "007"); empty values are None. Columns that no option
    or alias asks for are not read. Held in memory: the columns read, as Arrow text.

    Raises ArchiveError, as ``open_manifest``.
    """
    addresses = manifest_addresses(storage, options.root)
    with open_manifest(storage, options) as manifest:
        ours = manifest.ours
        kept = list(dict.fromkeys([ours[name] for name in SAID if name in ours] + list(options.carry)))
        batches = []
        for batch in manifest.batches():
            uri = addresses.canonical(batch.column(ours["uri"]).cast(pa.string()))
            member = (
                batch.column(ours["member"]).cast(pa.string()) if "member" in ours else pa.nulls(len(uri))
            )
            columns = {name: batch.column(name).cast(pa.string()) for name in kept}
            columns |= {"\0uri": uri, "\0member": pc.fill_null(member.cast(pa.string()), "")}
            # As written the addresses are not needed again; in millions of rows they would take half the memory.
            found = pa.table(columns).filter(pc.is_valid(uri))
            report.rows_without_uri += len(uri) - len(found)
            batches.append(found)
    if not batches:
        return
    table = pa.concat_tables(batches)
    del batches
    # Row numbers make the order of equal keys that of the manifest.
    table = table.append_column("\0row", pa.array(np.arange(len(table))))
    order = pc.sort_indices(table, sort_keys=[(key, "ascending") for key in ("\0uri", "\0member", "\0row")])
    for start in range(0, len(order), _BATCH):
        for row in table.take(order.slice(start, _BATCH)).to_pylist():
            said: dict[str, Any] = {name: row[ours[name]] or None for name in SAID if name in ours}
            if options.carry:
                said["carry"] = tuple((name, row[name]) for name in options.carry if row[name])
            yield ManifestRow(row["\0uri"], row["\0member"] or None, said)


def _is_inventory(chosen: dict[str, str], options: ManifestOptions) -> bool:
    able = "size" in chosen and ("etag" in chosen or "modified" in chosen) and "member" not in chosen
    if options.inventory and not able:
        raise ArchiveError(
            "manifest.inventory=true needs columns size and etag (or last_modified), and none named member; name "
            "yours in the manifest's columns."
        )
    return able if options.inventory is None else options.inventory


def _csv_header(file: BinaryIO) -> tuple[list[str], str]:
    head = file.read(1 << 20).decode("utf-8-sig", "replace")
    first_line = head.split("\n", 1)[0]
    delimiter = max(",;\t", key=first_line.count)
    row = next(csv.reader(io.StringIO(head), delimiter=delimiter), [])
    return row, delimiter


def _choose(found: list[str], options: ManifestOptions) -> dict[str, str]:
    """Our name -> theirs, by option or alias."""
    ours: dict[str, str] = {}
    for name, aliases in ALIASES.items():
        if name in options.columns:
            ours[name] = options.columns[name]
        else:
            match = [column for alias in aliases for column in found if column.lower() == alias]
            if match:
                ours[name] = match[0]
    if "uri" not in ours:
        raise ArchiveError(
            "The manifest has no column uri (or file, or path); name yours in the manifest's columns. "
            f"Columns found: {_listed(found)}."
        )
    return ours


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
