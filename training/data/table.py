"""Read the columns of a CSV or Parquet manifest as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cxr_ray.archives.storage import Storage, explain, is_storage_error
from cxr_ray.errors import StorageReadError, TrainingDataError


def read_text_columns(
    storage: Storage, chosen: Mapping[str, str], aliases: Mapping[str, Sequence[str]]
) -> dict[str, list[str | None]]:
    """The columns of a manifest, as text, trimmed, empty cells None.

    Args:
        storage: the manifest; Parquet where the name ends so, else CSV with comma, semicolon or tab.
        chosen: our name -> the manifest's column, where the user says.
        aliases: our name -> what the column may be called otherwise, case ignored, first match wins.

    Returns:
        our name -> cells in the order of the manifest; names without a column are absent.

    Raises:
        TrainingDataError: not there, no table, or a chosen column that is not there or stands twice.
        StorageReadError: the storage failed.
    """
    unknown = sorted(set(chosen) - set(aliases))
    if unknown:
        raise TrainingDataError(
            f"manifest.columns names {', '.join(unknown)}, which is none of {', '.join(aliases)}"
        )
    try:
        with storage.fs.open(storage.path, "rb") as file:
            table, ours = _read(file, storage, chosen, aliases)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise TrainingDataError(f"there is no manifest at {storage.url}; give manifest.path=FILE") from error
    except (pa.ArrowException, UnicodeDecodeError, csv.Error, ValueError) as error:
        # pyarrow's text quotes cells, which may hold identifiers; the kind of error is enough.
        raise TrainingDataError(
            f"the manifest {storage.url} cannot be read as CSV or Parquet ({type(error).__name__}); "
            "check that every row has as many fields as the header"
        ) from error
    except Exception as error:
        if not is_storage_error(error):
            raise
        raise StorageReadError(f"the manifest {storage.url} cannot be read: {explain(error)}") from error
    return {
        name: [(cell or "").strip() or None for cell in table.column(theirs).to_pylist()]
        for name, theirs in ours.items()
    }


def _read(
    file: BinaryIO, storage: Storage, chosen: Mapping[str, str], aliases: Mapping[str, Sequence[str]]
) -> tuple[pa.Table, dict[str, str]]:
    if storage.path.lower().endswith(".parquet"):
        parquet = pq.ParquetFile(file)
        ours = _choose(list(parquet.schema_arrow.names), chosen, aliases)
        table = parquet.read(columns=list(dict.fromkeys(ours.values())))
        return table.cast(pa.schema([(name, pa.large_string()) for name in table.column_names])), ours
    head = file.read(1 << 20).decode("utf-8-sig", "replace")
    first_line = head.split("\n", 1)[0]
    delimiter = max(",;\t", key=first_line.count)
    ours = _choose(next(csv.reader(io.StringIO(head), delimiter=delimiter), []), chosen, aliases)
    wanted = list(dict.fromkeys(ours.values()))
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


def _choose(
    found: list[str], chosen: Mapping[str, str], aliases: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    ours: dict[str, str] = {}
    for name, others in aliases.items():
        if name in chosen:
            ours[name] = chosen[name]
        else:
            match = [column for alias in others for column in found if column.lower() == alias]
            if match:
                ours[name] = match[0]
    columns = ", ".join(found) or "none"
    if "file" not in ours:
        raise TrainingDataError(
            f"the manifest has no column {' or '.join(aliases['file'])}; "
            f"name yours with manifest.columns.file=NAME (columns found: {columns})"
        )
    for name, column in ours.items():
        if found.count(column) != 1:
            how = "has no column" if column not in found else "has more than one column"
            raise TrainingDataError(
                f"the manifest {how} {column!r}, which is to be read as {name}; "
                f"mend manifest.columns (columns found: {columns})"
            )
    return ours
