"""Search for secrets in everything that a job leaves: what it said, files, tables from inside, folders of logs."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq


def found_in_bytes(name: str, data: bytes, secrets: Mapping[str, str]) -> Iterator[str]:
    """One line per secret in ``data``; a Parquet file is also read: every value, its schema and its footer."""
    seen = data
    if data[:4] == b"PAR1" and data[-4:] == b"PAR1":
        file = pq.ParquetFile(io.BytesIO(data))
        metadata = file.metadata.metadata or {}
        seen += repr(file.read().to_pylist()).encode() + repr(metadata).encode()
        seen += b"".join([*metadata.keys(), *metadata.values()])
    for kind, secret in secrets.items():
        if secret.encode() in seen:
            yield f"{kind} in {name}"


def found_in_files(files: Mapping[str, Callable[[], bytes]], secrets: Mapping[str, str]) -> list[str]:
    """The same over files, by name."""
    found = [line for name, read in files.items() for line in found_in_bytes(name, read(), secrets)]
    return found + [
        f"{kind} in the name {name}" for name in files for kind, s in secrets.items() if s in name
    ]


def found_in_folder(folder: Path, secrets: Mapping[str, str]) -> list[str]:
    """The same over every regular file below ``folder``."""
    files = {str(path): path.read_bytes for path in folder.rglob("*") if path.is_file()}
    return found_in_files(files, secrets)
