"""What the members of a run get of a cluster's CPUs and GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cxr_ray.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What one member gets."""

    count: int
    """Processes that share its batches."""
    threads: int
    """CPUs, and CPU threads, of each."""
    gpus: float
    """GPUs of each; 0: CPU and gloo, else NCCL."""


def lay_out(
    cpus: float, gpus: float, *, members: int, workers: int, at_once: int | None, device: str, threads: int
) -> tuple[Workers, int]:
    """What a member's workers get, and how many members run side by side.

    Several members of one worker each may share a GPU; workers of one member may not, because of NCCL.

    Raises:
        UsageError: the cluster can never hold one member.
    """
    gpu = device != "cpu" and gpus >= 1
    if device == "cuda" and not gpu:
        raise UsageError("execution.device=cuda, but Ray sees no GPU; use execution.device=auto, or add GPUs")
    if workers * threads > cpus or (gpu and workers > gpus):
        kind = f"{gpus:.0f} GPUs and {cpus:.0f} CPUs" if gpu else f"{cpus:.0f} CPUs"
        raise UsageError(
            f"execution.workers={workers} of {threads} threads do not fit into the {kind} that Ray has; ask for fewer"
        )
    fitting = int(cpus // (workers * threads))
    if not gpu:
        slots = max(1, min(members, at_once or fitting, fitting))
        return Workers(count=workers, threads=threads, gpus=0.0), slots
    whole = int(gpus // workers)
    wanted = max(1, min(members, at_once or whole, fitting))
    if workers > 1 or wanted <= whole:
        return Workers(count=workers, threads=threads, gpus=1.0), min(wanted, whole)
    # Rounded down, so that the shares of one GPU never add up to more than it.
    share = math.floor(1e4 / math.ceil(wanted / gpus)) / 1e4
    return Workers(count=workers, threads=threads, gpus=share), wanted
