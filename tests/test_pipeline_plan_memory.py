"""The driver's memory does not grow with the archive: peak resident bytes per extra input, in child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.plan_archives import make

#: Bytes of peak memory that one more input may cost. Ids, digests of member names and marks come to about 100; a
#: Python object kept for each input would be 500 and more.
ALLOWED = 250

CHILD = """
import json, sys
from cxr_ray.archives import manifest_table
from cxr_ray.archives.batches import FileBatch
from cxr_ray.archives.inputs import image_id_of
from cxr_ray.archives.listing import list_batches
from cxr_ray.archives.storage import open_storage
from cxr_ray.pipeline import planner, spool
from cxr_ray.pipeline.plan import open_plan
from cxr_ray.pipeline.planner import PlannedSource, commit_generation, select_new, spool_listing
from cxr_ray.pipeline.privacy import Privacy
from cxr_ray.pipeline.publish import Publisher

# Small batches: both sizes of archive then fill every buffer there is.
planner._FILE_ROWS = spool._SPOOL_ROWS = 2000
manifest_table._BLOCK_BYTES = 128 << 10
keep = []

def sources():
    for found in list_batches(open_storage(sys.argv[1])):
        if sys.argv[3:]:
            keep.append(list(found.inputs()) if isinstance(found, FileBatch) else found)
        if isinstance(found, FileBatch):
            yield found
        else:
            yield PlannedSource(source=found, image_id=image_id_of(found), uri=found.uri, member=found.member)

publisher = Publisher(open_storage(sys.argv[2]))
plan = open_plan(publisher)
listing = spool_listing(sources(), Privacy())
select_new(listing, plan.id_chunks(), None)
assert commit_generation(publisher, plan, listing, attempt="a", identity="i", largest=1000)
listing.close()
status = open("/proc/self/status").read().split("VmHWM:")[1].split()
print(json.dumps([open_plan(publisher).images, int(status[0]) * 1024]))
"""


def peak(archive: Path, output: Path, *flags: str) -> tuple[int, int]:
    """Planned images, and peak resident bytes, of planning in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(archive), str(output), *flags]
    # Pools that keep freed memory, and one per thread, add megabytes that differ from run to run.
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, env=environment)
    images, memory = json.loads(done.stdout.splitlines()[-1])
    return images, memory


def growth(kind: str, folder: Path, *flags: str) -> float:
    """Peak bytes per input between 10,000 and 60,000 inputs."""
    found = []
    for count in (10_000, 60_000):
        archive = make(kind, folder / f"archive-{count}", count)
        found.append(peak(archive, folder / f"output-{count}", *flags))
    (few, before), (many, after) = found
    assert (few, many) == (10_000, 60_000)
    return (after - before) / (many - few)


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")


@pytest.mark.parametrize("kind", ["csv", "zip"])
def test_memory_per_input(kind: str, tmp_path: Path) -> None:
    assert growth(kind, tmp_path) < ALLOWED


def test_objects_that_are_kept_would_be_noticed(tmp_path: Path) -> None:
    assert growth("csv", tmp_path, "keep") > ALLOWED
