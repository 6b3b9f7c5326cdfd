"""An OUTPUT as tests look at it: its parts with what says that one was written again, on disk or on S3."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.archives.storage import Storage, open_storage


@dataclass(frozen=True)
class Place:
    """One OUTPUT.

    Attributes:
        url: as ``output=`` takes it.
        options: for fsspec; empty on a local disk.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def storage(self) -> Storage:
        """A fresh view: its filesystem is this thread's own."""
        return open_storage(self.url, self.options)

    def job_options(self, place: str = "output") -> list[str]:
        """``output_options.key=value ...`` for a job's command line."""
        return [f"{place}_options.{name}={value}" for name, value in self.options.items()]

    def cli_options(self, place: str = "output") -> list[str]:
        """The same for ``cxr-ray``."""
        return [word for k, v in self.options.items() for word in (f"--{place}-option", f"{k}={v}")]

    def look(self) -> Look:
        """Open it for looking at; one per thread."""
        storage = self.storage
        return Look(storage, local=Path(storage.path) if storage.is_local else None)


@dataclass(frozen=True)
class Look:
    """Reads the table's folder as a stranger would who knows nothing of jobs."""

    storage: Storage
    local: Path | None

    def parts(self) -> dict[str, tuple[Any, ...]]:
        """Name of everything in the table's folder -> what changes when it is written again."""
        if self.local is not None:
            return {path.name: _local_stamp(path) for path in (self.local / "scores").glob("*")}
        fs = self.storage.fs
        fs.invalidate_cache()
        try:
            entries = fs.ls(f"{self.storage.path}/scores", detail=True)
        except FileNotFoundError:
            return {}
        return {e["name"].rsplit("/", 1)[-1]: (e["ETag"], str(e["LastModified"]), e["size"]) for e in entries}

    def read(self, name: str) -> pa.Table:
        """Every column of one part, page checksums compared."""
        if self.local is not None:
            data = (self.local / "scores" / name).read_bytes()
        else:
            data = self.storage.fs.cat_file(f"{self.storage.path}/scores/{name}")
        return pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()

    def table(self) -> pa.Table:
        """The whole table, sorted by image_id, without the footers."""
        tables = [self.read(name).replace_schema_metadata(None) for name in sorted(self.parts())]
        return pa.concat_tables(tables).sort_by("image_id")

    def files(self) -> dict[str, Callable[[], bytes]]:
        """Every file of OUTPUT, with what reads it."""
        fs = self.storage.fs
        fs.invalidate_cache()
        return {name: (lambda name=name: fs.cat_file(name)) for name in fs.find(self.storage.path)}


def _local_stamp(path: Path) -> tuple[Any, ...]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ino, status.st_size
