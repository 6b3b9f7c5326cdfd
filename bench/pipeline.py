"""What the pipeline costs over the work itself.

    python bench/pipeline.py throughput [--archive DIR] [--images 300] [--weights URL]
    python bench/pipeline.py overhead   [--images 10000]

``throughput``: ``jobs/score.py`` with two scorers against a bare loop (two processes, no Ray) over the same
decode and ``Scorer``, in one run, as the slope of images over time between 20 % and 85 % of the images.

``overhead``: a scorer that costs nothing, over shards, at two sizes; the difference in CPU seconds of the
whole process tree, divided by the difference in images, minus the CPU of reading the same shards in a bare
loop. What is left is driver, Ray, heat-map encoding and Parquet writing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.process_tree import measure
from cxr_ray.phantoms import phantom
from cxr_ray.preprocess import COLUMNS, ROWS, preprocess

ROOT = Path(__file__).parents[1]
PROCESSES = 2

#: Small shards, so that the smaller of the two runs has started every worker process that the larger one uses.
SHARD_ROWS = 250


# -- throughput ----------------------------------------------------------------------------------------


def bare_loop(paths: list[str], weights: str, marks: Any) -> None:
    """Decode and score one image after another, without Ray, plans, or files written."""
    from cxr_ray.decode import decode
    from cxr_ray.scorer import Scorer
    from cxr_ray.weights import load_bundle

    scorer = Scorer(load_bundle(weights))
    for start in range(0, len(paths), 8):
        chunk = paths[start : start + 8]
        frames = [preprocess(decode(Path(path).read_bytes()).pixels) for path in chunk]
        scorer.score(np.stack(frames))
        marks.put((time.monotonic(), len(chunk)))


def run_bare(paths: list[str], weights: str) -> list[tuple[float, int]]:
    """Cumulated (time, images) of ``PROCESSES`` bare loops side by side."""
    context = multiprocessing.get_context("spawn")
    marks = context.Queue()
    workers = [
        context.Process(target=bare_loop, args=(paths[number::PROCESSES], weights, marks))
        for number in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    total, curve = 0, []
    while total < len(paths):
        moment, images = marks.get(timeout=600)
        total += images
        curve.append((moment, total))
    for worker in workers:
        worker.join()
    return curve


def run_ray(archive: str, output: str, weights: str, images: int) -> list[tuple[float, int]]:
    """(time, images done) as the progress lines of the real job say."""
    command = [
        sys.executable,
        "jobs/score.py",
        f"archive={archive}",
        f"output={output}",
        f"weights={weights}",
    ]
    command += [f"actors={PROCESSES}", f"limit={images}", "unit_size=16", "progress_seconds=0.5"]
    done = measure(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    if done.code:
        raise SystemExit("\n".join(line for _, line in done.lines[-20:]))
    found = ((moment, re.match(r"([\d,]+) of [\d,]+ images", line)) for moment, line in done.lines)
    return [(moment, int(match[1].replace(",", ""))) for moment, match in found if match]


def slope(curve: list[tuple[float, int]], images: int) -> float:
    """Images per second between 20 % and 85 % of the images (least squares)."""
    kept = [(moment, count) for moment, count in curve if 0.2 * images <= count <= 0.85 * images]
    moments, counts = np.array(kept).T
    return float(np.polyfit(moments, counts, 1)[0])


def throughput(arguments: argparse.Namespace) -> None:
    """Print both rates and their ratio, pair by pair."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    # The bare loop gets the allocator settings that the pipeline gives its workers.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
    with tempfile.TemporaryDirectory() as folder:
        archive = arguments.archive or write_films(Path(folder) / "films", arguments.images)
        paths = sorted(str(path) for path in Path(archive).iterdir() if path.suffix != ".csv")
        paths = paths[: arguments.images]
        for pair in range(arguments.pairs):
            bare = slope(run_bare(paths, arguments.weights), len(paths))
            output = f"{folder}/out-{pair}"
            ours = slope(run_ray(archive, output, arguments.weights, len(paths)), len(paths))
            print(
                f"bare loop {bare:.2f} images/s, pipeline {ours:.2f} images/s, ratio {ours / bare:.3f}",
                flush=True,
            )


def write_films(folder: Path, count: int) -> str:
    """``count`` different phantom PNGs of a usual size."""
    folder.mkdir(parents=True)
    base = [phantom(np.random.default_rng(seed)) for seed in range(12)]
    for number in range(count):
        shifted = np.roll(base[number % len(base)], number // len(base), axis=1)
        cv2.imwrite(str(folder / f"film-{number:05d}.png"), (shifted >> 4).astype(np.uint8))
    return str(folder)


# -- overhead ------------------------------------------------------------------------------------------


def make_shards(folder: Path, images: int) -> str:
    """An ingest OUTPUT of noisy phantom frames, without decoding anything."""
    rng = np.random.default_rng(0)
    frames = [preprocess(phantom(np.random.default_rng(seed))) for seed in range(8)]
    identity, publisher = begin_shards(folder)
    for start in range(0, images, SHARD_ROWS):
        numbers = range(start, min(start + SHARD_ROWS, images))
        noisy = [frames[number % 8] ^ rng.integers(0, 4, (ROWS, COLUMNS), np.uint8) for number in numbers]
        write_shard(publisher, identity, start // SHARD_ROWS, start, noisy)
    return str(folder)


def begin_shards(folder: Path) -> tuple[Any, Any]:
    """A new ingest OUTPUT: its identity and its publisher."""
    from cxr_ray.archives.storage import open_storage
    from cxr_ray.pipeline.identity import KIND_SHARDS, Identity, claim_identity
    from cxr_ray.pipeline.job import preprocessing_id
    from cxr_ray.pipeline.privacy import Privacy
    from cxr_ray.pipeline.publish import Publisher
    from cxr_ray.shards import SHARD_SCHEMA_VERSION

    document = {
        "schema_version": SHARD_SCHEMA_VERSION,
        "preprocessing": preprocessing_id("corrected"),
        "privacy": Privacy().document(),
    }
    identity = Identity(kind=KIND_SHARDS, document=document)
    publisher = Publisher(open_storage(str(folder)))
    claim_identity(publisher, identity)
    return identity, publisher


def write_shard(publisher: Any, identity: Any, unit: int, first: int, frames: list[np.ndarray]) -> None:
    """Publish frames (uint8 [300, 340]) as one shard; ``first`` is the number of the first image."""
    from cxr_ray.pipeline.identity import KIND_SHARDS
    from cxr_ray.pipeline.parts import PartFooter, publish_part
    from cxr_ray.shards import READY, table_of

    rows = []
    for number, frame in enumerate(frames, first):
        row = {"image_id": f"{number:032x}", "uri": f"file:///films/{number}.png", "status": READY}
        rows.append(row | {"flags": [], "pixels": frame.tobytes()})
    footer = PartFooter(
        identity=identity.hash, unit_id=f"g00000-u{unit:06d}", generation=0, attempt="bench",
        code_version="bench", device="cpu", compute_batch=None, threads=None, dtype=None, weights=None,
        decode_policy="corrected", calibration_id=None, fencing="create_only",
    )  # fmt: skip
    publish_part(publisher, table_of(rows), KIND_SHARDS, footer)


def reading_cpu(archive: str) -> float:
    """CPU seconds of reading every shard of an archive in a bare loop."""
    import pyarrow.parquet as pq

    start = time.process_time()
    for path in sorted(Path(archive, "shards").iterdir()):
        pq.read_table(path, use_threads=False)
    return time.process_time() - start


def overhead(arguments: argparse.Namespace) -> None:
    """Print CPU milliseconds per image beyond reading, start-up subtracted."""
    few, many = 3 * arguments.images // 10, 13 * arguments.images // 10
    with tempfile.TemporaryDirectory() as folder:
        totals, reading = [], []
        for images in (few, many):
            shards = make_shards(Path(folder) / f"shards-{images}", images)
            reading.append(reading_cpu(shards))
            command = [
                sys.executable,
                "bench/null_scorer.py",
                f"archive={shards}",
                f"output={folder}/out-{images}",
            ]
            command.append(f"actors={PROCESSES}")
            done = measure(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
            if done.code:
                raise SystemExit("\n".join(line for _, line in done.lines[-20:]))
            totals.append(done)
            shares = ", ".join(
                f"{name} {s:.1f}" for name, s in sorted(done.cpu_s.items(), key=lambda x: -x[1])[:6]
            )
            print(
                f"{images:,} images: {done.wall_s:.1f} s wall, {done.total_cpu_s:.1f} s CPU ({shares})",
                flush=True,
            )
        whole = 1000 * (totals[1].total_cpu_s - totals[0].total_cpu_s) / (many - few)
        read = 1000 * (reading[1] - reading[0]) / (many - few)
        print(
            f"marginal CPU {whole:.2f} ms per image over {many - few:,} images, of which reading shards {read:.2f}; "
            f"driver, Ray and writing {whole - read:.2f} ms per image"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("throughput")
    first.add_argument("--archive", help="folder of images; default: phantoms")
    first.add_argument("--images", type=int, default=300)
    first.add_argument("--weights", default="seeded")
    first.add_argument("--pairs", type=int, default=2)
    second = commands.add_parser("overhead")
    second.add_argument("--images", type=int, default=10_000)
    arguments = parser.parse_args()
    if arguments.command == "throughput":
        throughput(arguments)
    else:
        overhead(arguments)


if __name__ == "__main__":
    main()
