"""What ``verify``, ``compact`` and queries cost on a large table: time and peak memory, each in a fresh process.

    python bench/large_output.py --folder /data/large --parts 1000 --rows 1000

Makes an OUTPUT of made rows (real plan, real schema, pictures of 150 bytes instead of 4 KB; no scoring), unless the
folder holds one already. Everything else runs as a user would run it.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.archives.storage import open_storage
from cxr_ray.pipeline.identity import KIND_SCORES, Identity, claim_identity
from cxr_ray.pipeline.parts import FOOTER_KEY, encode_part, part_name
from cxr_ray.pipeline.plan import PLAN_FOLDER, PLAN_SCHEMA, UNIT_INDEX_SCHEMA, marker_name
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.score_table import SCORE_SCHEMA, SCORED

ROOT = Path(__file__).parents[1]
IDENTITY = Identity(kind=KIND_SCORES, document={"tensors": "made", "decode_policy": "corrected"})
UNITS_PER_FILE = 100
GROUPED = "SELECT view, count(*), avg(p_covid) FROM scores GROUP BY ALL"
ONE_ROW = "SELECT image_id, p_covid FROM scores WHERE image_id = '{}'"

COMMANDS = {
    "verify": ["verify", "OUT"],
    "query of all rows, parts": ["query", "OUT", GROUPED],
    "query of one row, parts": ["query", "OUT", ONE_ROW],
    "compact": ["compact", "OUT"],
    "query of all rows, light copy": ["query", "OUT", GROUPED],
    "query of one row, light copy": ["query", "OUT", ONE_ROW],
}


def make(folder: Path, parts: int, rows: int) -> None:
    """Plan and parts of ``parts * rows`` made rows."""
    publisher = Publisher(open_storage(str(folder)))
    claim_identity(publisher, IDENTITY)
    rng = np.random.default_rng(0)
    index = []
    sink, writer, name = io.BytesIO(), None, ""
    for number in range(parts):
        unit_id = f"g00000-u{number:06d}"
        if number % UNITS_PER_FILE == 0:
            name = f"{PLAN_FOLDER}/00000/made/inputs-{number // UNITS_PER_FILE:05d}.parquet"
            sink = io.BytesIO()
            writer = pq.ParquetWriter(sink, PLAN_SCHEMA, compression="zstd")
        ids = np.sort(np.frombuffer(rng.bytes(16 * rows), "S16")).tobytes()
        binary = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(ids)])
        assert writer is not None
        writer.write_table(planned(binary, unit_id), row_group_size=rows)
        index.append(
            {"unit_id": unit_id, "generation": 0, "images": rows, "file": name, "row_group": number % UNITS_PER_FILE,
             "uri": "file:///made", "kind": "file"}
        )  # fmt: skip
        if (number + 1) % UNITS_PER_FILE == 0 or number + 1 == parts:
            writer.close()
            publisher.publish(name, sink.getvalue())
        path = folder / part_name(KIND_SCORES, unit_id)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_part(scored(ids, unit_id)))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(index, schema=UNIT_INDEX_SCHEMA), sink)
    publisher.publish(f"{PLAN_FOLDER}/00000/made/units.parquet", sink.getvalue())
    marker = {"generation": 0, "attempt": "made", "directory": "made", "images": parts * rows, "units": parts,
              "identity": IDENTITY.hash}  # fmt: skip
    publisher.publish(marker_name(0), json.dumps(marker).encode())


@functools.cache
def template(rows: int) -> pa.Table:
    """A part as wide as a real one, its numbers random: all but ids and unit, which differ from part to part."""
    rng = np.random.default_rng(rows)
    logit = rng.normal(-2, 2, rows).astype(np.float32)
    hashes = rng.bytes(32 * rows).hex()
    values = {
        "image_id": pa.array([""] * rows),
        "uri": pa.array([f"file:///made/archive/folder/film-{row:06d}.png" for row in range(rows)]),
        "content_sha256": pa.array([hashes[64 * row : 64 * row + 64] for row in range(rows)]),
        "view": pa.array(np.array(["PA", "AP", "LL"])[rng.integers(0, 3, rows)]),
        "image_rows": pa.array(rng.integers(1000, 3000, rows), pa.int32()),
        "image_columns": pa.array(rng.integers(1000, 3000, rows), pa.int32()),
        "status": pa.array([SCORED] * rows),
        "flags": pa.array([[]] * rows, SCORE_SCHEMA.field("flags").type),
        "p_covid": pa.array((1 / (1 + np.exp(-logit))).astype(np.float32)),
        "logit": pa.array(logit),
        "path_logits": pa.array(
            rng.normal(-2, 2, (rows, 6)).tolist(), SCORE_SCHEMA.field("path_logits").type
        ),
        "p_std": pa.array(rng.random(rows, np.float32)),
        "lung_fraction": pa.array(rng.random(rows, np.float32)),
        "unit_id": pa.array([""] * rows),
        "identity": pa.array([IDENTITY.hash] * rows),
        "schema_version": pa.array([1] * rows, pa.int16()),
        "generation": pa.array([0] * rows, pa.int32()),
        "heat_map": pa.array([rng.bytes(100) for _ in range(rows)]),
        "lung_mask": pa.array([rng.bytes(50) for _ in range(rows)]),
    }
    columns = [values.get(field.name, pa.nulls(rows, field.type)) for field in SCORE_SCHEMA]
    return pa.Table.from_arrays(columns, schema=SCORE_SCHEMA)


def planned(ids: pa.Array, unit_id: str) -> pa.Table:
    """Plan rows of one unit."""
    rows = len(ids)
    values = {
        "image_id": ids,
        "unit_id": pa.array([unit_id] * rows),
        "uri": template(rows).column("uri"),
        "container": template(rows).column("uri"),
        "kind": pa.array(["file"] * rows),
        "ordinal": pa.array(np.arange(rows)),
        "occurrence": pa.array(np.zeros(rows, np.int32)),
    }
    columns = [values.get(field.name, pa.nulls(rows, field.type)) for field in PLAN_SCHEMA]
    return pa.Table.from_arrays(columns, schema=PLAN_SCHEMA)


def scored(ids: bytes, unit_id: str) -> pa.Table:
    """The part of one unit; ``ids``: 16 bytes an image, sorted."""
    rows = len(ids) // 16
    digits = ids.hex()
    table = template(rows)
    names = {
        "image_id": [digits[start : start + 32] for start in range(0, len(digits), 32)],
        "unit_id": [unit_id] * rows,
    }
    for name, column in names.items():
        position = SCORE_SCHEMA.get_field_index(name)
        table = table.set_column(position, SCORE_SCHEMA.field(name), pa.array(column))
    footer = {"identity": IDENTITY.hash, "unit_id": unit_id, "generation": 0}
    return table.replace_schema_metadata({FOOTER_KEY: json.dumps(footer).encode()})


def measure(command: list[str]) -> tuple[float, float, float, str]:
    """Seconds of wall and CPU, peak MiB, and the first line that ``cxr-ray COMMAND`` prints."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, "-m", "cxr_ray.cli", *command], cwd=ROOT, stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - start
        out.seek(0)
        line = out.readline().strip()
    assert os.waitstatus_to_exitcode(status) == 0, line
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_args()
    if not (options.folder / "identity.json").exists():
        start = time.monotonic()
        make(options.folder, options.parts, options.rows)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"made {options.parts * options.rows:,} rows in {time.monotonic() - start:.0f} s, {peak:.0f} MiB"
        )
    one = (
        pq.read_table(next((options.folder / "scores").iterdir()), columns=["image_id"]).column(0)[0].as_py()
    )
    print("| command | wall | CPU | peak memory |\n| --- | --- | --- | --- |")
    for name, command in COMMANDS.items():
        filled = [
            word.replace("OUT", str(options.folder), 1) if word == "OUT" else word.format(one)
            for word in command
        ]
        wall, cpu, peak, line = measure(filled)
        print(f"| {name} | {wall:.1f} s | {cpu:.1f} s | {peak:.0f} MiB |", flush=True)
        print(f"  {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
