"""Frames in chunks, in several processes: in order, and never longer than whoever waits for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from training.audit.chunks import Arrays, Work, map_chunks

ROOT = Path(__file__).parents[1]


def means(extra: float, seconds: float = 0.0) -> Work:
    def work(pixels_NHW: np.ndarray) -> Arrays:
        time.sleep(seconds)
        return {"mean": pixels_NHW.mean(axis=(1, 2)) + extra}

    return work


def test_several_processes_keep_the_order() -> None:
    pixels_NHW = np.arange(5, dtype=np.uint8)[:, None, None].repeat(4, axis=1).repeat(4, axis=2)
    for processes in (1, 2):
        found = map_chunks(means, (0.5,), pixels_NHW, chunk=2, processes=processes)
        assert found["mean"].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]


def test_processes_end_with_a_killed_parent() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    parent = subprocess.Popen([sys.executable, __file__], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "working\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive  # the work would have taken them minutes


if __name__ == "__main__":
    map_chunks(
        means,
        (0.0, 1.0),
        np.zeros((400, 4, 4), np.uint8),
        chunk=1,
        processes=2,
        progress=lambda done, total: print("working", flush=True) if done == 1 else None,
    )
