"""A decode process ends with its parent, whatever it is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]

PARENT = """
import sys, threading, time
from cxr_ray.pipeline.decoding.child_process import ChildProcess, ProcessLimits
from cxr_ray.pipeline.decoding.decoded import Recipe

def work():
    child = ChildProcess(ProcessLimits())
    assert child.wait_until_ready() is None
    print(child.pid, flush=True)
    content = f"CXRRAY-TEST-HOOK {sys.argv[1]}".encode()
    child.decode(content, Recipe(policy="corrected", max_bytes=1000, max_pixels=1000))
    time.sleep(600)

if sys.argv[2] == "main":
    work()
else:
    threading.Thread(target=work).start()
"""


@pytest.mark.parametrize(
    ("doing", "thread"), [("idle", "main"), ("sleep", "other"), ("spin", "other"), ("hold", "main")]
)
def test_no_orphans(doing: str, thread: str) -> None:
    """``hold`` never releases the interpreter's lock, so that only the kernel can end it."""
    hooks = "0" if doing == "idle" else "1"  # without hooks it answers at once and waits for the next image
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CXR_RAY_TEST_HOOKS": hooks}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, doing, thread], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    busy = doing in ("spin", "hold")
    used = child.cpu_times().user
    deadline = time.monotonic() + 30
    while busy and child.cpu_times().user < used + 0.3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert child.status() != psutil.STATUS_ZOMBIE
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs([child], timeout=20)
    assert not alive or child.status() == psutil.STATUS_ZOMBIE  # nobody may be there to collect it
    parent.stdout.close()
