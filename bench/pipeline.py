"""What the pipeline costs over the work itself.

    python bench/pipeline.py throughput [--archive DIR] [--images 300] [--runs 2] [--weights URL]
    python bench/pipeline.py slowest    [--images 200] [--weights URL]

``throughput``: ``jobs/score.py`` with two scorers against a bare loop (two processes, no Ray) over the same
decode and ``Scorer``, in one run, as the slope of images over time between 20 % and 85 % of the images.

``slowest``: one scorer over 5-megapixel JPEGs, with a core to spare, against the slower of a bare loop that only
decodes and a bare loop that only scores. What the pipeline costs an image: ``bench/scale.py``.
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
from cxr_ray.pipeline.scorer_process import WORKER_ENVIRONMENT
from cxr_ray.preprocess import preprocess

ROOT = Path(__file__).parents[1]
PROCESSES = 2


# -- throughput ----------------------------------------------------------------------------------------


def bare_loop(paths: list[str], weights: str, marks: Any) -> None:
    """Decode and score one image after another, without Ray, plans, or files written."""
    from cxr_ray.decode import decode
    from cxr_ray.scorer import Scorer
    from cxr_ray.weights import load_bundle

    scorer = Scorer(load_bundle(weights), full_maps=False)
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


def run_ray(
    archive: str, output: str, weights: str, images: int, actors: int = PROCESSES
) -> list[tuple[float, int]]:
    """(time, images done) as the progress lines of the real job say."""
    command = [
        sys.executable,
        "jobs/score.py",
        f"archive={archive}",
        f"output={output}",
        f"weights={weights}",
    ]
    command += [f"actors={actors}", f"limit={images}", "unit_size=100", "progress_seconds=0.5"]
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


def with_environment_of_workers() -> None:
    """Begin again with the settings that the pipeline gives its workers, which a process reads when it starts."""
    if not WORKER_ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | WORKER_ENVIRONMENT)


def throughput(arguments: argparse.Namespace) -> None:
    """Print both rates and their ratio, run by run; a bare loop before and after each, since machines drift."""
    with tempfile.TemporaryDirectory() as folder:
        archive = arguments.archive or write_films(Path(folder) / "films", arguments.images)
        paths = sorted(str(path) for path in Path(archive).iterdir() if path.suffix != ".csv")
        paths = paths[: arguments.images]
        before = slope(run_bare(paths, arguments.weights), len(paths))
        for run in range(arguments.runs):
            output = f"{folder}/out-{run}"
            ours = slope(run_ray(archive, output, arguments.weights, len(paths)), len(paths))
            after = slope(run_bare(paths, arguments.weights), len(paths))
            print(
                f"bare loop {before:.2f} images/s before and {after:.2f} after, pipeline {ours:.2f}, "
                f"ratio to their mean {2 * ours / (before + after):.3f}",
                flush=True,
            )
            before = after


def slowest(arguments: argparse.Namespace) -> None:
    """Print the rates of decoding alone, of scoring alone, and of the pipeline against the slower of them."""
    from cxr_ray.decode import decode
    from cxr_ray.phantoms.large_film import five_megapixel_jpeg
    from cxr_ray.scorer import Scorer
    from cxr_ray.weights import load_bundle

    films = [five_megapixel_jpeg(seed) for seed in range(8)]
    decoded = rate(lambda film: preprocess(decode(film).pixels), films)
    scorer = Scorer(load_bundle(arguments.weights), full_maps=False)
    frames = [preprocess(decode(film).pixels)[None] for film in films]
    scored = rate(scorer.score, frames)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "films"
        archive.mkdir()
        for number in range(arguments.images):
            (archive / f"film-{number:05d}.jpg").write_bytes(films[number % len(films)])
        curve = run_ray(str(archive), f"{folder}/out", arguments.weights, arguments.images, actors=1)
        ours = slope(curve, arguments.images)
    again = rate(scorer.score, frames)
    slower = min(decoded, (scored + again) / 2)
    print(
        f"one process: decoding {decoded:.2f} images/s, scoring {scored:.2f} before and {again:.2f} after; "
        f"pipeline with one scorer {ours:.2f}, ratio to the slower {ours / slower:.3f}"
    )


def rate(work: Any, inputs: list[Any], seconds: float = 20.0) -> float:
    """Inputs per second of one process, one after the other and over again."""
    work(inputs[0])
    done, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        work(inputs[done % len(inputs)])
        done += 1
    return done / (time.monotonic() - start)


def write_films(folder: Path, count: int) -> str:
    """``count`` different phantom PNGs of a usual size."""
    folder.mkdir(parents=True)
    base = [phantom(np.random.default_rng(seed)) for seed in range(12)]
    for number in range(count):
        shifted = np.roll(base[number % len(base)], number // len(base), axis=1)
        cv2.imwrite(str(folder / f"film-{number:05d}.png"), (shifted >> 4).astype(np.uint8))
    return str(folder)


# -- shards for other benchmarks -----------------------------------------------------------------------


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("throughput")
    first.add_argument("--archive", help="folder of images; default: phantoms")
    first.add_argument("--images", type=int, default=300)
    first.add_argument("--weights", default="seeded")
    first.add_argument("--runs", type=int, default=2)
    second = commands.add_parser("slowest")
    second.add_argument("--images", type=int, default=200)
    second.add_argument("--weights", default="default")
    arguments = parser.parse_args()
    with_environment_of_workers()
    if arguments.command == "throughput":
        throughput(arguments)
    else:
        slowest(arguments)


if __name__ == "__main__":
    main()
