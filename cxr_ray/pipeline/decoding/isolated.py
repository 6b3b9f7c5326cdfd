"""Decoding that no image can take down: what the death of a decode process says about the image it was on.

* A crash (a signal of the process's own making, or an exit) makes the image a suspect. It is decoded again alone in a
  fresh process; after three such deaths it is quarantined, ``decoder_crashed``.
* A kill from outside says nothing about the image, so it is decoded again without counting, up to a bound.
* More processor time than allowed: ``time_limit`` at once, because processor time does not depend on what else the
  machine does. Time on the clock does, so it only ends the process, until three fresh processes took too long.
* More memory than allowed in a fresh process: ``memory_limit``. In one that has decoded before, part of it may be what
  earlier images left behind, so a fresh one decides.

An abort or a segmentation fault after a refused allocation (C++ code that does not handle ``std::bad_alloc``) cannot be
told from any other crash and counts as one.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from cxr_ray.errors import DecoderCrashed, InputError, MemoryLimit, TimeLimit, WorkerKilled
from cxr_ray.pipeline.decoding.child_process import ChildProcess, Death, Ending, ProcessLimits
from cxr_ray.pipeline.decoding.decoded import Decoded, Recipe

SOLO_DEATHS = 3
#: Seconds before each new try after a kill from outside: 20 tries over about half a minute.
PAUSES = (0.1, 0.2, 0.5, 1.0, *[2.0] * 16)


class IsolatedDecoder:
    """Decodes in one process after the other; each lives until an image ends it.

    Attributes:
        suspect: image_id of what is being decoded, set before the process gets it.
        starts: processes started so far.
    """

    def __init__(self, limits: ProcessLimits, pauses: Sequence[float] = PAUSES) -> None:
        self.limits = limits
        self.suspect: str | None = None
        self.starts = 0
        self._pauses = pauses
        self._child: ChildProcess | None = None
        self._lock = threading.Lock()

    def decode(
        self, image_id: str, content: bytes, recipe: Recipe, on_death: Callable[[], None] = lambda: None
    ) -> Decoded:
        """Decode one image; threads take turns. ``on_death`` is called whenever a process of it has ended.

        Raises:
            WorkerKilled: the process is killed from outside again and again, or cannot even start. Nothing is known
                of the image then.
        """
        with self._lock:
            self.suspect = image_id
            try:
                return self._until_verdict(content, recipe, on_death)
            except BaseException:
                self.close()  # interrupted in the middle: the answer still to come is not the next image's
                raise
            finally:
                self.suspect = None

    def close(self) -> None:
        """End the process, if there is one; the next image starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _until_verdict(self, content: bytes, recipe: Recipe, on_death: Callable[[], None]) -> Decoded:
        deaths: Counter[Ending] = Counter()
        kills = 0
        while True:
            child = self._child or self._started()
            solo = child.fresh
            answer = child.decode(content, recipe)
            if isinstance(answer, Decoded):
                if not isinstance(answer.error, MemoryLimit):
                    return answer
                death = Death(Ending.MEMORY_LIMIT, "a refused allocation")
                if solo:  # this process lives, and has the header's facts
                    return replace(answer, error=_MEANINGS[death.ending](self.limits, death))
                answer = death
            self.close()
            on_death()
            if answer.ending is Ending.KILLED:
                self._pause(kills, answer)
                kills += 1
                continue
            deaths[answer.ending] += solo
            if answer.ending is Ending.CPU_LIMIT or deaths[answer.ending] >= _SOLO_DEATHS[answer.ending]:
                # What the header said is not known: the process that read it is gone.
                return Decoded(error=_MEANINGS[answer.ending](self.limits, answer))

    def _started(self) -> ChildProcess:
        """A process that has said that it is ready. Before that it had no image to blame."""
        failures = kills = 0
        while True:
            self.starts += 1
            try:
                child = self._child = ChildProcess(self.limits)
            except OSError as error:  # no memory or no process left for it; both come back
                self._pause(kills, Death(Ending.KILLED, error.strerror or "no process"))
                kills += 1
                continue
            death = child.wait_until_ready()
            if death is None:
                return child
            self.close()
            if death.ending is Ending.CRASHED:
                failures += 1
                if failures == SOLO_DEATHS:
                    raise WorkerKilled(
                        f"the decode process cannot start ({death.how}); look into the worker's log, and check the "
                        f"installation and decode_memory={self.limits.memory_bytes}"
                    )
            else:
                self._pause(kills, death)
                kills += 1

    def _pause(self, kills: int, death: Death) -> None:
        if kills >= len(self._pauses):
            raise WorkerKilled(
                f"the decode process was killed from outside {kills + 1} times ({death.how}), last on image "
                f"{self.suspect}; give the machine more memory or lower decode_memory={self.limits.memory_bytes}, "
                "then run the same command again"
            )
        time.sleep(self._pauses[kills])


_SOLO_DEATHS = {Ending.CRASHED: SOLO_DEATHS, Ending.WALL_LIMIT: SOLO_DEATHS, Ending.MEMORY_LIMIT: 1}

_MEANINGS: dict[Ending, Callable[[ProcessLimits, Death], InputError]] = {
    Ending.CRASHED: lambda limits, death: DecoderCrashed(
        f"the decoder ended its process on this image {SOLO_DEATHS} times, alone each time ({death.how})"
    ),
    Ending.WALL_LIMIT: lambda limits, death: TimeLimit(
        f"decoding was not done after {limits.wall_seconds:g} s, {SOLO_DEATHS} times in a process of its own"
    ),
    Ending.CPU_LIMIT: lambda limits, death: TimeLimit(
        f"decoding takes more than {limits.cpu_seconds:g} CPU seconds (decode_seconds)"
    ),
    Ending.MEMORY_LIMIT: lambda limits, death: MemoryLimit(
        f"decoding needs more than the {limits.memory_bytes} bytes of memory allowed (decode_memory)"
    ),
}


_cached: tuple[int, IsolatedDecoder] | None = None


def isolated_decoder(limits: ProcessLimits) -> IsolatedDecoder:
    """This process's decoder, made at the first call and kept, so that images share the start of its process."""
    global _cached
    if _cached is not None:
        owner, decoder = _cached
        if owner == os.getpid() and decoder.limits == limits:
            return decoder
        if owner == os.getpid():  # else it is the one of a process that this one was forked from
            decoder.close()
    decoder = IsolatedDecoder(limits)
    _cached = os.getpid(), decoder
    return decoder
