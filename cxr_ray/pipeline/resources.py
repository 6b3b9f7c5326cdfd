"""How the CPUs and GPUs of a cluster are shared among scorers, decode tasks and writers.

Ray schedules by *logical* CPUs and hangs silently when actors take them all (ray-project/ray#44687), so
the scorers always leave room for at least one decode and one writing task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cxr_ray.errors import UsageError
from cxr_ray.preprocess import COLUMNS, ROWS

CPU = "cpu"
CUDA = "cuda"

#: Bytes of an image on its way to a scorer: the frame, and room for its facts.
_IMAGE_BYTES = ROWS * COLUMNS + 2048

#: Small units need no bound, and Ray stalls for seconds where the bound is near the size of a few blocks.
_LEAST_IN_FLIGHT = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Shares of one run.

    Attributes:
        device: ``cpu`` or ``cuda``.
        actors: scorers at a time, or the most of them (0 for ingest).
        min_actors: scorers at the start of a pool that grows to ``actors``; None for a fixed pool.
        actor_cpus, actor_gpus: logical share of one scorer.
        decode_cpus, publish_cpus: logical share of one task.
        decode_tasks: decode tasks at a time.
        publish_tasks: publishing tasks at a time. Each keeps a core busy with encoding whatever its logical share, and
            each more is one more process that takes 2 CPU seconds to start.
        local_cpus: logical CPUs to give a local Ray.
        cores: of the machine, or logical CPUs of the cluster; for predictions.
    """

    device: str
    actors: int
    actor_cpus: float
    actor_gpus: float
    decode_cpus: float
    publish_cpus: float
    decode_tasks: int
    publish_tasks: int
    local_cpus: int
    cores: float
    min_actors: int | None = None


def share(
    *,
    cpus: float,
    gpus: float,
    local: bool,
    scoring: bool,
    actors: int | None,
    decode_tasks: int | None,
    min_actors: int | None = None,
) -> Resources:
    """Divide ``cpus`` and ``gpus`` (of the machine, or of the cluster joined).

    Locally the logical CPUs are ours to set: at least two more than the scorers need. On a
    cluster they are given, so the scorers leave some of them free.

    With ``min_actors`` only these must fit now: a cluster that grows on demand may hold ``actors`` later, and the
    decode tasks are counted for that size.

    Raises:
        UsageError: more actors asked for than the cluster can hold.
    """
    device = CUDA if gpus >= 1 else CPU
    decode_cpus, publish_cpus = 0.5, 0.25
    publish_tasks = max(2, math.ceil(cpus))
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
            publish_tasks=publish_tasks,
            local_cpus=local_cpus,
            cores=cpus,
        )
    # Decoding a film costs a twentieth of scoring it on a CPU; one CPU in nine is plenty for reading.
    reading = 0 if local else max(1, math.ceil(cpus / 9))
    most = math.floor(gpus) if device == CUDA else max(1, math.floor(cpus) - reading)
    wanted = most if actors is None else actors
    if min_actors is not None and min_actors > wanted:
        raise UsageError(
            f"min_actors={min_actors} is more than actors={wanted}; make it smaller, or leave it out"
        )
    if min_actors is not None and not local and min_actors <= most < wanted:
        grown = share(
            cpus=cpus * wanted / most, gpus=gpus * wanted / most, local=False, scoring=True, actors=wanted,
            decode_tasks=decode_tasks, min_actors=min_actors,
        )  # fmt: skip
        return grown
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
        publish_tasks=publish_tasks,
        # One more than are used: Ray Data keeps CPUs back for each stage, and without it lets only one unit of a
        # machine of two cores be read at a time, so that a slow one holds up all others.
        local_cpus=wanted + math.ceil(free + spare) + 1,
        cores=cpus,
        min_actors=min_actors,
    )


def bytes_in_flight(largest_unit: int, resources: Resources) -> int:
    """Bound on what the graph may hold in the object store, so that reading cannot run far ahead of scoring.

    Each reader has one unit in work and two that wait to be taken (Ray's buffer), each scorer one in work and one
    that waits; twice that, since Ray divides the bound among the stages. For units of 1,000 images these are
    104 MB x 2 x (3 x readers + 2 x scorers): 2 GB for 2 readers and 2 scorers. Without a bound Ray takes half of
    the object store, which on a cluster of 64 large nodes is room for the whole archive.

    Args:
        largest_unit: images.
    """
    units = 3 * resources.decode_tasks + 2 * resources.actors
    return max(_LEAST_IN_FLIGHT, 2 * units * largest_unit * _IMAGE_BYTES)


def local_gpus() -> int:
    """GPUs that torch can use here."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_model(device: str, engine: str | None = None) -> str:
    """Name of this process's device model, which bounds bit-for-bit equality (DESIGN promise 4).

    ``engine``: of the scorer; named where it is not torch's own arithmetic.
    """
    import platform

    import torch

    if device == CUDA:
        model = torch.cuda.get_device_name(0) if torch.cuda.is_available() else CUDA
    else:
        model = f"{CPU} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return model if engine in (None, "torch") else f"{model} {engine}"
