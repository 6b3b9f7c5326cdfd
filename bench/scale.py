"""Does a long run cost more per image, or more memory, as it goes on or as scorers are added?

    python bench/scale.py [--images 100000] [--actors 2 4 8] [--report-only]
    python bench/scale.py --films DIR [--images 10000] [--weights URL] [--actors 2]

Runs ``bench/null_scorer.py`` over generated shards of 1,000 rows (no decoding: a row's pixels are a pattern that
Parquet keeps in half a kilobyte), with CPU and memory of the whole process tree sampled all the while. Then once
more with 8 scorers that sleep 20 ms an image. Prints prediction and result of every target; ends with 1 where one is
missed, unless ``--report-only``.

With ``--films`` the real network scores copies of the films of DIR instead, and images/s are what must stay equal.

All figures are differences inside a run: from a tenth of its images on, or from when every scorer was ready if that
was later, until the first scorer leaves. Starting costs tens of CPU seconds and leaving 0.7 a scorer, once. The images
done at a moment are counted as the mean of those scored and those published: half of the work comes before
publishing, and scorers that cost nothing run ahead of it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

import itertools

from bench.process_tree import Measured, measure
from cxr_ray.preprocess import COLUMNS, ROWS

ROOT = Path(__file__).parents[1]
UNIT = 1000
WINDOWS = 3
TOLERANCE = 0.10
SLEEP_SECONDS = 0.020
SLEEPERS = 8
SLEEP_SHARE = 0.95
MANY_ACTORS = 64
HEADER = "| what | predicted | result | target | |\n| --- | --- | --- | --- | --- |"

CPU_PREDICTION = "0.9 to 1.1 ms"
_SCORER, _TASK = "ray::MapWorker(", "ray::MapBatches("
_MIB = 2**20


@dataclass
class Sample:
    """One moment: seconds since the start, images done, CPU seconds of the tree (and its share in the kernel), MiB of
    driver, scorers and other workers."""

    at_s: float
    images: float
    cpu_s: float
    system_s: float
    driver_cpu_s: float
    driver_mib: float
    scorer_mib: float
    worker_mib: float
    scorers_ready: int


@dataclass
class Run:
    """One run of the job, as sampled."""

    done: Measured
    samples: list[Sample]
    images: int
    actors: int

    def kept(self) -> list[Sample]:
        """From a tenth of the images, and all scorers ready, to the first that leaves."""
        there = [i for i, s in enumerate(self.samples) if s.scorers_ready >= self.actors]
        return [s for s in self.samples[there[0] : there[-1] + 1] if s.images >= self.images / 10]

    def windows(self) -> list[list[Sample]]:
        """``kept`` in equal parts by images; neighbours share a sample."""
        kept = self.kept()
        images = np.array([sample.images for sample in kept])
        edges = np.searchsorted(images, np.linspace(images[0], images[-1], WINDOWS + 1))
        return [kept[start : stop + 1] for start, stop in itertools.pairwise(edges)]

    def cpu_ms(self, samples: list[Sample] | None = None, *, system: bool = False) -> float:
        """CPU milliseconds per image over some samples (all that are kept), or the kernel's share of them."""
        first, last = (samples or self.kept())[0], (samples or self.kept())[-1]
        spent = last.system_s - first.system_s if system else last.cpu_s - first.cpu_s
        return 1000 * spent / (last.images - first.images)

    def driver_ms(self) -> float:
        """The driver's share of it."""
        first, last = self.kept()[0], self.kept()[-1]
        return 1000 * (last.driver_cpu_s - first.driver_cpu_s) / (last.images - first.images)

    def growth(self, name: str) -> float:
        """Peak of the last window over peak of the first, minus one."""
        windows = self.windows()
        first, last = (max(getattr(s, name) for s in window) for window in (windows[0], windows[-1]))
        return last / first - 1


@dataclass
class Sampler:
    """Called with every sample of the process tree."""

    parts: Path
    start: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    _tasks: set[int] = field(default_factory=set)
    _system: dict[int, float] = field(default_factory=dict)

    def __call__(self, cpu_s: float, members: list[psutil.Process]) -> None:
        scorers, workers, ready = [], [], 0
        try:
            own_times, own_memory = members[0].cpu_times(), members[0].memory_info()
        except psutil.NoSuchProcess:
            return
        self._system[members[0].pid] = own_times.system
        for member in members[1:]:
            try:
                self._system[member.pid] = member.cpu_times().system
                title, memory = " ".join(member.cmdline()), member.memory_info()
            except psutil.Error:
                continue
            # Pages of the object store are counted in every process that has touched them; they are not its own.
            own = (memory.rss - memory.shared) / _MIB
            if title.startswith(_SCORER):
                scorers.append(own)
                ready += "__init__" not in title
            elif title.startswith(_TASK) or member.pid in self._tasks:
                self._tasks.add(member.pid)
                workers.append(own)
        published = len(list(self.parts.iterdir())) if self.parts.is_dir() else 0
        self.samples.append(
            Sample(
                at_s=time.monotonic() - self.start,
                images=published * UNIT,
                cpu_s=cpu_s,
                system_s=sum(self._system.values()),
                driver_cpu_s=own_times.user + own_times.system,
                driver_mib=own_memory.rss / _MIB,
                scorer_mib=max(scorers, default=0.0),
                worker_mib=max(workers, default=0.0),
                scorers_ready=ready,
            )
        )


def make_shards(folder: Path, images: int) -> str:
    """An ingest OUTPUT of ``images`` rows in shards of ``UNIT``, half a kilobyte a row on disk."""
    from bench.pipeline import begin_shards, write_shard

    identity, publisher = begin_shards(folder)
    ramp = np.linspace(0, 255, ROWS, dtype=np.uint8)
    for start in range(0, images, UNIT):
        # Rows of one grey level each: a frame that compresses two hundredfold.
        numbers = range(start, min(start + UNIT, images))
        frames = [np.repeat(np.roll(ramp, number)[:, None], COLUMNS, axis=1) for number in numbers]
        write_shard(publisher, identity, start // UNIT, start, frames)
    return str(folder)


def copy_films(source: Path, folder: Path, images: int) -> str:
    """An archive of that many films, copies of those in ``source``."""
    films = sorted(path for path in source.iterdir() if path.suffix != ".csv")
    folder.mkdir()
    for number in range(images):
        film = films[number % len(films)]
        shutil.copyfile(film, folder / f"{number:07d}{film.suffix}")
    return str(folder)


def run(
    archive: str, output: str, *, images: int, actors: int, sleep: float = 0.0, weights: str | None = None
) -> Run:
    """The job with ``actors`` scorers over the first ``images`` rows; without weights, they cost nothing."""
    script = ["bench/null_scorer.py"] if weights is None else ["jobs/score.py", f"weights={weights}"]
    command = [sys.executable, *script, f"archive={archive}", f"output={output}"]
    command += [f"actors={actors}", f"limit={images}", "progress_seconds=0.5"]
    sampler = Sampler(Path(output, "scores"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NULL_SCORER_SECONDS": str(sleep)}
    done = measure(command, env=environment, watch=sampler)
    if done.code:
        raise SystemExit("\n".join(line for _, line in done.lines[-20:]))
    shutil.rmtree(output)
    moments, scored = progress(done)
    for sample in sampler.samples:
        count = float(np.interp(sample.at_s, moments, scored))
        # The real network is no faster than what follows, and a part is minutes of its work.
        sample.images = count if weights is not None else (sample.images + count) / 2
    return Run(done, sampler.samples, images, actors)


def progress(done: Measured) -> np.ndarray:
    """Seconds since the start, and images scored by then: ``[2, n]``, by the job's progress lines."""
    found = ((moment, re.match(r"([\d,]+) of [\d,]+ images", line)) for moment, line in done.lines)
    curve = [(moment, int(match[1].replace(",", ""))) for moment, match in found if match]
    return np.array([(0.0, 0), *curve]).T


def rate(done: Measured, images: int) -> float:
    """Images per second between 20 % and 80 % of the images."""
    moments, scored = progress(done)
    kept = (0.2 * images <= scored) & (scored <= 0.8 * images)
    return float(np.polyfit(moments[kept], scored[kept], 1)[0])


def report_films(report: Report, found: Run) -> None:
    """The lines of a run of the real network."""
    rates = [
        (window[-1].images - window[0].images) / (window[-1].at_s - window[0].at_s)
        for window in found.windows()
    ]
    mean = sum(rates) / len(rates)
    worst = max(abs(rate / mean - 1) for rate in rates)
    written = ", ".join(f"{rate:.2f}" for rate in rates)
    report.line(
        "images/s by window",
        "equal",
        f"{written}: {worst:.1%} from the mean",
        "within 10 %",
        worst <= TOLERANCE,
    )
    report_memory(report, found)


@dataclass
class Report:
    """Lines of the table, and whether a target was missed."""

    missed: bool = False

    def line(self, what: str, predicted: str, result: str, target: str, kept: bool | None) -> None:
        """One line; ``kept`` None: a figure without a target."""
        self.missed |= kept is False
        verdict = {True: "kept", False: "MISSED", None: ""}[kept]
        print(f"| {what} | {predicted} | {result} | {target} | {verdict} |", flush=True)


def report_run(report: Report, found: Run) -> None:
    """The lines of one number of scorers."""
    mean = found.cpu_ms()
    shares = [found.cpu_ms(window) for window in found.windows()]
    worst = max(abs(share / mean - 1) for share in shares)
    name = f"{found.actors} scorers"
    start, end = (found.kept()[i].images / found.images for i in (0, -1))
    written = ", ".join(f"{share:.2f}" for share in shares)
    kernel = [found.cpu_ms(window, system=True) for window in found.windows()]
    outside = ", ".join(f"{share - part:.2f}" for share, part in zip(shares, kernel, strict=True))
    report.line(f"{name}: CPU per image", CPU_PREDICTION, f"{mean:.2f} ms", "", None)
    report.line(f"{name}: of it outside the kernel, by window", "equal", f"{outside} ms", "", None)
    report.line(
        f"{name}: the same in {WINDOWS} windows from {start:.0%} to {end:.0%}",
        "equal",
        f"{written} ms, {worst:.1%} from the mean",
        "within 10 %",
        worst <= TOLERANCE,
    )
    report_memory(report, found)


def report_memory(report: Report, found: Run) -> None:
    """That no process grows."""
    name = f"{found.actors} scorers"
    memory = [sample.driver_mib for sample in found.kept()]
    spread = max(memory) / min(memory) - 1
    report.line(
        f"{name}: memory of the driver",
        "300 MiB, flat",
        f"{min(memory):.0f} to {max(memory):.0f} MiB, {spread:+.1%}",
        "within 10 %",
        spread <= TOLERANCE,
    )
    for kind, predicted in (("scorer", "400 MiB, flat"), ("worker", "400 MiB, flat")):
        growth = found.growth(f"{kind}_mib")
        peak = max(getattr(sample, f"{kind}_mib") for sample in found.kept())
        report.line(
            f"{name}: memory of the largest {kind}, last window against first",
            predicted,
            f"peak {peak:.0f} MiB, {growth:+.1%}",
            "at most +10 %",
            growth <= TOLERANCE,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, help="default: 100000, of films 10000")
    parser.add_argument("--actors", type=int, nargs="+", help="default: 2 4 8, with films 2")
    parser.add_argument("--films", type=Path, help="a folder of images for the real network")
    parser.add_argument("--weights", default="default", help="of the real network")
    parser.add_argument(
        "--sleep-images",
        type=int,
        default=24_000,
        help="images of the run that sleeps; 16000 at least, two units a scorer",
    )
    parser.add_argument("--folder", help="for shards and tables; default: a temporary one")
    parser.add_argument("--report-only", action="store_true", help="end with 0 whatever was found")
    arguments = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.films is None:
            without_network(report, folder, arguments)
        else:
            images, weights = arguments.images or 10_000, arguments.weights
            archive = copy_films(arguments.films, Path(folder) / "films", images)
            print(HEADER, flush=True)
            for actors in arguments.actors or [2]:
                report_films(
                    report,
                    run(archive, f"{folder}/out-{actors}", images=images, actors=actors, weights=weights),
                )
    sys.exit(1 if report.missed and not arguments.report_only else 0)


def without_network(report: Report, folder: str, arguments: argparse.Namespace) -> None:
    """Scorers that cost nothing, then such that sleep."""
    count = arguments.images or 100_000
    shards = make_shards(Path(folder) / "shards", max(count, arguments.sleep_images))
    print(HEADER, flush=True)
    runs = []
    for actors in arguments.actors or [2, 4, 8]:
        runs.append(run(shards, f"{folder}/out-{actors}", images=count, actors=actors))
        report_run(report, runs[-1])
    costs = {found.actors: found.cpu_ms() for found in runs}
    mean = sum(costs.values()) / len(costs)
    worst = max(abs(cost / mean - 1) for cost in costs.values())
    written = ", ".join(f"{actors}: {cost:.2f}" for actors, cost in costs.items())
    report.line(
        "CPU per image over numbers of scorers",
        "equal",
        f"{written} ms, {worst:.1%} from the mean",
        "within 10 %",
        worst <= TOLERANCE,
    )
    images = arguments.sleep_images
    sleeping = run(shards, f"{folder}/out-sleep", images=images, actors=SLEEPERS, sleep=SLEEP_SECONDS)
    best, reached = SLEEPERS / SLEEP_SECONDS, rate(sleeping.done, images)
    report.line(
        f"{SLEEPERS} scorers that sleep {SLEEP_SECONDS * 1000:.0f} ms, between 20 % and 80 % of {images:,} images",
        "0.97 of 400 images/s",
        f"{reached:.0f} images/s, {reached / best:.3f}",
        f"{SLEEP_SHARE} of {best:.0f}",
        reached >= SLEEP_SHARE * best,
    )
    many = MANY_ACTORS / SLEEP_SECONDS
    driver_ms = max(found.driver_ms() for found in runs)
    report.line(
        f"{MANY_ACTORS} such scorers, {many:.0f} images/s: DERIVED from CPU per image, not run",
        "3 to 4 cores",
        f"{many * mean / 1000:.1f} cores for the pipeline, of which the driver {many * driver_ms / 1000:.2f}",
        "driver below 1 core",
        many * driver_ms / 1000 < 1,
    )


if __name__ == "__main__":
    main()
