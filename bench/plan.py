"""What planning an archive costs: objects per second, and the driver's memory.

    python bench/plan.py [--objects 1000000] [--kinds tree csv ...] [--folder DIR]

Each kind of archive is made first, then planned by a process of its own, which is a driver of ``jobs/score.py``
without Ray: it imports what that imports, holds the default bundle and its bytes, lists, selects what is new,
and commits a generation to an OUTPUT on local disk. Printed per kind: objects a second of wall and of CPU time
over listing and planning together, peak resident memory of the whole process, and what it was before listing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.plan_archives import ARCHIVES, make

ROOT = Path(__file__).parents[1]


def resident(field: str) -> float:
    """MB of ``VmHWM`` (peak) or ``VmRSS`` (now) of this process; unlike getrusage's, a parent's do not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def plan_once(archive: str, output: str) -> dict[str, Any]:
    """List and plan, as the driver does, in this process."""
    from cxr_ray.pipeline.identity import KIND_SCORES, Identity
    from cxr_ray.pipeline.job import open_job
    from cxr_ray.pipeline.options import ScoreOptions
    from cxr_ray.pipeline.plan import open_plan
    from cxr_ray.pipeline.planner import commit_generation
    from cxr_ray.pipeline.score_job import read_bundle
    from cxr_ray.pipeline.screening import Screening, Work
    from cxr_ray.weights import bundle_to_bytes

    options = ScoreOptions(archive=archive, output=output)
    bundle = read_bundle(options)
    packed = bundle_to_bytes(bundle)
    job = open_job(options, KIND_SCORES)
    identity = Identity(kind=KIND_SCORES, document={})
    work = Work(identity=identity, settings=job.settings, footer=None, resources=None, bundle=packed)  # type: ignore[arg-type]
    screening = Screening(
        options=options,
        archive=job.archive,
        output=job.output,
        plan_store=job.plan_store,
        work=work,
        from_shards=False,
        say=print,
    )
    before = resident("VmRSS")
    marks = [(time.monotonic(), time.process_time())]
    plan = open_plan(job.plan_store)
    listing = screening.list_new(plan)
    marks.append((time.monotonic(), time.process_time()))
    commit_generation(job.plan_store, plan, listing, attempt="bench", identity=identity.hash, largest=1000)
    listing.close()
    marks.append((time.monotonic(), time.process_time()))
    planned = open_plan(job.plan_store)
    return {
        "objects": planned.images,
        "units": len(planned.units()),
        "list_s": marks[1][0] - marks[0][0],
        "commit_s": marks[2][0] - marks[1][0],
        "cpu_s": marks[2][1] - marks[0][1],
        "before_mb": before,
        "peak_mb": resident("VmHWM"),
    }


def measured(archive: Path, output: Path) -> dict[str, Any]:
    """``plan_once`` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", str(archive), str(output)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", choices=list(ARCHIVES), default=list(ARCHIVES))
    parser.add_argument("--folder", help="where to make the archives (default: the temporary folder)")
    parser.add_argument("--child", nargs=2, metavar=("ARCHIVE", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(plan_once(*arguments.child)))
        return
    print(
        "| archive | objects | wall s (list + plan) | objects/s | objects per CPU s | peak MB | before MB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench-plan-") as folder:
            archive = make(kind, Path(folder) / "archive", arguments.objects)
            one = measured(archive, Path(folder) / "output")
            wall = one["list_s"] + one["commit_s"]
            print(
                f"| {kind} | {one['objects']:,} | {one['list_s']:.1f} + {one['commit_s']:.1f} "
                f"| {one['objects'] / wall:,.0f} | {one['objects'] / one['cpu_s']:,.0f} "
                f"| {one['peak_mb']:.0f} | {one['before_mb']:.0f} |",
                flush=True,
            )
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
