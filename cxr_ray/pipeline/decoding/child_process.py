"""One decode process, seen from its parent: start it, hand it an image, watch what that image costs.

Linux only: processor time and resident memory are read from ``/proc``.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from cxr_ray.pipeline.decoding.decoded import Decoded, Recipe
from cxr_ray.pipeline.decoding.messages import ExchangeArea, decoded_of, receive, request_of, send

MODULE = "cxr_ray.pipeline.decoding.child"

#: Between two looks at what the child uses; an image that is done sooner costs none.
LOOK_SECONDS = 0.05
#: A busy machine may take long to import NumPy, OpenCV and pydicom.
START_SECONDS = 180.0

#: Signals that a process brings on itself. SIGKILL, SIGTERM and the like come from outside.
OWN_SIGNALS = {
    *(
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGTRAP,
        signal.SIGSYS,
    )
}

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

#: One thread, and freed memory kept up to 256 MiB: without it each image faults its buffers in again, with no
#: bound one large image would keep its memory for ever.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 28),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
}


@dataclass(frozen=True, kw_only=True)
class ProcessLimits:
    """What one image may cost. Execution options: they decide no pixel.

    Attributes:
        cpu_seconds: processor time, user and system.
        wall_seconds: time on the clock, which also grows while the machine is busy with something else.
        memory_bytes: resident memory of the process, its own 90 MB included.
    """

    cpu_seconds: float = 30.0
    wall_seconds: float = 300.0
    memory_bytes: int = 4 * 2**30

    @classmethod
    def of(cls, decode_seconds: float, decode_memory: int) -> ProcessLimits:
        """From the options of a job; the clock gets ten times the processor's seconds."""
        return cls(cpu_seconds=decode_seconds, wall_seconds=10 * decode_seconds, memory_bytes=decode_memory)


class Ending(Enum):
    """How a decode process ended."""

    CRASHED = "crashed"
    """By a signal of its own making, or by leaving: the decoder's doing."""
    KILLED = "killed"
    """By a signal from outside (the kernel's out-of-memory killer, an operator): not the image's doing."""
    CPU_LIMIT = "cpu_limit"
    WALL_LIMIT = "wall_limit"
    MEMORY_LIMIT = "memory_limit"


@dataclass(frozen=True)
class Death:
    """An image's process is gone. ``how``: the signal's name or the exit code, for people."""

    ending: Ending
    how: str


class ChildProcess:
    """A running decode process. Not for several threads at a time.

    Attributes:
        fresh: it has not been given an image yet, so that whatever happens is the next image's doing.
    """

    def __init__(self, limits: ProcessLimits) -> None:
        """Start it; raises OSError where the machine has no memory or no process left."""
        self.limits = limits
        self.fresh = True
        self._cpu_seconds = 0.0
        self._area = ExchangeArea.create()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        shared = (theirs.fileno(), self._area.descriptor)
        of_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (*shared, os.getpid(), limits.memory_bytes, int(of_main_thread))
        # Ray puts the job's code on the path of its workers' interpreters, not into the environment.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE, *map(str, numbers)],
                pass_fds=shared,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # codecs print; our standard output is the job's
                env=os.environ | _ENVIRONMENT | {"PYTHONPATH": path},
            )
        except OSError:
            self._connection.close()
            self._area.close()
            raise
        finally:
            theirs.close()
        self._poller = select.poll()
        self._poller.register(self._connection, select.POLLIN)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> Death | None:
        """Wait for the child's first message; None when it can take images."""
        answer = self._wait_for_answer(wall_seconds=START_SECONDS, watched=False)
        return answer if isinstance(answer, Death) else None

    def decode(self, content: bytes, recipe: Recipe) -> Decoded | Death:
        """Let the child decode one image. After a Death it is gone."""
        self.fresh = False
        self._area.write(content)
        # Where it is gone already, waiting for its answer says how.
        with contextlib.suppress(ConnectionError):
            send(self._connection, request_of(recipe, len(content)))
        answer = self._wait_for_answer(wall_seconds=self.limits.wall_seconds, watched=True)
        return answer if isinstance(answer, Death) else decoded_of(answer, self._area)

    def close(self) -> None:
        """End the child, which holds nothing worth saving."""
        self._connection.close()
        self._area.close()
        self._process.kill()
        self._process.wait()

    def _wait_for_answer(self, *, wall_seconds: float, watched: bool) -> dict[str, Any] | Death:
        """Look at the child now and then, until it has answered or is gone."""
        start = time.monotonic()
        while not self._poller.poll(1000 * LOOK_SECONDS):
            death = self._over_limits() if watched else None
            if death is None and time.monotonic() - start > wall_seconds:
                death = Death(Ending.WALL_LIMIT, f"{wall_seconds:g} s")
            if death is not None:
                self.close()
                return death
        try:
            answer = receive(self._connection)
        except ValueError:  # a decoder wrote to descriptors that are not its own
            self.close()
            return Death(Ending.CRASHED, "garbled answer")
        if answer is None:
            return self._ended()
        self._cpu_seconds = answer["cpu_seconds"]
        return answer

    def _over_limits(self) -> Death | None:
        """What the child has used for this image, against the limits."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):  # it is ending; the socket will say so
            return None
        cpu_seconds = (int(fields[11]) + int(fields[12])) / _TICKS - self._cpu_seconds
        if cpu_seconds > self.limits.cpu_seconds:
            return Death(Ending.CPU_LIMIT, f"{cpu_seconds:.1f} CPU seconds")
        if pages * _PAGE > self.limits.memory_bytes:
            return Death(Ending.MEMORY_LIMIT, f"{pages * _PAGE} bytes")
        return None

    def _ended(self) -> Death:
        """The child closed the connection: how did it end?"""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # a decoder that closed descriptors which are not its own
            self.close()
            return Death(Ending.CRASHED, "closed connection")
        self.close()
        if code >= 0:
            return Death(Ending.CRASHED, f"exit code {code}")
        name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        return Death(Ending.CRASHED if -code in OWN_SIGNALS else Ending.KILLED, name)
