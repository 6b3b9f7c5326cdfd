"""Joining or starting Ray, and the check of every node type before any work begins."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cxr_ray.archives.listing import check_readable
from cxr_ray.archives.storage import Storage, explain
from cxr_ray.errors import CxrRayError, OutputError, RunFailed, UsageError
from cxr_ray.pipeline.code_version import code_version
from cxr_ray.pipeline.publish import STAGING_FOLDER, Publisher
from cxr_ray.pipeline.scorer_process import WORKER_ENVIRONMENT, environment

CHECK_SECONDS = 60.0

#: A local Ray ends a process that was idle for a second and starts another, for 2 CPU seconds, when a unit comes.
_IDLE_MILLISECONDS = "600000"

#: Least size of a local Ray's object store, and the largest share of memory for it. A bound, nothing is taken
#: before it is used.
_OBJECT_STORE_BYTES = 4 * 2**30
_OBJECT_STORE_SHARE = 0.25

#: New tries of a task that Ray's memory monitor killed; by itself Ray would try for ever.
_OOM_RETRIES = "3"


@dataclass(frozen=True)
class Machines:
    """What Ray offers: CPUs and GPUs, and whether it is ours (local) or a cluster that we joined."""

    cpus: float
    gpus: float
    local: bool


def joins_cluster(address: str | None) -> bool:
    """Whether a job would join a running cluster: an address is given, or it was submitted to one."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


def local_machines(gpus: int) -> Machines:
    """This machine, when a local Ray is to be started on it."""
    return Machines(cpus=float(available_cpus()), gpus=float(gpus), local=True)


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, within the container's quota (cgroup version 2)."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cpus if quota == "max" else max(1, min(cpus, int(quota) // int(period)))
    except (OSError, ValueError):  # no such limit here
        return cpus


@contextmanager
def ray_session(address: str | None, local_cpus: int | None, in_flight: int = 0) -> Iterator[None]:
    """Ray for the time of a run. A cluster that was joined stays up; a local Ray ends with the run.

    Args:
        address: of a cluster to join.
        local_cpus: logical CPUs of a local Ray.
        in_flight: bytes that the run may hold in a local object store.

    Raises:
        UsageError: the cluster does not answer.
        RunFailed: Ray could not be started here, or joined, in time.
    """
    # Read by Ray Data when it is imported or when a dataset runs; our own lines replace its bars.
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_task_oom_retries", _OOM_RETRIES)
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    if joins_cluster(address):
        _check_address(address or os.environ["RAY_ADDRESS"])
    try:
        if joins_cluster(address):
            runtime_env = {"env_vars": _free_of_the_jobs(WORKER_ENVIRONMENT)}
            ray.init(address=address or "auto", runtime_env=runtime_env, **common)
        else:
            # Inherited by every process that Ray starts here. A runtime_env would do the same, but needs
            # workers of its own beside those that Ray has started already: seconds of CPU for each.
            of_the_raylet = {"RAY_idle_worker_killing_time_threshold_ms": _IDLE_MILLISECONDS}
            with environment(of_the_raylet | WORKER_ENVIRONMENT):
                ray.init(
                    address="local",
                    num_cpus=local_cpus,
                    include_dashboard=False,
                    object_store_memory=object_store_bytes(in_flight),
                    **common,
                )
    except ConnectionError as error:
        raise UsageError(
            f"no Ray cluster answers at {address or os.environ.get('RAY_ADDRESS')}; check ray_address or RAY_ADDRESS"
        ) from error
    except ValueError as error:  # quotes the whole runtime_env, environment variables included
        raise UsageError(
            "Ray refuses the job's runtime_env together with ours; submit it without env_vars"
        ) from error
    except Exception as error:  # a bare one where its own processes do not answer in time
        ray.shutdown()
        raise RunFailed(
            f"Ray did not start ({type(error).__name__}: {_last_line(error)}); nothing is lost, so run the same "
            "command again when this machine is less busy and has free memory and space in /tmp"
        ) from error
    _exit_on_sigterm()  # after ray.init, which sets a handler of its own
    try:
        yield
    finally:
        ray.shutdown()


def object_store_bytes(in_flight: int) -> int:
    """Size of a local object store: Ray Data uses half of it, so twice what the run may hold."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(_OBJECT_STORE_BYTES, 2 * in_flight), int(memory * _OBJECT_STORE_SHARE))


def _check_address(address: str) -> None:
    """Ray itself tries for minutes to reach a head that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UsageError(f"no Ray cluster answers at {address}; check ray_address or RAY_ADDRESS") from error


def _free_of_the_jobs(variables: dict[str, str]) -> dict[str, str]:
    """``variables`` that the submitted job's own runtime_env does not set: Ray refuses any it sets, too."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    taken = ((job.get("runtime_env") or {}).get("env_vars") or {}).keys()
    return {name: value for name, value in variables.items() if name not in taken}


def _exit_on_sigterm() -> None:
    """``ray job stop`` and preemption: leave at once. Nothing needs saving, published parts stay."""

    def leave(number: int, frame: Any) -> None:
        print("stopped by SIGTERM; nothing is lost, run the same command again", file=sys.stderr, flush=True)
        raise SystemExit(1)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, leave)


@contextmanager
def machines(address: str | None, *, dry_run: bool, gpus: int) -> Iterator[Machines]:
    """What a job may use: the cluster that it joins for the time of the run, or this machine.

    Args:
        dry_run: starts no Ray.
        gpus: GPUs of this machine, for a local run.
    """
    if dry_run or not joins_cluster(address):
        yield local_machines(gpus)
        return
    with ray_session(address, None):
        yield cluster_machines()


def cluster_machines() -> Machines:
    """The joined cluster's CPUs and GPUs."""
    resources = ray.cluster_resources()
    return Machines(cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0), local=False)


@dataclass(frozen=True, kw_only=True)
class NodeExpectation:
    """What every node must be able to do.

    Attributes:
        code: the driver's ``code_version()``.
        archive: must be readable.
        output: must be writable, and must be the same place as the driver's.
        token_name: a staging file that the driver published; a node that cannot see it has another OUTPUT.
    """

    code: str
    archive: Storage
    output: Publisher
    bundle_sha256: str | None
    token_name: str


def check_node(expected: NodeExpectation, bundle: bytes | None) -> str | None:
    """Runs on a node: what is wrong with it, or None."""
    import hashlib

    here = code_version()
    if here != expected.code:
        return f"runs cxr_ray {here}, the driver {expected.code}; install the same version on every node"
    if bundle is not None and hashlib.sha256(bundle).hexdigest() != expected.bundle_sha256:
        return "received a damaged weights bundle; check the network between the nodes"
    try:
        check_readable(expected.archive)
    except CxrRayError as error:
        return f"cannot read the archive: {error}"
    except Exception as error:
        return f"cannot read the archive {expected.archive.url} ({explain(error)}); give it credentials or access"
    try:
        if expected.output.read(expected.token_name) is None:
            url = expected.output.storage.url
            return f"sees another OUTPUT than the driver at {url}; use storage shared by all nodes"
        expected.output.probe()
    except CxrRayError as error:
        return str(error)
    except Exception as error:
        return f"cannot read OUTPUT {expected.output.storage.url} ({explain(error)}); give it credentials or access"
    return None


def check_nodes(expected: NodeExpectation, bundle: bytes | None, seconds: float = CHECK_SECONDS) -> int:
    """Check one node of every type; returns how many were checked. A node that is lost meanwhile is no longer
    the run's concern: another of its type is checked, if there is one.

    Raises:
        UsageError: naming the node and what is wrong with it, or that it did not answer in time.
    """
    nodes = _one_of_each_type()
    reference = ray.put(bundle)
    task = ray.remote(num_cpus=0, max_retries=1)(check_node)
    waiting = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            expected, reference
        ): node
        for node in nodes
    }
    deadline = time.monotonic() + seconds
    for answer, node in waiting.items():
        name = node.get("NodeManagerHostname", "?")
        try:
            wrong = ray.get(answer, timeout=max(0.1, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError as error:
            raise UsageError(
                f"node {name} did not answer within {seconds:.0f} s; "
                "check its network, the archive's and OUTPUT's endpoint"
            ) from error
        except (
            ray.exceptions.TaskUnschedulableError
        ) as error:  # Ray lists a dead node as alive for some seconds
            if time.monotonic() > deadline:
                raise UsageError(f"node {name} left the cluster, and none took its place") from error
            time.sleep(1)
            return check_nodes(expected, bundle, deadline - time.monotonic())
        except ray.exceptions.RayError as error:
            raise UsageError(
                f"node {name} cannot run cxr_ray ({_last_line(error)}); install the same packages on every node"
            ) from error
        if wrong:
            raise UsageError(f"node {name} {wrong}")
    return len(nodes)


def publish_token(output: Publisher) -> str:
    """A file under staging by which nodes recognise the driver's OUTPUT; remove it with ``forget``."""
    name = f"{STAGING_FOLDER}/node-check-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    if not output.publish(name, b"cxr_ray"):
        raise OutputError(f"OUTPUT {output.storage.url} cannot be written; choose another place")
    return name


def _one_of_each_type() -> list[dict[str, Any]]:
    """One live node per combination of resource names and amounts (node and memory sizes aside)."""
    kinds: dict[tuple[Any, ...], dict[str, Any]] = {}
    for node in ray.nodes():
        if node["Alive"]:
            amounts = {
                name: amount
                for name, amount in node["Resources"].items()
                if not name.startswith("node:") and name not in ("memory", "object_store_memory")
            }
            kinds.setdefault(tuple(sorted(amounts.items())), node)
    return list(kinds.values())


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
