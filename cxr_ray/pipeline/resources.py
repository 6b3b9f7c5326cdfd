"""How the CPUs and GPUs of a cluster are shared among scorers, decode tasks and writers.

Ray schedules by *logical* CPUs and hangs silently when actors take them all (ray-project/ray#44687), so
the scorers always leave room for at least one decode and one writing task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cxr_ray.errors import UsageError

CPU = "cpu"
CUDA = "cuda"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Shares of one run.

    Attributes:
        device: ``cpu`` or ``cuda``.
        actors: scorers at a time (0 for ingest).
        actor_cpus, actor_gpus: logical share of one scorer.
        decode_cpus, publish_cpus: logical share of one task.
        decode_tasks: decode tasks at a time.
        local_cpus: logical CPUs to give a local Ray.
    """

    device: str
    actors: int
    actor_cpus: float
    actor_gpus: float
    decode_cpus: float
    publish_cpus: float
    decode_tasks: int
    local_cpus: int


def share(
    *, cpus: float, gpus: float, local: bool, scoring: bool, actors: int | None, decode_tasks: int | None
) -> Resources:
    """Divide ``cpus`` and ``gpus`` (of the machine, or of the cluster joined).

    Locally the logical CPUs are ours to set: at least two more than the scorers need. On a
    cluster they are given, so the scorers leave some of them free.

    Raises:
        UsageError: more actors asked for than the cluster can hold.
    """
    device = CUDA if gpus >= 1 else CPU
    decode_cpus, publish_cpus = 0.5, 0.25
    if not scoring:
        tasks = decode_tasks or max(1, math.ceil(cpus) if local else math.floor((cpus - 0.5) / 0.5))
        local_cpus = max(2, math.ceil(tasks * decode_cpus) + 1)
        return Resources(
            device=CPU,
            actors=0,
            actor_cpus=0,
            actor_gpus=0,
            decode_cpus=decode_cpus,
            publish_cpus=publish_cpus,
            decode_tasks=tasks,
            local_cpus=local_cpus,
        )
    # Decoding a film costs a twentieth of scoring it on a CPU; one CPU in nine is plenty for reading.
    reading = 0 if local else max(1, math.ceil(cpus / 9))
    most = math.floor(gpus) if device == CUDA else max(1, math.floor(cpus) - reading)
    wanted = most if actors is None else actors
    if wanted < 1 or (not local and wanted > most) or (device == CUDA and wanted > most):
        unit = "GPU" if device == CUDA else "CPU, some of them kept free for reading"
        raise UsageError(f"actors={wanted} does not fit: there is room for 1 to {most} (one per {unit})")
    # A scorer on a GPU needs little CPU, and a small cluster may have fewer CPUs than GPUs.
    actor_cpus = 1.0 if local else min(1.0, math.floor(100 * max(0.0, cpus - 1) / wanted) / 100)
    # Locally the logical CPUs for reading come on top; idle cores add to them.
    free = float(max(2, math.ceil(wanted / 8))) if local else cpus - wanted * actor_cpus
    spare = max(0.0, cpus - wanted) if local else 0.0
    tasks = decode_tasks or max(1, math.floor((free + spare - publish_cpus) / decode_cpus))
    return Resources(
        device=device,
        actors=wanted,
        actor_cpus=actor_cpus,
        actor_gpus=1.0 if device == CUDA else 0.0,
        decode_cpus=decode_cpus,
        publish_cpus=publish_cpus,
        decode_tasks=tasks,
        local_cpus=wanted + math.ceil(free + spare),
    )


def device_model(device: str) -> str:
    """Name of this process's device model, which bounds bit-for-bit equality (DESIGN promise 4)."""
    import platform

    import torch

    if device == CUDA:
        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else CUDA
    return f"{CPU} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
