"""CPU seconds of a command and everything that it starts, and the times of its output lines."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

_SAMPLE_SECONDS = 0.25


@dataclass
class Measured:
    """One finished command.

    Attributes:
        wall_s: seconds from start to end.
        cpu_s: user and system seconds of the whole process tree, by process name.
        lines: (seconds since the start, line) of standard output.
    """

    code: int
    wall_s: float
    cpu_s: dict[str, float]
    lines: list[tuple[float, str]] = field(default_factory=list)

    @property
    def total_cpu_s(self) -> float:
        return sum(self.cpu_s.values())


#: Called with every sample: CPU seconds of the tree so far, and its living processes, the command's own first.
Watch = Callable[[float, list[psutil.Process]], None]


def measure(command: list[str], env: dict[str, str] | None = None, watch: Watch | None = None) -> Measured:
    """Run ``command``, sampling its process tree until it ends (a worker that dies keeps its last sample)."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    seen: dict[tuple[int, float], tuple[str, float]] = {}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            try:
                parent = psutil.Process(process.pid)
                members = [parent, *parent.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for member in members:
                try:
                    times = member.cpu_times()
                    seen[(member.pid, member.create_time())] = (member.name(), times.user + times.system)
                except psutil.NoSuchProcess:
                    continue
            if watch is not None:
                watch(sum(seconds for _, seconds in seen.values()), members)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append((time.monotonic() - start, line.rstrip("\n")))
    code = process.wait()
    done.set()
    sampler.join()
    by_name: dict[str, float] = {}
    for name, seconds in seen.values():
        by_name[name] = by_name.get(name, 0.0) + seconds
    return Measured(code, time.monotonic() - start, by_name, lines)
