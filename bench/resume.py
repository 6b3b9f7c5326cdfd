"""How soon a nearly finished run works again: from the start of the process to its first read task.

    python bench/resume.py [--images 10000000] [--open-share 0.01] [--folder DIR] [--count]

Makes an OUTPUT with a committed plan of so many images in units of 1,000, and part files (hard links to one small
part: only their names matter) for all units but the last 1 %. Then ``jobs/score.py``'s own steps are timed in a process
of its own: imports and weights, plan and published parts, Ray and the check of the nodes, and the graph up to the
moment when its first read task begins. ``--count`` also times counting the rows of all parts, which ends a run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

ROOT = Path(__file__).parents[1]
UNIT = 1000
FIRST_READ = "first-read"


def make_output(folder: Path, images: int, open_share: float) -> None:
    """A plan of ``images`` rows, committed, and the parts of most of its units."""
    from cxr_ray.archives.batches import FileBatch
    from cxr_ray.archives.inputs import image_id
    from cxr_ray.archives.storage import open_storage
    from cxr_ray.pipeline.parts import encode_part
    from cxr_ray.pipeline.plan import open_plan
    from cxr_ray.pipeline.planner import commit_generation, select_new, spool_listing
    from cxr_ray.pipeline.privacy import Privacy
    from cxr_ray.pipeline.publish import Publisher
    from cxr_ray.pipeline.score_table import SCORE_SCHEMA

    def batches() -> Iterator[FileBatch]:
        for start in range(0, images, 50_000):
            numbers = range(start, min(start + 50_000, images))
            uri = pa.array([f"file://{folder}/films/{number:08d}.png" for number in numbers])
            size = pa.array(np.full(len(numbers), 200_000, np.int64))
            yield FileBatch(uri=uri, size=size, version=pa.array(["size=200000"] * len(numbers)))

    publisher = Publisher(open_storage(str(folder)))
    listing = spool_listing(batches(), Privacy())
    select_new(listing, [], None)
    commit_generation(publisher, open_plan(publisher), listing, attempt="made", identity="made", largest=UNIT)
    listing.close()
    row = {field.name: None for field in SCORE_SCHEMA} | {
        "image_id": image_id("x", None).hex(), "status": "scored", "flags": [], "unit_id": "u", "identity": "i",
        "schema_version": 1, "generation": 0,
    }  # fmt: skip
    part = encode_part(pa.Table.from_pylist([row] * UNIT, schema=SCORE_SCHEMA))
    units = open_plan(publisher).units()
    (folder / "scores").mkdir()
    template = folder / "template"
    for number, unit in enumerate(units[: len(units) - max(1, int(len(units) * open_share))]):
        if number % 10_000 == 0:  # a file can have only so many names
            template.unlink(missing_ok=True)
            template.write_bytes(part)
        os.link(template, folder / "scores" / f"part-{unit.unit_id}.parquet")
    template.unlink()


def resume(folder: str, started: float) -> dict[str, Any]:
    """Start the run as the driver does; seconds since ``started`` at each step."""
    marks: dict[str, Any] = {}

    def mark(name: str) -> None:
        marks[name] = round(time.time() - started, 1)

    from bench.plan import resident
    from cxr_ray.archives.storage import open_storage
    from cxr_ray.pipeline import cluster
    from cxr_ray.pipeline.assignments import make_assignments
    from cxr_ray.pipeline.decode_unit import InputSettings
    from cxr_ray.pipeline.parts import published_units
    from cxr_ray.pipeline.plan import open_plan
    from cxr_ray.pipeline.publish import Publisher
    from cxr_ray.weights import bundle_to_bytes, load_bundle

    bundle_to_bytes(load_bundle("default"))
    mark("imports_and_weights")
    publisher = Publisher(open_storage(folder))
    plan = open_plan(publisher)
    units = plan.units()
    mark("plan_read")
    done = published_units(publisher, "scores")
    units = [unit for unit in units if unit.unit_id not in done]
    mark("parts_listed")
    assignments = make_assignments(units)
    marks["open_units"] = len(units)
    with cluster.ray_session(None, 4):
        mark("ray_started")
        first = first_read(assignments, publisher, InputSettings(), folder)
        marks[FIRST_READ] = round(first - started, 1)
    marks["peak_mb"] = round(resident("VmHWM"))
    return marks


def first_read(assignments: Any, publisher: Any, settings: Any, folder: str) -> float:
    """Run a graph like the job's (one block per assignment) until its first task has noted the time."""
    import ray
    from ray.data import DataContext, TaskPoolStrategy

    from cxr_ray.pipeline.assignments import unit_tables

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1

    def note(batch: pa.Table) -> pa.Table:
        began = time.time()
        assignment = assignments_by_number[batch.column("number")[0].as_py()]
        next(iter(unit_tables(assignment, publisher, settings)))
        return pa.table({"began": [began]})

    assignments_by_number = dict(enumerate(assignments))
    # The open units travel as rows of the graph in the job; so their number is what counts here too.
    items = [{"number": number, "text": "x" * 300} for number in range(len(assignments))]
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        note, batch_size=1, batch_format="pyarrow", num_cpus=0.5, compute=TaskPoolStrategy(size=2)
    )
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        return float(batch.column("began")[0].as_py())
    raise RuntimeError("no task ran")


def count(folder: str) -> dict[str, Any]:
    """Count the rows of all parts, as a run does at its end."""
    from bench.plan import resident
    from cxr_ray.archives.storage import open_storage
    from cxr_ray.pipeline.plan import open_plan
    from cxr_ray.pipeline.publish import Publisher
    from cxr_ray.pipeline.summary import count_rows

    publisher = Publisher(open_storage(folder))
    plan = open_plan(publisher)
    before, start = resident("VmRSS"), time.monotonic()
    counts = count_rows(publisher, plan, "scores")
    seconds = round(time.monotonic() - start, 1)
    return {
        "rows": counts.kept,
        "count_s": seconds,
        "before_mb": round(before),
        "peak_mb": round(resident("VmHWM")),
    }


def child(task: str, folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", task, str(folder), str(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--open-share", type=float, default=0.01)
    parser.add_argument("--folder", help="where to make OUTPUT (default: the temporary folder)")
    parser.add_argument("--count", action="store_true", help="also count the rows of all parts")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        task, folder, started = arguments.child
        print(json.dumps(count(folder) if task == "count" else resume(folder, float(started))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench-resume-") as name:
        make_output(Path(name), arguments.images, arguments.open_share)
        print(json.dumps(child("resume", Path(name))), flush=True)
        if arguments.count:
            print(json.dumps(child("count", Path(name))), flush=True)


if __name__ == "__main__":
    main()
