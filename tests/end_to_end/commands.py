"""Helpers of the end-to-end tests: run the real commands in processes of their own, kill them, read tables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as pads

from cxr_ray.phantoms import phantom

ROOT = Path(__file__).parents[2]

CHEAP_SCORE = "tests/end_to_end/cheap_score.py"

#: Columns that say where a row came from in this run, not what it holds.
PROVENANCE = {"uri", "member", "image_id", "unit_id", "generation", "identity", "label", "carry"}


@dataclass(frozen=True)
class Finished:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """The last stdout line of a job."""
        return json.loads(self.out.strip().splitlines()[-1])


def job_environment(**extra: str) -> dict[str, str]:
    """Environment of a job: no cluster around, no AWS settings of the developer, no key."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_", "CXR_RAY_KEY"))}
    return kept | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"} | extra


def run_command(*command: str, timeout: float = 300, env: dict[str, str] | None = None) -> Finished:
    """Run a command of the project from its root."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=env or job_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def run_job(name: str, *options: str, timeout: float = 300, env: dict[str, str] | None = None) -> Finished:
    """``python jobs/NAME.py options...``"""
    return run_command(f"jobs/{name}.py", *options, timeout=timeout, env=env)


def score(archive: Path | str, output: Path | str, *options: str, **kwargs: Any) -> Finished:
    """A scoring job with untrained weights, which must succeed."""
    done = run_job("score", f"archive={archive}", f"output={output}", "weights=seeded", *options, **kwargs)
    assert done.code == 0, done.err[-2000:]
    return done


def score_cheaply(archive: Path | str, output: Path | str, *options: str, **kwargs: Any) -> Finished:
    """The same job with a scorer that needs no network (``cheap_score.py``); it must succeed."""
    done = run_command(CHEAP_SCORE, f"archive={archive}", f"output={output}", *options, **kwargs)
    assert done.code == 0, done.err[-2000:]
    return done


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL a driver and everything that it started, Ray included."""
    try:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        tree = []
    for member in tree:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait(timeout=30)


def run_side_by_side(
    *commands: list[str], timeout: float = 400, env: dict[str, str] | None = None
) -> list[Finished]:
    """Run several commands of the project at once; returns when all have ended."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda command: run_command(*command, timeout=timeout, env=env), commands))


@contextmanager
def started(
    command: list[str], *, env: dict[str, str] | None = None, log: Path = Path(os.devnull)
) -> Iterator[subprocess.Popen[str]]:
    """A command of the project while it runs; at the end of the block its whole tree is killed.

    What it says is appended to ``log``.
    """
    with open(log, "a") as said:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=env or job_environment(),
            stdout=said,
            stderr=said,
            text=True,
        )
    try:
        yield process
    finally:
        kill_tree(process)


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 240) -> None:
    """Wait while ``process`` works towards something; fail if it ends or gets nowhere."""
    deadline = time.monotonic() + timeout
    while not reached():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline, "the command got nowhere"
        time.sleep(0.1)


def run_until(command: list[str], reached: Callable[[], bool], timeout: float = 240) -> None:
    """Start a command, and SIGKILL its whole tree as soon as ``reached()``."""
    with started(command) as process:
        wait_until(reached, process, timeout)


def read_table(folder: Path | str, filesystem: Any = None) -> pa.Table:
    """All parts as one table, sorted by image_id."""
    table = pads.dataset(str(folder), format="parquet", filesystem=filesystem).to_table()
    return table.sort_by("image_id")


def by_content(table: pa.Table) -> list[dict[str, Any]]:
    """Rows without provenance, in the order of their content: comparable across containers."""
    kept = [name for name in table.column_names if name not in PROVENANCE]
    rows = table.select(kept).to_pylist()
    return sorted(rows, key=lambda row: (row["content_sha256"] or "", row["reason"] or ""))


def write_films(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """``count`` different small phantom PNGs (synthetic)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        pixels = phantom(np.random.default_rng(seed * 1000 + number))
        small = cv2.resize(pixels, (340, 400), interpolation=cv2.INTER_AREA)
        paths.append(folder / f"film-{number:03d}.png")
        cv2.imwrite(str(paths[-1]), small)
    return paths
