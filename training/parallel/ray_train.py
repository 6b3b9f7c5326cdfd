"""Members on a Ray cluster, each as one Ray Train run; the only file that knows Ray Train.

Ray Train gives what our loop cannot: workers on any node with a process group between them, all started again when
one dies. State is none of its business: a worker resumes from our own checkpoints, which outlive cluster and driver.
So a run of Ray Train has a new name each time and keeps its book-keeping in a folder that is thrown away.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
import torch

from cxr_ray.archives.storage import Storage
from cxr_ray.errors import CxrRayError
from cxr_ray.pipeline.cluster import (
    available_cpus,
    cluster_machines,
    joins_cluster,
    ray_session,
)
from training.parallel.layout import Workers, lay_out
from training.parallel.messages import (
    RUN_MEMBER,
    Listener,
    died,
    error_of,
    find,
    is_final,
    outcome,
    print_row,
)
from training.parallel.noticeboard import Noticeboard
from training.parallel.processes import Processes

BOOKS = "ray_train"
"""Folder for Ray Train's own files, below ``storage``; removed at the end of a run."""

SETTINGS = {
    # Ray Train would move its workers into a folder of its own, away from relative paths and modules.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A report waits until the controller looks at its workers; at the default of 2 s every epoch loses that long.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # Importing torch on a busy machine takes longer than the default of 60 s.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
}
"""Environment of Ray Train, where the user has not set it."""


def run_members(
    members: Sequence[dict[str, Any]],
    *,
    workers: int = 1,
    at_once: int | None = None,
    device: str = "auto",
    threads: int = 1,
    max_failures: int = 3,
    storage: Storage,
    address: str | None = None,
    listener: Listener = print_row,
    entry: str = RUN_MEMBER,
) -> None:
    """Start or join Ray and run every member to its end; those that can go on do so when another fails.

    Args:
        members: settings for ``entry``, plain values; each with its ``name``.
        workers: processes of one member.
        at_once: members side by side; default: what CPUs or GPUs allow.
        device: ``cpu``, ``cuda``, or ``auto``: GPUs where there are any.
        threads: CPU threads of a worker.
        max_failures: how often the workers of a member are started again.
        storage: a folder that every node can write.
        address: the cluster; default: RAY_ADDRESS, else a Ray of this machine for the time of the call.
        listener: gets what rank 0 of every member reports.
        entry: ``module:function`` that runs one member in each of its workers.

    Raises:
        UsageError: no cluster there, or it can never hold ``workers``.
        CxrRayError: a member met an error that no new try can mend (after all others ended).
        RunFailed: a member's workers died too often.
    """
    local_cpus = None if joins_cluster(address) else max(available_cpus(), workers * threads)
    with ray_session(address, local_cpus):
        machines = cluster_machines()
        share, slots = lay_out(
            machines.cpus,
            machines.gpus,
            members=len(members),
            workers=workers,
            at_once=at_once,
            device=device,
            threads=threads,
        )
        board = ray.remote(num_cpus=0)(Noticeboard).remote()
        fit = ray.remote(num_cpus=0, max_retries=0)(train_on_ray)
        waiting = list(members)
        running: dict[Any, str] = {}
        errors: dict[str, CxrRayError] = {}
        while waiting or running:
            while waiting and len(running) < slots:
                member = waiting.pop(0)
                task = fit.remote(
                    member,
                    workers=share,
                    max_failures=max_failures,
                    storage=storage,
                    board=board,
                    entry=entry,
                )
                running[task] = member["name"]
            ended, _ = ray.wait(list(running), timeout=1.0)
            _tell(board, listener)
            for task in ended:
                name = running.pop(task)
                error = _error_of_task(task, name, board, max_failures)
                if error is not None:
                    errors[name] = error
        _tell(board, listener)
    outcome([member["name"] for member in members], errors)


def train_on_ray(
    member: dict[str, Any],
    *,
    workers: Workers,
    max_failures: int,
    storage: Storage,
    board: Any,
    entry: str = RUN_MEMBER,
) -> None:
    """Run one member as one Ray Train run; within a started Ray, from the driver or any task.

    Raises:
        ray.train.TrainingFailedError: its workers died more than ``max_failures`` times.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in SETTINGS.items()})
    name = f"{member['name']}-{uuid.uuid4().hex[:12]}"
    # Bound, not passed as train_loop_config, which Ray shows on its dashboard: settings may hold credentials.
    loop = functools.partial(_work, member, workers, board, entry)
    resources = {"CPU": float(workers.threads)} | ({"GPU": workers.gpus} if workers.gpus else {})
    try:
        ray.train.torch.TorchTrainer(
            loop,
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if workers.gpus else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=name,
                failure_config=ray.train.FailureConfig(max_failures=max_failures),
                **_books(storage),
            ),
        ).fit()
    finally:
        _throw_away(storage, member["name"])


def _work(member: dict[str, Any], workers: Workers, board: Any, entry: str) -> None:
    """One worker, from its first or a new start to the member's end."""
    name = member["name"]
    if ray.get(board.refusal.remote(name)) is not None:
        return  # started again after an error that no new try can mend
    torch.set_num_threads(workers.threads)
    # Asked for only with a GPU of our own: Ray names the first one to a worker that has none.
    device = ray.train.torch.get_device() if workers.gpus else torch.device("cpu")
    processes = Processes.from_environment(device)

    def report(row: dict[str, Any]) -> None:
        ray.train.report(dict(row))
        if processes.rank == 0:
            board.add.remote(name, dict(row))

    try:
        find(entry)(member, processes, report)
    except Exception as error:
        if is_final(error):
            ray.get(board.refuse.remote(name, error.code, str(error)))  # type: ignore[attr-defined]
        else:
            ray.get(board.note.remote(name, traceback.format_exc()))
        raise


def _tell(board: Any, listener: Listener) -> None:
    rows, notes = ray.get(board.take.remote())
    for name, row in rows:
        listener(name, row)
    for name, text in notes:
        for line in text.splitlines():
            print(f"{name} | {line}", file=sys.stderr, flush=True)


def _error_of_task(task: Any, name: str, board: Any, max_failures: int) -> CxrRayError | None:
    """What became of a member; a refusal counts however its run ended."""
    failure: Exception | None = None
    try:
        ray.get(task)
    except Exception as error:
        failure = error
    refusal = ray.get(board.refusal.remote(name))
    if refusal is not None:
        return error_of(*refusal)
    return None if failure is None else died(name, max_failures + 1, _reason(failure))


def _reason(failure: Exception) -> str:
    """The kind of error that ended the last try, without its text."""
    cause = getattr(failure, "cause", None) or failure
    workers = getattr(cause, "worker_failures", None) or {}
    kinds = {type(error).__name__ for error in workers.values()} or {type(cause).__name__}
    return ", ".join(sorted(kinds))


def _books(storage: Storage) -> dict[str, Any]:
    """Where a run of Ray Train keeps its own files, as RunConfig wants it."""
    path = f"{storage.path.rstrip('/')}/{BOOKS}"
    if storage.is_local:
        return {"storage_path": path}
    handler = pyarrow.fs.FSSpecHandler(storage.fs)
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(handler)}


def _throw_away(storage: Storage, member: str) -> None:
    """Remove what this run and killed ones before it left, best effort: a store that refuses deletion keeps it."""
    folder = f"{storage.path.rstrip('/')}/{BOOKS}"
    own = re.compile(rf"{re.escape(member)}-[0-9a-f]{{12}}")
    # Whatever goes wrong here is no reason to lose a member that has reached its end.
    with suppress(Exception):
        storage.fs.invalidate_cache()
        for entry in storage.fs.ls(folder, detail=False):
            if own.fullmatch(entry.rstrip("/").rsplit("/", 1)[-1]):
                storage.fs.rm(entry, recursive=True)
        if storage.is_local and not os.listdir(folder):
            os.rmdir(folder)
