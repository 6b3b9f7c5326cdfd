"""Members on this machine without Ray: one after the other here, or side by side in processes of their own.

A child (``member_child``) gets its member on standard input. Its standard output carries messages, its standard error
is passed on line by line, behind the member's name.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from cxr_ray.errors import CxrRayError
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
from training.parallel.processes import Processes, choose_device

CHILD = "training.parallel.member_child"
RESTART_SECONDS = 1.0
"""Pause before a member that died is started again."""
STOP_SECONDS = 10.0
"""What a child gets to end itself before it is killed."""


def run_members_locally(
    members: Sequence[dict[str, Any]],
    *,
    at_once: int = 1,
    device: str = "auto",
    threads: int = 1,
    max_failures: int = 3,
    listener: Listener = print_row,
    entry: str = RUN_MEMBER,
) -> None:
    """Run every member to its end; those that can go on do so when another fails.

    Args:
        members: settings for ``entry``, which JSON can say; each with its ``name``.
        at_once: 1: in this process, one after the other. More: that many single-threaded child processes.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU where there is one. Children take the GPUs in turn.
        threads: CPU threads of each member.
        max_failures: how often a member that was killed, or whose storage failed, is started again.
        listener: gets what members report.
        entry: ``module:function`` that runs one member.

    Raises:
        CxrRayError: a member met an error that no new try can mend (after all others ended).
        RunFailed: a member died too often.
    """
    if at_once > 1 and len(members) > 1:
        shared = _Shared(device, threads, max_failures, listener, entry)
        errors = _side_by_side(members, at_once, shared)
    else:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            errors = _one_by_one(
                members, Processes.alone(choose_device(device)), max_failures, listener, entry
            )
        finally:
            torch.set_num_threads(before)
    outcome([member["name"] for member in members], errors)


def child_environment(threads: int) -> dict[str, str]:
    """Environment of a process that trains: its threads, this process' modules, and an allocator that keeps memory.

    glibc returns every large block to the kernel on each call, which costs more than the work on it
    (REFERENCE_SPEC section 15); it reads these settings only when a process starts.
    """
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "MALLOC_MMAP_THRESHOLD_": "4000000000",
        "MALLOC_TRIM_THRESHOLD_": "8000000000",
        "MALLOC_ARENA_MAX": "2",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def _one_by_one(
    members: Sequence[dict[str, Any]], processes: Processes, max_failures: int, listener: Listener, entry: str
) -> dict[str, CxrRayError]:
    errors: dict[str, CxrRayError] = {}
    for member in members:
        name = member["name"]
        for failures in range(max_failures + 1):
            try:
                find(entry)(member, processes, lambda row, name=name: listener(name, row))  # type: ignore[misc]
                break
            except CxrRayError as error:
                if is_final(error):
                    errors[name] = error
                    break
                last = str(error)
            except Exception as error:
                traceback.print_exc()
                last = type(error).__name__
            if failures == max_failures:
                errors[name] = died(name, failures + 1, last)
            else:
                time.sleep(RESTART_SECONDS)
    return errors


@dataclass
class _Shared:
    """What the threads that watch over children have in common."""

    device: str
    threads: int
    max_failures: int
    listener: Listener
    entry: str
    stopping: bool = False
    children: set[subprocess.Popen[str]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


def _side_by_side(members: Sequence[dict[str, Any]], at_once: int, shared: _Shared) -> dict[str, CxrRayError]:
    slots: queue.Queue[int] = queue.Queue()
    for slot in range(at_once):
        slots.put(slot)
    with ThreadPoolExecutor(at_once) as pool:
        try:
            futures = [pool.submit(_supervise, member, slots, shared) for member in members]
            found = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _stop(shared)
            raise
    pairs = zip(members, found, strict=True)
    return {member["name"]: error for member, error in pairs if error is not None}


def _supervise(member: dict[str, Any], slots: queue.Queue[int], shared: _Shared) -> CxrRayError | None:
    """Run one member in a child, again if it dies; returns its error."""
    slot = slots.get()
    try:
        why = ""
        for _ in range(shared.max_failures + 1):
            done, error, why = _run_child(member, slot, shared)
            if done or error is not None:
                return error
            if shared.stopping:
                break
            time.sleep(RESTART_SECONDS)
        return died(member["name"], shared.max_failures + 1, why)
    finally:
        slots.put(slot)


def _run_child(member: dict[str, Any], slot: int, shared: _Shared) -> tuple[bool, CxrRayError | None, str]:
    """One try: (reached its end, error that no new try can mend, why it ended otherwise)."""
    with shared.lock:  # so that no child is started behind the back of ``_stop``
        if shared.stopping:
            return False, None, "stopped"
        child = subprocess.Popen(
            [sys.executable, "-m", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(shared.threads),
        )
        shared.children.add(child)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    done, error, why = False, None, ""
    passing = threading.Thread(target=_pass_on, args=(member["name"], child.stderr), daemon=True)
    passing.start()
    try:
        order = {"member": member, "device": shared.device, "slot": slot, "threads": shared.threads}
        child.stdin.write(json.dumps(order | {"entry": shared.entry}) + "\n")
        child.stdin.flush()
        for line in child.stdout:
            message = json.loads(line)
            if "row" in message:
                with shared.lock:
                    shared.listener(member["name"], message["row"])
            elif "final" in message:
                error = error_of(message["final"], message["message"])
            else:
                done, why = message.get("done", False), message.get("failed", "")
    except BrokenPipeError:  # died before it had read its order
        pass
    except BaseException:
        child.kill()
        raise
    finally:
        code = child.wait()
        passing.join(timeout=STOP_SECONDS)
        with shared.lock:
            shared.children.discard(child)
        for pipe in (child.stdin, child.stdout, child.stderr):
            try:
                pipe.close()
            except BrokenPipeError:
                continue
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return done and code == 0, error, why or ended


def _pass_on(name: str, lines: IO[str]) -> None:
    for line in lines:
        print(f"{name} | {line.rstrip()}", file=sys.stderr, flush=True)


def _stop(shared: _Shared) -> None:
    """End the children that we started, and only those."""
    with shared.lock:
        shared.stopping = True
        children = list(shared.children)
    for child in children:
        child.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for child in children:
        try:
            child.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
