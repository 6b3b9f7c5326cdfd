"""What a run will take, foretold from a few images: ``dry_run=true``.

A sample of what would be planned is decoded, scored and encoded here, with the job's own bundle, threads and options;
then as many scorers as this machine would run work side by side for two seconds. These times are carried over to all
images and the resources at hand. Nothing is written.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ray.pipeline.assignments import SEQUENTIAL_KINDS
from cxr_ray.pipeline.decode_unit import decode_unit
from cxr_ray.pipeline.expected_rate import ExpectedRate, expected_rate
from cxr_ray.pipeline.parts import encode_part, finished_table, published_units
from cxr_ray.pipeline.plan import SHARD_KIND, Plan, PlannedImage, counted_units, planned_image, read_unit
from cxr_ray.pipeline.planner import Listing, cut_units
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.resources import CUDA, Resources
from cxr_ray.pipeline.score_unit import score_unit
from cxr_ray.pipeline.scorer_process import scoring_rate
from cxr_ray.pipeline.shard_source import read_shard_unit
from cxr_ray.shards import QUARANTINED, READY

if TYPE_CHECKING:
    from cxr_ray.pipeline.screening import Work

SEED = 20_240_501
SAMPLED_UNITS = 4
IMAGES_PER_UNIT = 8


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a few images took.

    Attributes:
        images: how many.
        ready: how many of them could be decoded.
        quarantined: how many would not get a score (or, in shards, pixels).
        decode_seconds: wall seconds to read, decode and preprocess all of them, one after the other.
        decode_cpu_seconds: CPU seconds of the same, the decode process included.
        score_rate: images per second of one scorer, others at work beside it; None without scorer.
        part_bytes: encoded size of their rows.
    """

    images: int
    ready: int
    quarantined: int
    decode_seconds: float
    decode_cpu_seconds: float
    score_rate: float | None
    part_bytes: int


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A run foretold; ``rates`` are those of all workers together."""

    images: int
    units: int
    bytes_to_read: int
    rates: ExpectedRate
    output_bytes: int
    sample: Sample

    @property
    def hours(self) -> float:
        return self.images / self.rates.overall / 3600 if self.images else 0.0

    def record(self) -> dict[str, Any]:
        """For the job's last line."""
        return {
            "images": self.images,
            "units": self.units,
            "bytes_to_read": self.bytes_to_read,
            "images_per_second": _rounded(self.rates.overall),
            "decode_images_per_second": _rounded(self.rates.decode),
            "score_images_per_second": None if self.rates.score is None else _rounded(self.rates.score),
            "cores_images_per_second": _rounded(self.rates.cores),
            "hours": _rounded(self.hours),
            "output_bytes": self.output_bytes,
            "sampled_images": self.sample.images,
            "sampled_quarantined": self.sample.quarantined,
        }

    def lines(self, resources: Resources) -> Iterator[str]:
        """The same for people."""
        yield (
            f"{self.images:,} images in {counted_units(self.units)} to do, {_size(self.bytes_to_read)} to read; "
            f"sampled {self.sample.images}, of which {self.sample.quarantined} would be quarantined"
        )
        if not self.images:
            return
        scorers = "" if self.rates.score is None else f"{resources.actors} scorers on {resources.device} and "
        yield (
            f"about {self.rates.overall:,.3g} images/s with {scorers}{resources.decode_tasks} decode tasks "
            f"({self.rates.decided_by} decides): {_duration(self.hours)}, {_size(self.output_bytes)} of output"
        )


def foretell(plan: Plan, listing: Listing, output: Publisher, work: Work, largest: int) -> Prediction:
    """Foretell the run that publishes what is planned and open, and what ``listing`` selects."""
    done = published_units(output, work.identity.kind)
    open_units = [unit for unit in plan.units() if unit.unit_id not in done]
    images = listing.images + sum(unit.images for unit in open_units)
    bytes_to_read = sum(_bytes(table) for table in listing.batches())
    groups, units = choose_sample(listing.batches(), largest)
    if open_units:
        names = pa.array([unit.unit_id for unit in open_units])
        for table in plan.tables(columns=["unit_id", "size"]):
            bytes_to_read += _bytes(table.filter(pc.is_in(table.column("unit_id"), value_set=names)))
    if not groups and open_units:
        first = random.Random(SEED).sample(open_units, min(SAMPLED_UNITS, len(open_units)))
        groups = [read_unit(plan.publisher, unit)[:IMAGES_PER_UNIT] for unit in first]
    return predict(
        take_sample(groups, work),
        images=images,
        units=units + len(open_units),
        bytes_to_read=bytes_to_read,
        resources=work.resources,
        scoring=work.scorer is not None,
    )


def choose_sample(
    tables: Iterable[pa.Table], largest: int, *, seed: int = SEED
) -> tuple[list[list[PlannedImage]], int]:
    """A few images of a few units, always the same of the same plan, and the number of all units.

    Of a tar.gz only the first unit is a candidate: reaching a later one would mean reading all before it.
    """
    chance = random.Random(seed)
    chosen: list[pa.Table] = []
    units = candidates = 0
    last_stream: Any = None
    for unit in cut_units(tables, largest):
        units += 1
        kind, container = unit.column("kind")[0].as_py(), unit.column("container")[0].as_py()
        if kind in SEQUENTIAL_KINDS:
            if container == last_stream:
                continue
            last_stream = container
        candidates += 1
        # Every candidate stays with the same probability, whatever their number turns out to be.
        place = len(chosen) if len(chosen) < SAMPLED_UNITS else chance.randrange(candidates)
        if place < SAMPLED_UNITS:
            start = 0
            if kind not in SEQUENTIAL_KINDS and unit.num_rows > IMAGES_PER_UNIT:
                start = chance.randrange(unit.num_rows - IMAGES_PER_UNIT + 1)
            picked = unit.slice(start, IMAGES_PER_UNIT).take(
                list(range(min(IMAGES_PER_UNIT, unit.num_rows - start)))
            )
            chosen[place : place + 1] = [picked]
    return [[planned_image(row) for row in table.to_pylist()] for table in chosen], units


def take_sample(groups: list[list[PlannedImage]], work: Work) -> Sample:
    """Decode, score and encode the sample here and now; bad images are part of it.

    Raises:
        StorageReadError: the archive does not answer.
    """
    start, cpu_before = time.perf_counter(), _cpu_seconds()
    tables = []
    for images in groups:
        if images[0].source.kind == SHARD_KIND:
            tables.append(read_shard_unit(images, work.settings.archive_options))
        else:
            tables.append(decode_unit(images, work.settings))
    decode_seconds, decode_cpu = time.perf_counter() - start, _cpu_seconds() - cpu_before
    ready = sum(_count(table, READY) for table in tables)
    score_rate = None
    if tables and work.scorer is not None:
        scorer = work.scorer()
        tables = [score_unit(table, scorer, min_lung_fraction=work.min_lung_fraction) for table in tables]
        score_rate = _score_rate(work)
    part_bytes = 0
    for table in tables:
        part = finished_table(table, work.identity.kind, replace(work.footer, unit_id="sample"))
        # What is the same in every part whatever its rows is not carried over.
        part_bytes += len(encode_part(part)) - len(encode_part(part.slice(0, 0)))
    return Sample(
        images=sum(table.num_rows for table in tables),
        ready=ready,
        quarantined=sum(_count(table, QUARANTINED) for table in tables),
        decode_seconds=decode_seconds,
        decode_cpu_seconds=decode_cpu,
        score_rate=score_rate,
        part_bytes=part_bytes,
    )


def _score_rate(work: Work) -> float:
    """Images per second of one of the scorers that this machine, the one of a dry run, would run."""
    assert work.scorer is not None
    resources = work.resources
    # Of several GPUs one is measured: scorers on different ones hardly feel each other.
    here = 1 if resources.device == CUDA else max(1, min(resources.actors, int(resources.cores)))
    return scoring_rate(work.scorer, here) / here


def _cpu_seconds() -> float:
    """Of this process and of those that it has started (decode processes live on)."""
    this = psutil.Process()
    found = 0.0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found += times.user + times.system
    return found


def predict(
    sample: Sample, *, images: int, units: int, bytes_to_read: int, resources: Resources, scoring: bool
) -> Prediction:
    """Carry a sample over to ``images`` and ``resources``."""
    count = max(sample.images, 1)
    score = None
    if scoring and sample.score_rate is not None:
        # What cannot be decoded never reaches a scorer; but that a few of them cannot does not mean that none can.
        share = (sample.ready or count) / count
        score = sample.score_rate / share
    rates = expected_rate(
        resources,
        decode_wall=sample.decode_seconds / count,
        decode_cpu=sample.decode_cpu_seconds / count,
        score=score,
    )
    return Prediction(
        images=images,
        units=units,
        bytes_to_read=bytes_to_read,
        rates=rates,
        output_bytes=int(sample.part_bytes / count * images),
        sample=sample,
    )


def _bytes(table: pa.Table) -> int:
    return pc.sum(table.column("size")).as_py() or 0


def _count(table: pa.Table, status: str) -> int:
    return pc.sum(pc.equal(table.column("status"), status)).as_py() or 0


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.0f} seconds"
