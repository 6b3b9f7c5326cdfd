"""``jobs/train.py`` behind its options: prepare, train the members, or assemble; then one JSON line."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import OutputError, RunFailed, TrainingDataError
from training.data.licences import licence_basis
from training.data.manifest import Example, manifest_root
from training.data.masks import load_masks
from training.material import LEFT_OUT, Material, divide, gather, write_split
from training.members import DONE, member_names
from training.options import Execution, TrainOptions, as_plain, recorded
from training.tasks import work_folder

CONFIG = "config.json"
DATA = "data.json"
"""What the manifest and shards gave: counts, groups taken apart, licences."""
EXIT_OK = 0
_PACKAGES = ("cxr_ray", "torch", "numpy", "scipy", "kymatio", "opencv-python-headless", "scikit-learn", "ray")


def run_training(options: TrainOptions) -> int:
    """Carry out one task; returns the exit code.

    Raises:
        UsageError: options, data or an output that cannot serve.
        RunFailed: a member did not reach its end; the same command goes on from its last checkpoint.
    """
    started = time.monotonic()
    output = open_storage(options.output, options.output_options)
    bind(options, output)
    if options.task == "assemble":
        from training.assemble import assemble

        facts = assemble(options, output)
    else:
        prepare(options, output)
        facts = train_members(options, output)
    print(
        json.dumps(
            {
                "task": options.task,
                "output": output.url,
                **facts,
                "seconds": round(time.monotonic() - started, 1),
            }
        ),
        flush=True,
    )
    return EXIT_OK


def bind(options: TrainOptions, output: Storage) -> None:
    """Tie OUTPUT to what decides the weights; refuse one that was begun with something else.

    Raises:
        OutputError: begun with other settings; the message names them.
    """
    now = json.loads(json.dumps(recorded(options)))
    path = f"{output.path}/{CONFIG}"
    if output.fs.exists(path):
        before = json.loads(output.fs.cat_file(path))["settings"]
        odd = sorted(_differences(before, now))
        if odd:
            raise OutputError(
                f"this output was begun with other settings ({', '.join(odd[:5])}); give a new output, or the settings "
                f"it was begun with (in its {CONFIG})"
            )
        return
    output.fs.makedirs(output.path, exist_ok=True)
    facts = {"settings": now, "packages": _versions(), "python": platform.python_version()}
    with output.fs.open(path, "wb") as file:
        file.write(json.dumps(facts, indent=1).encode())


def prepare(options: TrainOptions, output: Storage) -> None:
    """Read and check all data before any worker starts, and write the split once."""
    material = divide(gather(options), options)
    if options.task == "segmentation":
        used = [i for i, side in enumerate(material.split) if side in ("train", "val")]
        load_masks(
            material.frames.take(used), root=manifest_root(options.manifest), options=options.manifest.options
        )
    if not output.fs.exists(f"{output.path}/split.parquet"):
        write_split(material, output)
    facts = {
        "pictures": len(material.frames),
        "dropped": material.frames.dropped,
        "regrouped": [asdict(one) for one in material.regrouped],
        "licence_basis": licence_basis(
            [e for e, side in _rows(material) if side in ("train", "calibration")],
            [e for (e, _), why in zip(_rows(material), material.reason, strict=True) if why == "licence"],
        ),
    }
    with output.fs.open(f"{output.path}/{DATA}", "wb") as file:
        file.write(json.dumps(facts, indent=1).encode())
    print(describe(material), file=sys.stderr, flush=True)


def _rows(material: Material) -> list[tuple[Example, str]]:
    return list(zip(material.frames.examples, material.split, strict=True))


def describe(material: Material) -> str:
    """Counts of the split, for a progress line."""
    sides, counts = np.unique(np.array(material.split), return_counts=True)
    parts = [f"{count:,} {side}" for side, count in zip(sides, counts, strict=True)]
    licence = sum(reason == "licence" for reason in material.reason)
    left = f"; {licence:,} of the {LEFT_OUT} for their licence" if licence else ""
    dropped = "".join(f"; {n:,} {why}" for why, n in sorted(material.frames.dropped.items()))
    return f"pictures: {', '.join(parts)}{left}{dropped}"


def train_members(options: TrainOptions, output: Storage) -> dict[str, Any]:
    """Train every member that is not done. Raises RunFailed if one is missing afterwards."""
    names = member_names(options)
    if not names:
        raise TrainingDataError("execution.only names no member of this run")
    members = [{"name": name, "options": as_plain(options)} for name in names if not _done(output, name)]
    if members:
        _launch(members, options, output)
    missing = [name for name in names if not _done(output, name)]
    if missing:
        raise RunFailed(f"{', '.join(missing)} did not finish; run the same command again to go on")
    if options.execution.work_dir is None:
        shutil.rmtree(work_folder(options), ignore_errors=True)  # gigabytes that nobody asked to keep
    return {
        "members": {
            name: json.loads(output.fs.cat_file(f"{output.path}/members/{name}/{DONE}")) for name in names
        }
    }


def _launch(members: list[dict[str, Any]], options: TrainOptions, output: Storage) -> None:
    execution = options.execution
    if execution.launcher == "local":
        from training.parallel.member_processes import run_members_locally

        run_members_locally(
            members,
            at_once=execution.at_once or local_slots(execution),
            device=execution.device,
            threads=execution.threads,
            max_failures=execution.max_failures,
        )
        return
    from training.parallel.ray_train import run_members

    run_members(
        members,
        workers=execution.workers,
        at_once=execution.at_once,
        device=execution.device,
        threads=execution.threads,
        max_failures=execution.max_failures,
        storage=output,
        address=execution.ray_address,
    )


def local_slots(execution: Execution) -> int:
    """Members that this machine trains side by side: one per GPU, or per ``threads`` CPUs."""
    if execution.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.device_count()
    return max(1, len(os.sched_getaffinity(0)) // execution.threads)


def _done(output: Storage, name: str) -> bool:
    return bool(output.fs.exists(f"{output.path}/members/{name}/{DONE}"))


def _differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = before.keys() | now.keys()
        return [
            odd for name in names for odd in _differences(before.get(name), now.get(name), f"{prefix}{name}.")
        ]
    return [] if before == now else [prefix.rstrip(".")]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
