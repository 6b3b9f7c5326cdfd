"""Join examples with the shards of ``jobs/ingest.py``: one contiguous array of equalised frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cxr_ray.archives.addresses import Addresses
from cxr_ray.archives.inputs import image_id
from cxr_ray.archives.storage import Storage, explain, is_storage_error, open_storage
from cxr_ray.errors import ChangedInput, MissingInput, StorageReadError, TrainingDataError
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.preprocess import COLUMNS, ROWS
from cxr_ray.shards import READY, SHARD_FOLDER, iter_pixels
from training.data.example import Example
from training.data.units import Links, with_units

_BATCH = 256  # rows decoded at a time: 26 MB of pixels
_LIGHT = ["image_id", "uri", "member", "content_sha256", "image_rows", "image_columns", "status", "reason"]
_SHOWN = 5
_GONE = {MissingInput.code, ChangedInput.code}


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Examples with their pixels, sorted by the examples' id. All lists are aligned."""

    pixels_NHW: NDArray[np.uint8]
    """Equalised frames ``[N, 300, 340]``, contiguous."""
    image_id: list[str]
    """32 hex digits; a picture with two masks stands here twice."""
    content_sha256: list[str | None]
    """Of the encoded bytes; None for DICOM read in a way that has none."""
    examples: list[Example]
    """The manifest's rows, with their ``unit_key``."""
    source_rows: NDArray[np.int32]
    """Height of the original picture ``[N]``, in pixels."""
    source_columns: NDArray[np.int32]
    """Width of the original picture ``[N]``, in pixels."""
    dropped: dict[str, int]
    """Examples left out, by the reason for which the shards quarantined their picture."""

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def links(self) -> Links:
        """What belongs together whatever the manifest says: rows of one picture, and files of one content."""
        return [self.image_id, self.content_sha256]

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        """The frames at ``indices``, in that order; ``dropped`` is kept. Copies the pixels."""
        chosen = [int(index) for index in indices]
        return replace(
            self,
            pixels_NHW=np.ascontiguousarray(self.pixels_NHW[chosen]),
            image_id=[self.image_id[index] for index in chosen],
            content_sha256=[self.content_sha256[index] for index in chosen],
            examples=[self.examples[index] for index in chosen],
            source_rows=self.source_rows[chosen],
            source_columns=self.source_columns[chosen],
        )


def load_frames(
    shards_url: str,
    examples: Sequence[Example],
    *,
    options: Mapping[str, Any] | None = None,
    root: str,
    key: bytes | None = None,
) -> Frames:
    """Read the pixels of ``examples``; other rows of the shards are passed over.

    An example is found by its address (``file`` resolved against ``root``, and member), else, for shards
    without addresses, by its keyed image_id (where ``key`` is given), else by ``carry['id']`` (ingest with
    ``carry=[id]``), which also finds pictures that were ingested from another place.

    Args:
        shards_url: OUTPUT of ``jobs/ingest.py``.
        examples: of ``read_manifest``; best only those that are wanted.
        options: fsspec options of the shards.
        root: see ``manifest_root``.
        key: secret of an ingest with ``keep_uri=false`` (``cxr_ray.pipeline.privacy.read_key``).

    Raises:
        TrainingDataError: no shards there, an example that the shards do not have, a picture that was
            missing or had changed when it was ingested, or no frame left.
        StorageReadError: the storage failed.
    """
    storage = open_storage(shards_url, options)
    with _storage_errors(storage):
        parts = [name for name in Publisher(storage).names(SHARD_FOLDER) if name.endswith(".parquet")]
    if not parts:
        raise TrainingDataError(f"{storage.url} holds no shards; give shards=OUTPUT of jobs/ingest.py")
    rows = _match(storage, parts, examples, Addresses(open_storage(root, options)), key)
    found = _found(examples, rows)
    dropped = Counter(row["reason"] or row["status"] for _, row in found if row["status"] != READY)
    kept = sorted(
        ((example, row) for example, row in found if row["status"] == READY),
        key=lambda pair: pair[0].id,
    )
    if not kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
        raise TrainingDataError(f"no picture is left of {len(examples)} ({reasons or 'the list was empty'})")
    names: list[str] = [row["image_id"] for _, row in kept]
    content: list[str | None] = [row["content_sha256"] for _, row in kept]
    return Frames(
        pixels_NHW=_pixels(storage, [row for _, row in kept]),
        image_id=names,
        content_sha256=content,
        examples=with_units([example for example, _ in kept], [names, content]),
        source_rows=np.array([row["image_rows"] or 0 for _, row in kept], np.int32),
        source_columns=np.array([row["image_columns"] or 0 for _, row in kept], np.int32),
        dropped=dict(sorted(dropped.items())),
    )


def _match(
    storage: Storage,
    parts: Sequence[str],
    examples: Sequence[Example],
    addresses: Addresses,
    key: bytes | None,
) -> list[dict[str, Any] | None]:
    """The shard row (light columns, and ``part``) of each example; None where there is none."""
    by_address: dict[Any, list[int]] = {}
    by_id: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        uri = addresses.resolve(example.file)
        by_address.setdefault((uri, _plain(example.member)), []).append(index)
        if key is not None:
            by_address.setdefault(image_id(uri, example.member, 0, key).hex(), []).append(index)
        by_id.setdefault(example.id, []).append(index)
    found: list[dict[str, Any] | None] = [None] * len(examples)
    by_carry: dict[int, list[dict[str, Any]]] = {}
    for part in parts:
        for row in _light_rows(storage, part):
            name = row["image_id"] if row["uri"] is None else (row["uri"], _plain(row["member"]))
            for index in by_address.get(name, ()):
                before = found[index]
                # A container may hold a name several times; the first one is meant, as an archiver would.
                if before is None or _is_first(row):
                    found[index] = row
            for index in by_id.get(row["id"] or "", ()):
                by_carry.setdefault(index, []).append(row)
    for index, candidates in by_carry.items():
        if found[index] is None:
            if len({row["image_id"] for row in candidates}) > 1:
                raise TrainingDataError(
                    f"{examples[index].called} fits {len(candidates)} rows of the shards by its id; ids must be "
                    "unique over everything that was ingested"
                )
            found[index] = candidates[0]
    return found


def _is_first(row: Mapping[str, Any]) -> bool:
    """Whether a shard row is the first occurrence of its member name in its container."""
    return row["uri"] is not None and row["image_id"] == image_id(row["uri"], row["member"]).hex()


def _plain(member: str | None) -> str | None:
    """A member name as people write it: many tar files spell a.png as ./a.png."""
    while member is not None and member.startswith("./"):
        member = member[2:]
    return member


def _light_rows(storage: Storage, part: str) -> Iterator[dict[str, Any]]:
    with _open_part(storage, part) as file:
        for batch in file.iter_batches(batch_size=8192, columns=[*_LIGHT, "carry"]):
            for row in batch.to_pylist():
                yield {**row, "id": dict(row.pop("carry") or ()).get("id"), "part": part}


def _found(
    examples: Sequence[Example], rows: Sequence[dict[str, Any] | None]
) -> list[tuple[Example, dict[str, Any]]]:
    pairs = list(zip(examples, rows, strict=True))
    absent = [example for example, row in pairs if row is None]
    if absent:
        raise TrainingDataError(
            f"{len(absent)} of {len(examples)} pictures of the manifest are not in the shards ({_names(absent)}); "
            "run jobs/ingest.py archive=MANIFEST to its end, with the same manifest and the same root"
        )
    gone = [example for example, row in pairs if row is not None and row["reason"] in _GONE]
    if gone:
        raise TrainingDataError(
            f"{len(gone)} of {len(examples)} pictures of the manifest were not there, or had changed, when they "
            f"were ingested ({_names(gone)}); restore them and ingest into a new OUTPUT, or drop the rows"
        )
    return [(example, row) for example, row in pairs if row is not None]


def _pixels(storage: Storage, rows: Sequence[dict[str, Any]]) -> NDArray[np.uint8]:
    """Frames of ``rows``, in their order; each part is read once, a batch at a time."""
    pixels_NHW = np.empty((len(rows), ROWS, COLUMNS), np.uint8)
    places: dict[str, dict[str, list[int]]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row["part"], {}).setdefault(row["image_id"], []).append(place)
    filled = 0
    for part, wanted in places.items():
        with _open_part(storage, part) as file:
            for batch in file.iter_batches(batch_size=_BATCH, columns=["image_id", "pixels"]):
                table = pa.Table.from_batches([batch])
                for name, buffer in zip(
                    table.column("image_id").to_pylist(), iter_pixels(table), strict=True
                ):
                    if buffer is None:
                        continue
                    for place in wanted.get(name, ()):
                        pixels_NHW[place] = np.frombuffer(buffer, np.uint8).reshape(ROWS, COLUMNS)
                        filled += 1
    if filled != len(rows):
        raise StorageReadError(f"the shards at {storage.url} changed while they were read; run again")
    return pixels_NHW


@contextmanager
def _open_part(storage: Storage, part: str) -> Iterator[pq.ParquetFile]:
    with (
        _storage_errors(storage),
        storage.fs.open(f"{storage.path.rstrip('/')}/{SHARD_FOLDER}/{part}", "rb") as handle,
    ):
        yield pq.ParquetFile(handle)


@contextmanager
def _storage_errors(storage: Storage) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise TrainingDataError(
            f"a shard at {storage.url} cannot be read ({type(error).__name__}); ingest into a new OUTPUT"
        ) from error
    except Exception as error:
        if not is_storage_error(error):
            raise
        raise StorageReadError(f"the shards at {storage.url} cannot be read: {explain(error)}") from error


def _names(examples: Sequence[Example]) -> str:
    shown = "; ".join(example.called for example in examples[:_SHOWN])
    return shown + ("; ..." if len(examples) > _SHOWN else "")
