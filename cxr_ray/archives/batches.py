"""Plain files in columns: how inventories hand over millions of inputs without an object for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from cxr_ray.archives.inputs import ArchiveInput


@dataclass(frozen=True, kw_only=True, slots=True)
class FileBatch:
    """Inputs of kind "file", one array each of equal length.

    Attributes:
        uri: canonical addresses (string, no nulls).
        size: encoded bytes (int64, null where not known).
        version: as ``ArchiveInput.version`` (string, null where not known).
        said: of patient, study, label, view, sex and age, those that the user's manifest has (string).
        carry: the manifest's columns that the user wants in the table (string), in the order asked for.
    """

    uri: pa.Array
    size: pa.Array
    version: pa.Array
    said: dict[str, pa.Array] = field(default_factory=dict)
    carry: dict[str, pa.Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.uri)

    def slice(self, start: int, stop: int) -> FileBatch:
        """Rows ``start`` to ``stop - 1``."""
        length = stop - start
        return FileBatch(
            uri=self.uri.slice(start, length),
            size=self.size.slice(start, length),
            version=self.version.slice(start, length),
            said={name: column.slice(start, length) for name, column in self.said.items()},
            carry={name: column.slice(start, length) for name, column in self.carry.items()},
        )

    def inputs(self) -> Iterator[ArchiveInput]:
        """The same rows as objects."""
        said = {name: column.to_pylist() for name, column in self.said.items()}
        carry = {name: column.to_pylist() for name, column in self.carry.items()}
        rows = zip(self.uri.to_pylist(), self.size.to_pylist(), self.version.to_pylist(), strict=True)
        for number, (uri, size, version) in enumerate(rows):
            fields = {name: column[number] for name, column in said.items()}
            if carry:
                pairs = tuple((name, column[number]) for name, column in carry.items() if column[number])
                fields["carry"] = pairs
            yield ArchiveInput(uri=uri, size=size, version=version, **fields)
