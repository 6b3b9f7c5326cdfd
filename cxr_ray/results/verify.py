"""Proof that an OUTPUT is complete: every planned image is exactly one row, and nothing else is there.

Parts are read whole (so that damage anywhere in a file is found) and compared with the plan in DuckDB, which
spills to disk: a table of ten million rows needs no more memory than one of ten thousand. Works on score
tables and on shards.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Final

import pyarrow as pa

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.pipeline.identity import KIND_SCORES, KIND_SHARDS, Identity
from cxr_ray.pipeline.parts import folder_of, part_name
from cxr_ray.pipeline.plan import Plan, Unit, open_plan
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.results.light import light_state
from cxr_ray.results.part_check import PartReport, check_part
from cxr_ray.results.query import import_duckdb
from cxr_ray.results.source_check import SourceReport, check_sources
from cxr_ray.results.table import folder_files, is_part, open_output

READERS: Final = {KIND_SCORES: 8, KIND_SHARDS: 2}
"""Parts read at a time. Reading a store waits for the network; a shard takes 100 MB while it is read."""

MEMORY_LIMIT: Final = "1GB"
"""What DuckDB keeps in memory; tables and joins beyond it go to disk (TMPDIR)."""

_EXAMPLES: Final = 5


@dataclass(kw_only=True)
class Verification:
    """What was found. ``complete`` is the verdict; ``problems`` says what is missing or wrong."""

    output: str
    kind: str = ""
    identity: str = ""
    generations: int = 0
    units: int = 0
    parts: int = 0
    planned: int = 0
    kept: int = 0
    """Rows scored (or, for shards, ready)."""
    quarantined: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Quarantine reasons and how often each occurs."""
    missing_units: int = 0
    light: str = ""
    """``current``, ``stale``, ``damaged`` or ``absent``: whether queries can use the light copy. Not a fault."""
    light_line: str = ""
    """The same with its figures, for people."""
    source: SourceReport | None = None
    """Originals that changed or went since planning; None unless asked for. Not a fault of the table."""
    problems: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True: planned = kept + quarantined, every id once, every part sound, nothing else there."""
        return not self.problems


def verify_output(
    output: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    plan: str | os.PathLike[str] | None = None,
    plan_options: Mapping[str, Any] | None = None,
    source: bool = False,
    archive_options: Mapping[str, Any] | None = None,
) -> Verification:
    """Compare the published parts of ``output`` with its plan.

    Args:
        source: also compare every planned file and container with what lies there now.
        plan: where the plan lies if not in ``output`` (``plan_dir`` of a run with ``keep_uri=false``).

    Raises:
        OutputError: nothing of cxr_ray there, or its identity is damaged.
        UsageError: ``source``, and the archive's storage does not answer.
        MissingExtra: DuckDB is not installed.
    """
    storage, identity = open_output(output, storage_options)
    plan_storage = storage if plan is None else open_storage(os.fspath(plan), plan_options)
    found = Verification(output=storage.url, kind=identity.kind, identity=identity.hash)
    chain = open_plan(Publisher(plan_storage))
    found.generations = len(chain.generations)
    if not chain.generations:
        found.problems.append(
            f"no committed plan in {plan_storage.url}; run the job again, or name its plan folder with --plan-dir"
        )
        return found
    with tempfile.TemporaryDirectory(prefix="cxr-ray-verify-") as spill:
        connection = import_duckdb().connect(
            ":memory:", config={"temp_directory": spill, "memory_limit": MEMORY_LIMIT}
        )
        units = _load_plan(connection, chain, identity, found)
        _load_parts(connection, storage, units, identity, found)
        _compare(connection, found)
        connection.close()
    if identity.kind == KIND_SCORES:
        parts = [path for path in folder_files(storage, folder_of(identity.kind)) if is_part(path)]
        state = light_state(storage, parts)
        found.light, found.light_line = state.verdict, state.line(len(parts))
    if source:
        found.source = check_sources(chain, archive_options)
    return found


def proof_lines(found: Verification) -> list[str]:
    """The proof, or what is missing from it, for people."""
    kept = "scored" if found.kind == KIND_SCORES else "ready"
    sign = "=" if found.planned == found.kept + found.quarantined else "is not"
    lines = [
        f"{'COMPLETE' if found.complete else 'NOT COMPLETE'}: {found.output}",
        f"planned {found.planned} {sign} {kept} {found.kept} + quarantined {found.quarantined}",
        f"parts {found.parts} of {found.units}, generations {found.generations}",
        f"identity {found.identity}",
    ]
    lines += [f"quarantined as {reason}: {count}" for reason, count in found.reasons.items()]
    if found.complete:
        lines.append("every planned image_id is in exactly one row, every part was read whole")
    lines += [f"problem: {problem}" for problem in found.problems]
    if found.light_line:
        lines.append(found.light_line)
    if found.source is not None:
        changed, missing = found.source.changed, found.source.missing
        lines.append(f"source: {len(changed)} originals changed and {len(missing)} are gone since planning")
        lines += [f"changed: {image_id}" for image_id in changed]
        lines += [f"missing: {image_id}" for image_id in missing]
    return lines


def proof_json(found: Verification) -> dict[str, Any]:
    """The same as one JSON-ready mapping."""
    record = {"complete": found.complete, **asdict(found)}
    del record["light_line"]
    return record


def _load_plan(connection: Any, chain: Plan, identity: Identity, found: Verification) -> list[Unit]:
    """Planned ids into table ``planned``; the markers against identity and units."""
    units = chain.units()
    found.units, found.planned = len(units), chain.images
    for number, marker in enumerate(chain.generations):
        if marker.get("identity") != identity.hash:
            found.problems.append(f"generation {number} was planned under another identity")
        own = [unit for unit in units if unit.generation == number]
        if sum(unit.images for unit in own) != marker["images"] or len(own) != marker["units"]:
            found.problems.append(f"generation {number}: the unit index does not add up to its commit marker")
    repeated = [name for name, count in Counter(unit.unit_id for unit in units).items() if count > 1]
    if repeated:
        found.problems.append(f"{len(repeated)} unit ids are planned twice, {_examples(repeated)}")
    connection.execute("CREATE TABLE units (unit VARCHAR, number INTEGER)")
    names = pa.table(
        {"unit": [unit.unit_id for unit in units], "number": pa.array(range(len(units)), pa.int32())}
    )
    _insert(connection, "units", names, "unit, number")
    connection.execute("CREATE TABLE planned (id UUID, number INTEGER)")
    for table in chain.tables(columns=["image_id", "unit_id"]):
        columns = "CAST(hex(image_id) AS UUID), number FROM incoming JOIN units ON unit = unit_id"
        _insert(connection, "planned", table, columns, complete=True)
    return units


def _load_parts(
    connection: Any, storage: Storage, units: list[Unit], identity: Identity, found: Verification
) -> None:
    """Row ids into table ``rows``; missing, stray and unsound parts into ``problems``."""
    base = storage.path.rstrip("/")
    expected = {f"{base}/{part_name(identity.kind, unit.unit_id)}": index for index, unit in enumerate(units)}
    present = folder_files(storage, folder_of(identity.kind))
    stray = [path for path in present if path not in expected]
    if stray:
        names = [path[len(base) + 1 :] for path in stray]
        found.problems.append(f"{len(stray)} files that no unit planned, {_examples(names)}")
    wanted = [path for path in present if path in expected]
    found.parts = len(wanted)
    absent = sorted(expected.keys() - set(wanted), key=expected.__getitem__)
    if absent:
        found.missing_units = len(absent)
        images = sum(units[expected[path]].images for path in absent)
        found.problems.append(
            f"{len(absent)} of {len(units)} units ({images} images) are not published yet; "
            "run the job again to finish them"
        )
    connection.execute("CREATE TABLE rows (id UUID, number INTEGER)")

    def check(path: str) -> PartReport:
        return check_part(storage, path, units[expected[path]], identity)

    reasons: Counter[str] = Counter()
    faults: dict[str, list[str]] = {}
    for path, report in zip(wanted, _in_parallel(check, wanted, READERS[identity.kind]), strict=True):
        for fault in report.faults:
            faults.setdefault(fault, []).append(path.rsplit("/", 1)[-1])
        if report.ids is None:
            continue
        found.kept += report.kept
        found.quarantined += sum(report.reasons.values())
        reasons.update(report.reasons)
        ids = f"TRY_CAST(image_id AS UUID), {expected[path]}"
        _insert(connection, "rows", pa.table({"image_id": report.ids}), ids)
    found.reasons = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    found.problems += [f"{len(names)} parts: {fault}, {_examples(names)}" for fault, names in faults.items()]


def _compare(connection: Any, found: Verification) -> None:
    """Ids of plan and rows: each once, and the same per unit."""
    for table, what in (("planned", "planned twice"), ("rows", "in the table twice")):
        sql = f"SELECT id FROM {table} WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1"
        _report(connection, sql, f"image ids are {what}", found)
    _report(connection, "SELECT number FROM rows WHERE id IS NULL", "image ids are not 32 hex digits", found)
    only = "SELECT id FROM {0} LEFT JOIN {1} USING (id, number) WHERE {1}.id IS NULL AND {0}.id IS NOT NULL"
    # Units that are not published yet are reported once, above, not row by row.
    lost = f"{only.format('planned', 'rows')} AND planned.number IN (SELECT number FROM rows)"
    _report(connection, lost, "planned images are missing from their unit's part", found)
    _report(connection, only.format("rows", "planned"), "rows were never planned for their unit", found)
    ((count,),) = connection.execute("SELECT count(*) FROM planned").fetchall()
    if count != found.planned:
        found.problems.append(f"the plan files hold {count} images, its commit markers say {found.planned}")
    if found.planned != found.kept + found.quarantined and not found.problems:
        found.problems.append(
            f"planned {found.planned} is not {found.kept} kept + {found.quarantined} quarantined"
        )


def _report(connection: Any, sql: str, what: str, found: Verification) -> None:
    ((count,),) = connection.execute(f"SELECT count(*) FROM ({sql})").fetchall()
    if count:
        rows = connection.execute(f"SELECT * FROM ({sql}) ORDER BY 1 LIMIT {_EXAMPLES}").fetchall()
        found.problems.append(
            f"{count} {what}, {_examples([str(row[0]).replace('-', '') for row in rows], count)}"
        )


def _insert(connection: Any, table: str, incoming: pa.Table, columns: str, *, complete: bool = False) -> None:
    connection.register("incoming", incoming)
    connection.execute(f"INSERT INTO {table} SELECT {columns}{'' if complete else ' FROM incoming'}")
    connection.unregister("incoming")


def _in_parallel(check: Any, paths: Iterable[str], readers: int) -> Iterator[PartReport]:
    """``map`` with some threads that never runs more than two rounds ahead of its consumer."""
    waiting: list[Any] = []
    remaining = iter(paths)
    with ThreadPoolExecutor(readers) as pool:
        waiting += [pool.submit(check, path) for path in islice(remaining, 2 * readers)]
        while waiting:
            report = waiting.pop(0).result()
            waiting += [pool.submit(check, path) for path in islice(remaining, 1)]
            yield report


def _examples(names: list[str], count: int | None = None) -> str:
    count = len(names) if count is None else count
    more = ", ..." if count > _EXAMPLES else ""
    return f"for example {', '.join(names[:_EXAMPLES])}{more}" if count > 1 else f"namely {names[0]}"
