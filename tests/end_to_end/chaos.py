"""Random kills of whatever a job runs in, again and again, until a number of them was done.

A ``Campaign`` starts a job, kills as its random schedule says, starts the same command again where the driver
went, and begins a new OUTPUT when one is complete and kills are left.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from end_to_end.commands import CHEAP_SCORE, job_environment, kill_tree, started
from end_to_end.places import Place
from end_to_end.small_cluster import SmallCluster
from end_to_end.table_reader import TableReader

WORKER, ACTOR, RAYLET, DRIVER, ALL = "worker", "actor", "raylet", "driver", "all"
"""What is killed: a process running a read or publish task, a scorer, a node, the driver, or every process."""

PATIENCE = 600.0
"""Seconds without a new part, an end of the job or a victim, after which a test gives up."""

_TITLES = {WORKER: "ray::MapBatches(", ACTOR: "ray::MapWorker("}


def nightly() -> bool:
    """Whether the long forms of the tests are wanted: ``CXR_RAY_NIGHTLY=1``."""
    return os.environ.get("CXR_RAY_NIGHTLY", "") not in ("", "0")


def chosen_seed() -> int:
    """``CXR_RAY_CHAOS_SEED``, or a new one."""
    given = os.environ.get("CXR_RAY_CHAOS_SEED")
    return int(given) if given else secrets.randbelow(2**31)


@dataclass(frozen=True)
class Kill:
    """One kill: so many new parts after the one before it, and so many seconds after that."""

    what: str
    after_parts: int
    seconds: float


def schedule(generator: random.Random, kinds: Sequence[str], count: int, every_parts: int) -> list[Kill]:
    """``count`` kills, each kind as often as the others, in random order and at random moments."""
    whats = [kinds[number % len(kinds)] for number in range(count)]
    generator.shuffle(whats)
    return [Kill(w, generator.randint(0, every_parts), generator.uniform(0, 2)) for w in whats]


@dataclass
class Campaign:
    """Kills to do on the job over ``archive``, each OUTPUT in a place of its own.

    Attributes:
        places: makes the place of a new OUTPUT.
        options: of the job.
        cluster: that the job joins; without one it starts a local Ray.
        log: file that keeps what the drivers said.
        done: kills so far.
        runs: starts of the command so far.
    """

    archive: Path
    places: Callable[[], Place]
    options: Sequence[str]
    seconds_per_image: float
    log: Path
    cluster: SmallCluster | None = None
    done: list[str] = field(default_factory=list)
    runs: int = 0
    passes: int = 0
    parts_read: int = 0
    _left_behind: list[psutil.Process] = field(default_factory=list)

    def carry_out(self, kills: Sequence[Kill]) -> list[Place]:
        """Do all kills; returns the OUTPUTs, every one of them completed by the same command in the end."""
        queue = deque(kills)
        outputs = []
        try:
            while queue:
                place = self.places()
                outputs.append(place)
                with TableReader(place) as reader:
                    self._complete(place, queue)
                reader.assert_content()
                self.passes += reader.passes
                self.parts_read += reader.parts_read
        finally:
            for process in self._left_behind:
                _kill(process)
        return outputs

    def story(self) -> str:
        """One line for people."""
        counted = ", ".join(f"{count} {what}" for what, count in Counter(self.done).items())
        return (
            f"{len(self.done)} kills ({counted}) in {self.runs} runs; "
            f"the reader read {self.parts_read} parts in {self.passes} passes"
        )

    def _complete(self, place: Place, queue: deque[Kill]) -> None:
        """Start the command until it says that the table is complete."""
        look = place.look()
        failures = 0
        while True:
            before = look.parts()
            killed_before = len(self.done)
            code = self._run(place, queue)
            after = look.parts()
            changed = [name for name, stamp in before.items() if after.get(name) != stamp]
            assert not changed, f"published parts were redone or removed: {changed}"
            if code == 0:
                return
            disturbed = len(self.done) > killed_before
            assert code in (1, -signal.SIGKILL), f"exit code {code}: {self._said()}"
            assert disturbed or (code == 1 and "error: " in self._said()), self._said()
            # A run that was not disturbed itself may still meet what the kills before it left in a cluster.
            failures = 0 if disturbed else failures + 1
            assert failures < 3, f"the command does not get through any more: {self._said()}"

    def _run(self, place: Place, queue: deque[Kill]) -> int:
        """One start of the command, with kills from the queue; its exit code (-9 where it was killed)."""
        self.runs += 1
        command = [CHEAP_SCORE, f"archive={self.archive}", f"output={place.url}", *place.job_options()]
        if self.cluster is not None:
            command.append(f"ray_address={self.cluster.address}")
        env = job_environment(CHEAP_SCORE_SECONDS=str(self.seconds_per_image))
        with started([*command, *self.options], env=env, log=self.log) as driver:
            look = place.look()
            while queue and driver.poll() is None:
                kill = queue[0]
                wanted = len(look.parts()) + kill.after_parts
                if not _wait(lambda wanted=wanted: len(look.parts()) >= wanted, driver):
                    break
                time.sleep(kill.seconds)
                if driver.poll() is None and self._kill(kill.what, driver):
                    queue.popleft()
                    self.done.append(kill.what)
            return self._wait_for_end(driver, lambda: len(look.parts()))

    def _kill(self, what: str, driver: subprocess.Popen[str]) -> bool:
        """Kill; False where the job ended before there was a victim."""
        if what == RAYLET:
            assert self.cluster is not None
            self.cluster.lose_a_node(len(self.done))
        elif what == DRIVER:
            self._left_behind += _tree(driver.pid)[1:]
            driver.kill()
            driver.wait()
        elif what == ALL:
            if self.cluster is not None:
                self.cluster.kill()
            kill_tree(driver)
            if self.cluster is not None:
                self.cluster.start()
        else:
            root = driver.pid if self.cluster is None else self.cluster.pid
            victims: list[psutil.Process] = []

            def found() -> bool:
                victims[:] = [process for process in _tree(root) if _title(process).startswith(_TITLES[what])]
                return bool(victims)

            if not _wait(found, driver, pause=0.02):
                return False
            _kill(victims[len(self.done) % len(victims)])
        return True

    def _wait_for_end(self, driver: subprocess.Popen[str], parts: Callable[[], int]) -> int:
        count, moved = parts(), time.monotonic()
        while driver.poll() is None:
            if (now := parts()) != count:
                count, moved = now, time.monotonic()
            assert time.monotonic() - moved < PATIENCE, f"the run hangs with {count} parts: {self._said()}"
            time.sleep(0.2)
        return driver.returncode

    def _said(self) -> str:
        return self.log.read_text()[-3000:]


def _wait(reached: Callable[[], bool], driver: subprocess.Popen[str], pause: float = 0.1) -> bool:
    """Wait while the driver runs; False where it ended first."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        if driver.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the run got nowhere"
        time.sleep(pause)
    return True


def _tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # gone meanwhile, or a zombie
        return ""


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
