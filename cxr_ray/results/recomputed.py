"""The three derived columns computed anew: as SQL, and over a stream of Arrow batches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from cxr_ray.calibration import NEGATIVE, POSITIVE, Readout
from cxr_ray.pipeline.score_table import LUNGS_SMALL

DERIVED: Final = ("p_calibrated", "decision", "threshold_name")
_SOURCES: Final = ("p_covid", "logit", "flags")


class RecomputedScores:
    """The score table with ``p_calibrated``, ``decision`` and ``threshold_name`` at another readout.

    Offers what a ``pyarrow.dataset.Dataset`` offers for reading, with the same arguments (``columns``, ``filter``,
    ``batch_size``, ...): ``schema``, ``scanner``, ``to_table``, ``to_batches``, ``head``, ``count_rows``. Filters on
    other columns are pushed down to the files. It is no Dataset itself: to hand it on, use
    ``scanner(...).to_reader()``.
    """

    def __init__(self, stored: ds.Dataset, readout: Readout) -> None:
        self.stored = stored
        """The table as it was written."""
        self.readout = readout

    @property
    def schema(self) -> pa.Schema:
        """That of the score table."""
        return self.stored.schema

    def scanner(
        self,
        columns: list[str] | dict[str, ds.Expression] | None = None,
        filter: ds.Expression | None = None,
        **options: Any,
    ) -> ds.Scanner:
        """A one-shot scanner, as ``Dataset.scanner``."""
        names = self.schema.names
        expressions = columns.values() if isinstance(columns, dict) else columns or names
        wanted = _named(names, expressions)
        tested = _named(names, [] if filter is None else [filter])
        if not (wanted | tested) & set(DERIVED):
            return self.stored.scanner(columns=columns, filter=filter, **options)
        # A filter on a computed column has to wait until it is computed; its other columns must be read for it.
        late = filter if tested & set(DERIVED) else None
        needed = (wanted | (tested if late is not None else set()) | set(_SOURCES)) - set(DERIVED)
        read = [name for name in names if name in needed]
        early = filter if late is None else None
        stream = self.stored.scanner(columns=read, filter=early, **options).to_batches()
        fields = [field for field in self.schema if field.name in needed or field.name in DERIVED]
        schema = pa.schema(fields)
        batches = (recompute(batch, self.readout, schema) for batch in stream)
        return ds.Scanner.from_batches(
            pa.RecordBatchReader.from_batches(schema, batches),
            columns=names if columns is None else columns,
            filter=late,
        )

    def to_table(self, columns: Any = None, filter: ds.Expression | None = None, **options: Any) -> pa.Table:
        """As ``Dataset.to_table``."""
        return self.scanner(columns, filter, **options).to_table()

    def to_batches(
        self, columns: Any = None, filter: ds.Expression | None = None, **options: Any
    ) -> Iterator[pa.RecordBatch]:
        """As ``Dataset.to_batches``."""
        return self.scanner(columns, filter, **options).to_batches()

    def head(
        self, num_rows: int, columns: Any = None, filter: ds.Expression | None = None, **options: Any
    ) -> pa.Table:
        """As ``Dataset.head``."""
        return self.scanner(columns, filter, **options).head(num_rows)

    def count_rows(self, filter: ds.Expression | None = None, **options: Any) -> int:
        """As ``Dataset.count_rows``."""
        return int(self.scanner(["image_id"], filter, **options).count_rows())


def recompute(batch: pa.RecordBatch, readout: Readout, schema: pa.Schema) -> pa.RecordBatch:
    """``batch`` in the order of ``schema``, its derived columns computed from p_covid, logit and flags."""
    p_covid, logit, flags = (batch.column(name) for name in _SOURCES)
    unscored = p_covid.is_null().to_numpy(zero_copy_only=False)
    undecided = unscored | _with_flag(flags, LUNGS_SMALL)
    count = batch.num_rows
    p_calibrated = pa.nulls(count, pa.float32())
    decision = names = pa.nulls(count, pa.string())
    if readout.slope is not None:
        values = logit.fill_null(0).to_numpy(zero_copy_only=False)
        p_calibrated = pa.array(readout.probability(values).astype(np.float32), mask=unscored)
    if readout.cut is not None:
        above = p_covid.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64) >= readout.cut
        decision = pa.array(np.where(above, POSITIVE, NEGATIVE), pa.string(), mask=undecided)
        names = pa.array(np.full(count, readout.threshold_name), pa.string(), mask=undecided)
    derived = {"p_calibrated": p_calibrated, "decision": decision, "threshold_name": names}
    arrays = [derived[field.name] if field.name in derived else batch.column(field.name) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def replacement_sql(readout: Readout) -> str:
    """What stands in DuckDB's ``SELECT * REPLACE (...)`` to compute the derived columns."""
    p_calibrated = decision = name = "NULL"
    if readout.slope is not None:
        # exp of a large number is infinity, and 1 / infinity is 0, as it should be.
        p_calibrated = f"1 / (1 + exp(-({readout.slope!r} * CAST(logit AS DOUBLE) + {readout.intercept!r})))"
    if readout.cut is not None:
        undecided = f"p_covid IS NULL OR list_contains(flags, '{LUNGS_SMALL}')"
        quoted = str(readout.threshold_name).replace("'", "''")
        decision = (
            f"CASE WHEN {undecided} THEN NULL WHEN CAST(p_covid AS DOUBLE) >= {readout.cut!r} "
            f"THEN '{POSITIVE}' ELSE '{NEGATIVE}' END"
        )
        name = f"CASE WHEN {undecided} THEN NULL ELSE '{quoted}' END"
    return (
        f"CAST({p_calibrated} AS FLOAT) AS p_calibrated, CAST({decision} AS VARCHAR) AS decision, "
        f"CAST({name} AS VARCHAR) AS threshold_name"
    )


def _named(names: list[str], expressions: Any) -> set[str]:
    """Columns that expressions (or plain names) speak of; rather one too many, for a name inside a text."""
    words = set(re.findall(r"\w+", " ".join(str(expression) for expression in expressions)))
    return words & set(names)


def _with_flag(flags: pa.ListArray, flag: str) -> np.ndarray:
    """[B] bool: which rows carry the flag."""
    marked = np.zeros(len(flags), bool)
    hit = pc.equal(pc.list_flatten(flags), flag).to_numpy(zero_copy_only=False)
    marked[pc.list_parent_indices(flags).to_numpy()[hit]] = True
    return marked
