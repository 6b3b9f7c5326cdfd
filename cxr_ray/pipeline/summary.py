"""What a run leaves behind beside the parts: ``runs/<attempt>.json`` once, and the derived ``run.json``."""

from __future__ import annotations

import json
import platform
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from cxr_ray.pipeline.failures import UnitFailure
from cxr_ray.pipeline.parts import folder_of, part_name
from cxr_ray.pipeline.plan import Plan, counted_units
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.shards import QUARANTINED

RUNS_FOLDER = "runs"
RUN_FILE = "run.json"
_PARTS_AT_ONCE = 256

#: Units and reasons that the last sentence of a failed run names.
_NAMED = 3

_PACKAGES = (
    "cxr_ray", "torch", "numpy", "kymatio", "scipy", "opencv-python-headless", "pillow", "pydicom", "python-gdcm",
    "pyarrow", "fsspec", "s3fs", "ray", "hydra-core",
)  # fmt: skip

#: Options whose values may be secrets; the names are recorded, the values never.
_SECRET_OPTIONS = ("archive_options", "output_options", "weights_options", "plan_options")
_PATH_OPTIONS = ("archive", "plan_dir", "key_file", "manifest", "exclude")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The table in numbers. ``kept``: rows with a score (or, in shards, with pixels)."""

    planned: int
    kept: int
    quarantined: int
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every planned image is a row."""
        return self.planned == self.kept + self.quarantined


def new_attempt() -> str:
    """Name of one run of a job: UTC time and a random tail."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"


def count_rows(publisher: Publisher, plan: Plan, kind: str) -> Counts:
    """Count the published rows by status and reason, from the parts of the planned units."""
    present = set(publisher.names(folder_of(kind)))
    parts = [
        publisher.path(part_name(kind, unit.unit_id))
        for unit in plan.units()
        if part_name(kind, unit.unit_id).rsplit("/", 1)[-1] in present
    ]
    if not parts:
        return Counts(planned=plan.images, kept=0, quarantined=0)
    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(publisher.storage.fs))
    rows = quarantined = 0
    reasons: Counter[str] = Counter()
    # A dataset keeps the footers of all its files (0.1 MB each), and two columns of ten million rows are large too.
    for start in range(0, len(parts), _PARTS_AT_ONCE):
        dataset = pads.dataset(parts[start : start + _PARTS_AT_ONCE], format="parquet", filesystem=filesystem)
        for batch in dataset.scanner(columns=["status", "reason"]).to_batches():
            rows += batch.num_rows
            quarantined += pc.sum(pc.equal(batch.column("status"), QUARANTINED)).as_py() or 0
            for entry in pc.value_counts(batch.column("reason").drop_null()):
                reasons[entry["values"].as_py()] += entry["counts"].as_py()
    return Counts(
        planned=plan.images,
        kept=rows - quarantined,
        quarantined=quarantined,
        reasons=dict(sorted(reasons.items())),
    )


def failure_sentence(failures: Sequence[UnitFailure], attempt: str) -> str:
    """What a run says that left units unpublished: how many, the first of them, and every reason once."""
    first = ", ".join(failure.unit_id for failure in failures[:_NAMED])
    more = ", ..." if len(failures) > _NAMED else ""
    reasons = list(dict.fromkeys(failure.reason for failure in failures))
    because = "; ".join(reasons[:_NAMED])
    were = "was" if len(failures) == 1 else "were"
    return (
        f"{counted_units(len(failures))} {were} not published ({first}{more}), because {because}; nothing is lost: "
        f"runs/{attempt}.json lists them, and the same command finishes them"
    )


def recordable(options: Any, *, keep_uri: bool) -> dict[str, Any]:
    """Resolved options without any value that may be a secret, or a path where paths are private."""
    record = asdict(options)
    for name in _SECRET_OPTIONS:
        if record.get(name):
            record[name] = dict.fromkeys(record[name], "(not recorded)")
    if not keep_uri:
        for name in _PATH_OPTIONS:
            if record.get(name):
                record[name] = "(not recorded)"
    return record


def versions() -> dict[str, str]:
    """Versions of the packages that decide pixels, scores or files."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_attempt(
    publisher: Publisher, attempt: str, record: dict[str, Any], *, started: bool = False
) -> None:
    """Publish ``runs/<attempt>.json``, once, at the end; ``runs/<attempt>.started.json`` at the start,
    so that a part whose run was killed still leads to its configuration."""
    tail = ".started" if started else ""
    publisher.publish(f"{RUNS_FOLDER}/{attempt}{tail}.json", json.dumps(record, indent=2).encode() + b"\n")


def write_run(publisher: Publisher, record: dict[str, Any]) -> None:
    """Replace the derived ``run.json``."""
    publisher.replace(RUN_FILE, json.dumps(record, indent=2).encode() + b"\n")
