"""``jobs/train.py`` behind its options: prepare, train the members, or assemble; then one JSON line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import MissingExtra, RunFailed, TrainingDataError
from cxr_ray.pipeline.publish import Publisher
from training.binding import bind
from training.data.example import Example
from training.data.licences import licence_basis
from training.data.manifest import manifest_root, read_manifest
from training.data.masks import load_masks
from training.material import Material, divide, gather, read_material, split_bytes
from training.members import DONE, member_names
from training.options import Execution, TrainOptions, absolute, as_plain
from training.outputs import DATA
from training.overlap import seen_by_segmenter
from training.sides import left_out
from training.split_table import SPLIT_FILE
from training.tasks import work_folder

EXIT_OK = 0


def run_training(options: TrainOptions) -> int:
    """Carry out one task; returns the exit code.

    Raises:
        UsageError: options, data or an output that cannot serve.
        RunFailed: a member did not reach its end; the same command goes on from its last checkpoint.
    """
    started = time.monotonic()
    output = open_storage(options.output, options.output_options)
    publisher = Publisher(output)
    bind(options, publisher, write=False)
    if options.task == "assemble":
        from training.assemble import assemble

        facts = assemble(options, publisher)
    else:
        # Nothing is written before the data have been found good: a first mistake costs nothing but a new try.
        if publisher.read(SPLIT_FILE) is None:
            material = checked_material(options)
            bind(options, publisher, write=True)
            write_material(material, publisher, unused_rows(options))
        else:  # decided before; refused where the data have changed since
            print(describe(read_material(options)), file=sys.stderr, flush=True)
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


def checked_material(options: TrainOptions) -> Material:
    """Read all data and decide the split, so that bad data are refused before any worker starts. Raises UsageError."""
    material = divide(gather(options), options)
    if options.task == "segmentation":
        used = [i for i, side in enumerate(material.split) if side in ("train", "val")]
        load_masks(
            material.frames.take(used), root=manifest_root(options.manifest), options=options.manifest.options
        )
    else:
        material = replace(material, seen_by_segmenter=seen_by_segmenter(options, material))
    print(describe(material), file=sys.stderr, flush=True)
    return material


def unused_rows(options: TrainOptions) -> dict[str, int]:
    """Rows of the manifest that this task cannot use, said on stderr too."""
    needed = "mask" if options.task == "segmentation" else "label"
    without = sum(getattr(example, needed) is None for example in read_manifest(options.manifest))
    if not without:
        return {}
    print(f"{without:,} rows of the manifest have no {needed}", file=sys.stderr, flush=True)
    return {f"no_{needed}": without}


def write_material(material: Material, output: Publisher, unused: Mapping[str, int]) -> None:
    """The split, and what is to be known of the data; the split last, since it says that both are there."""
    facts = {
        "pictures": len(material.frames),
        "unused_rows": dict(unused),
        "dropped": material.frames.dropped,
        "regrouped": [asdict(one) for one in material.regrouped],
        "seen_by_segmenter": dict(material.seen_by_segmenter),
        "licence_basis": licence_basis(
            [e for e, side in _rows(material) if side in ("train", "calibration")],
            [e for (e, _), why in zip(_rows(material), material.reason, strict=True) if why == "licence"],
        ),
    }
    output.replace(DATA, json.dumps(facts, indent=1).encode())
    output.replace(SPLIT_FILE, split_bytes(material))


def _rows(material: Material) -> list[tuple[Example, str]]:
    return list(zip(material.frames.examples, material.split, strict=True))


def describe(material: Material) -> str:
    """Counts of the split, for a progress line."""
    sides, counts = np.unique(np.array(material.split), return_counts=True)
    parts = [f"{count:,} {side}" for side, count in zip(sides, counts, strict=True)]
    lines = [f"pictures: {', '.join(parts)}"]
    lines += [f"left out: {one}" for one in left_out(material.frames, material.reason)]
    lines += [f"dropped: {count:,} {why}" for why, count in sorted(material.frames.dropped.items())]
    lines += [
        f"group {one.group_key} is taken apart by patient: {one.pictures:,} pictures, {one.share:.0%} of its source"
        for one in material.regrouped
    ]
    lines += [
        f"{count:,} pictures of {side} share file, patient or group with pictures that Module 1 was trained on"
        for side, count in material.seen_by_segmenter.items()
    ]
    return "; ".join(lines)


def train_members(options: TrainOptions, output: Storage) -> dict[str, Any]:
    """Train every member that is not done. Raises RunFailed if one is missing afterwards."""
    names = member_names(options)
    if not names:
        raise TrainingDataError("execution.only names no member of this run")
    plain = as_plain(absolute(options))
    members = [{"name": name, "options": plain} for name in names if not _done(output, name)]
    if members:
        _launch(members, options, output)
    missing = [name for name in names if not _done(output, name)]
    if missing:
        raise RunFailed(f"{', '.join(missing)} did not finish; run the same command again to go on")
    everyone = member_names(replace(options, execution=replace(options.execution, only=[])))
    if options.execution.work_dir is None and all(_done(output, name) for name in everyone):
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
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra(
            'execution.launcher=ray needs Ray: pip install "cxr_ray[jobs]", or train here with execution.launcher=local'
        )
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
