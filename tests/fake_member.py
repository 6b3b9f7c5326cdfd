"""A member that trains a few numbers in no time, and can be told to die: for the launchers' tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cxr_ray.errors import NonfiniteLoss, StorageWriteError
from training.checkpoints import Checkpoints
from training.parallel.processes import Processes

ENTRY = "fake_member:run"
ROWS = 12


def settings(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    """What ``run`` needs: ``fail`` says how it goes wrong, in epoch 2 on ``fail_rank``, ``times`` times."""
    return {"name": name, "folder": str(folder), "epochs": 4, "fail": None, "fail_rank": 0, "times": 1} | more


def run(member: dict[str, Any], processes: Processes, report: Callable[[dict[str, Any]], None]) -> None:
    """Gradient descent on a sum over all rows; a checkpoint after every epoch; rank 0 writes the end result."""
    folder, name = Path(member["folder"]), member["name"]
    checkpoints = Checkpoints(str(folder / name / "checkpoints"))
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    found = checkpoints.latest_for_all(processes)
    start = 0 if found is None else found.facts["epoch"]
    if found is not None:
        with torch.no_grad():
            weight.copy_(found.tensors["weight"])
    (folder / name / f"started-{start}-{processes.rank}-{os.getpid()}").touch()
    for epoch in range(start, member["epochs"]):
        rows = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(epoch), dtype=torch.float64)
        loss = processes.sum((rows[processes.rank :: processes.size] @ weight).square().sum()) / ROWS
        (gradient,) = torch.autograd.grad(loss, weight)
        _fail(member, processes, epoch)
        with torch.no_grad():
            weight -= 0.01 * processes.sum(gradient) / processes.size
        if processes.rank == 0:
            checkpoints.save(epoch + 1, {"weight": weight}, {"epoch": epoch + 1})
        report({"epoch": epoch + 1, "loss": float(loss.detach()), "threads": torch.get_num_threads()})
    if processes.rank == 0:
        (folder / name / "weight").write_text(" ".join(repr(number) for number in weight.tolist()))


def weight_of(folder: Path, name: str) -> list[float]:
    """The end result."""
    return [float(word) for word in (folder / name / "weight").read_text().split()]


def starts(folder: Path, name: str) -> list[tuple[int, int]]:
    """(epoch, rank) of each start of a process."""
    parts = [path.name.split("-") for path in (folder / name).glob("started-*")]
    return sorted((int(epoch), int(rank)) for _, epoch, rank, _ in parts)


def _fail(member: dict[str, Any], processes: Processes, epoch: int) -> None:
    if epoch != 2 or member["fail"] is None:
        return
    if member["fail"] == "nan":  # met by every rank, as a loss is
        raise NonfiniteLoss(f"{member['name']} met a loss of nan")
    if processes.rank != member["fail_rank"]:
        return
    mark = Path(member["folder"]) / member["name"] / "failed"
    before = len(mark.read_text()) if mark.exists() else 0
    if before >= member["times"]:
        return
    mark.write_text("x" * (before + 1))
    if member["fail"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if member["fail"] == "storage":
        raise StorageWriteError("the storage is full")
    if member["fail"] == "bug":
        raise KeyError("no such thing")
    if member["fail"] == "wait":
        time.sleep(120)
