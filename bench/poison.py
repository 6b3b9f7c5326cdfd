"""What poisoned files cost a run, and what decoding in a process of its own costs an image.

    python bench/poison.py run  [--images 10000] [--poisoned 100] [--limit 10]
    python bench/poison.py cost [--archive DIR] [--images 60]

``run``: the scoring job with a scorer that costs nothing, over an archive of small films and over the same archive with
1 % of its files replaced: truncated, zero bytes, a 30000 x 30000 header, a decompression bomb, a decoder that leaves
with ``os._exit``, one that takes 60 CPU seconds, NaN pixels. Every one must get its own code, every other image its
score, and the wall time may be at most clean + (poisoned x 3 x limit) / decode workers, plus 20 %.

``cost``: the start of a decode process, and processor milliseconds per image here and there, for images of 300 kB.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.dataset as pads

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.process_tree import Measured, measure
from cxr_ray.phantoms import phantom
from tests.poisoned_archive import CODES, DECODE_MEMORY, write_archive

ROOT = Path(__file__).parents[1]
DECODE_TASKS = 3


def score(archive: Path, output: Path, limit: float) -> Measured:
    """The job, which must end with 0."""
    command = [sys.executable, "bench/null_scorer.py", f"archive={archive}", f"output={output}"]
    command += [f"decode_seconds={limit}", f"decode_memory={DECODE_MEMORY}", f"decode_tasks={DECODE_TASKS}"]
    done = measure(command, env=os.environ | {"PYTHONPATH": str(ROOT), "CXR_RAY_TEST_HOOKS": "1"})
    if done.code:
        raise SystemExit("\n".join(line for _, line in done.lines[-20:]))
    return done


def reasons(output: Path) -> dict[str, str | None]:
    """File name -> reason, as published."""
    table = pads.dataset(str(output / "scores")).to_table(columns=["uri", "reason"]).to_pylist()
    return {Path(row["uri"]).name: row["reason"] for row in table}


def run(arguments: argparse.Namespace) -> None:
    """Clean, then poisoned; print the table."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        expected = {
            "clean": write_archive(here / "clean", arguments.images),
            "poisoned": write_archive(here / "poisoned", arguments.images, arguments.poisoned),
        }
        walls: dict[str, float] = {}
        print(
            "| archive | rows | scored | wrong code | wall | CPU of the whole tree |\n" + "| --- " * 6 + "|"
        )
        for name, wanted in expected.items():
            done = score(here / name, here / f"out-{name}", arguments.limit)
            found = reasons(here / f"out-{name}")
            wrong = sum(found.get(file) != reason for file, reason in wanted.items())
            scored = sum(reason is None for reason in found.values())
            walls[name] = done.wall_s
            print(
                f"| {name} | {len(found):,} | {scored:,} | {wrong} | {done.wall_s:.1f} s | {done.total_cpu_s:.1f} s |",
                flush=True,
            )
        codes = Counter(filter(None, found.values()))
    bound = 1.2 * (walls["clean"] + arguments.poisoned * 3 * arguments.limit / DECODE_TASKS)
    print("\n" + ", ".join(f"{code} {codes[code]}" for code in CODES.values()))
    print(
        f"{arguments.poisoned} poisoned files, limit {arguments.limit:g} s, {DECODE_TASKS} decode workers: "
        f"{walls['poisoned'] - walls['clean']:+.1f} s; bound {bound:.1f} s, "
        f"{'kept' if walls['poisoned'] <= bound and not wrong else 'MISSED'}"
    )


def cost(arguments: argparse.Namespace) -> None:
    """Print the cost of a start and of an image."""
    from cxr_ray.pipeline.decoding.child_process import ChildProcess, ProcessLimits
    from cxr_ray.pipeline.decoding.decoded import Recipe, decode_content

    recipe = Recipe(policy="corrected", max_bytes=2**29, max_pixels=150_000_000)
    contents = images_of(arguments.archive, arguments.images)
    cv2.setNumThreads(1)
    starts, cpu = [], []
    for _ in range(5):
        begin = time.monotonic()
        child = ChildProcess(ProcessLimits())
        assert child.wait_until_ready() is None
        starts.append(time.monotonic() - begin)
        cpu.append(child_seconds(child))
        child.close()
    print(
        f"start: {statistics.median(starts):.2f} s, of them {statistics.median(cpu):.2f} CPU seconds in the child"
    )
    child = ChildProcess(ProcessLimits())
    assert child.wait_until_ready() is None
    junk = [b"\0" * len(content) for content in contents]
    for name, given in (("films", contents), ("bytes that are no image", junk)):
        extra = []
        for _ in range(7):
            before = time.process_time()
            expected = [decode_content(content, recipe) for content in given]
            here = time.process_time() - before
            # In two blocks: taking turns, each would find the processor's caches full of the other's data.
            before = time.process_time() + child_seconds(child)
            answers = [child.decode(content, recipe) for content in given]
            there = time.process_time() + child_seconds(child) - before
            assert [getattr(answer, "pixels", None) for answer in answers] == [one.pixels for one in expected]
            extra.append(1000 * (there - here) / len(given))
        print(
            f"{name}: {len(given)} of {sum(map(len, given)) / len(given) / 1000:.0f} kB; here "
            f"{1000 * here / len(given):.2f} ms CPU an image; in a process of its own "
            f"{statistics.median(extra):+.2f} ms more (seven rounds: {', '.join(f'{x:+.2f}' for x in sorted(extra))})"
        )
    child.close()


def child_seconds(child: Any) -> float:
    """CPU of the child's main thread to the nanosecond, where ``/proc/PID/stat`` counts hundredths."""
    return int(Path(f"/proc/{child.pid}/schedstat").read_text().split()[0]) / 1e9


def images_of(archive: str | None, count: int) -> list[bytes]:
    """Files of 250 to 400 kB, or phantoms of that size."""
    if archive:
        paths = [path for path in sorted(Path(archive).rglob("*")) if re.search(r"\.(png|jpe?g)$", path.name)]
        return [path.read_bytes() for path in paths if 250_000 <= path.stat().st_size <= 400_000][:count]
    films = []
    for seed in range(min(count, 20)):
        pixels = (phantom(np.random.default_rng(seed)) >> 4).astype(np.uint8)
        done, data = cv2.imencode(".png", cv2.resize(pixels, (840, 1020), interpolation=cv2.INTER_AREA))
        assert done
        films.append(data.tobytes())
    return films


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("run")
    first.add_argument("--images", type=int, default=10_000)
    first.add_argument("--poisoned", type=int, default=100)
    first.add_argument("--limit", type=float, default=10)
    second = commands.add_parser("cost")
    second.add_argument("--archive", help="folder of images; default: phantoms")
    second.add_argument("--images", type=int, default=60)
    arguments = parser.parse_args()
    (run if arguments.command == "run" else cost)(arguments)


if __name__ == "__main__":
    main()
