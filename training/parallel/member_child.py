"""A child of ``member_processes``: runs the member that its standard input names.

It ends when standard input closes: whatever kills the parent, no orphan goes on writing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

import torch

from cxr_ray.errors import CxrRayError
from training.parallel.messages import find, is_final
from training.parallel.processes import Processes, choose_device


def main() -> int:
    """Run the member that standard input names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints goes to standard error, so that it cannot mix with messages
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(**message: Any) -> None:
        messages.write(json.dumps(message) + "\n")
        messages.flush()

    torch.set_num_threads(order["threads"])
    try:
        processes = Processes.alone(choose_device(order["device"], order["slot"]))
        find(order["entry"])(order["member"], processes, lambda row: send(row=row))
    except CxrRayError as error:
        send(**({"final": error.code, "message": str(error)} if is_final(error) else {"failed": str(error)}))
        return 1
    except Exception as error:
        traceback.print_exc()
        send(failed=type(error).__name__)
        return 1
    send(done=True)
    return 0


def _end_with_parent() -> None:
    while sys.stdin.readline():
        continue
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
