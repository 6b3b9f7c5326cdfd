"""The decode process: reads images from a socket, decodes them, answers. Started by ``child_process``.

    python -P -m cxr_ray.pipeline.decoding.child SOCKET_FD AREA_FD PARENT_PID MEMORY_BYTES DIE_WITH_PARENT

It ends by itself when its parent ends, also while it is inside a decoder.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import cv2

from cxr_ray.errors import MemoryLimit
from cxr_ray.pipeline.decoding.decoded import Decoded, Recipe, decode_content
from cxr_ray.pipeline.decoding.messages import ExchangeArea, answer_of, receive, send

#: Set to 1 by tests only: content that begins with a magic word then makes the decoder crash, spin, ... (``hooks``).
HOOKS_VARIABLE = "CXR_RAY_TEST_HOOKS"

_PR_SET_PDEATHSIG = 1

Decode = Callable[[bytes, Recipe], Decoded]


def main(arguments: list[str]) -> None:
    """Serve until the parent closes the connection."""
    socket_descriptor, area_descriptor, parent, memory_bytes, die_with_parent = map(int, arguments)
    connection = socket.socket(fileno=socket_descriptor)
    _end_with_parent(connection, parent, bool(die_with_parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of memory would hold the picture
    # The hard wall between two looks of the parent. It counts private writable memory; RLIMIT_AS would count
    # the libraries too (measured after the imports: 91 MB against 334 MB, with 86 MB resident).
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    cv2.setNumThreads(1)
    decode = _decode_function()
    area = ExchangeArea(area_descriptor)
    send(connection, {"ready": True, "cpu_seconds": time.process_time()})
    while (request := receive(connection)) is not None:
        _answer(request, connection, area, decode)


def _decode_function() -> Decode:
    if os.environ.get(HOOKS_VARIABLE) != "1":
        return decode_content
    from cxr_ray.pipeline.decoding.hooks import obey

    return lambda content, recipe: decode_content(obey(content), recipe)


def _answer(request: dict[str, Any], connection: socket.socket, area: ExchangeArea, decode: Decode) -> None:
    """Decode one image. A function of its own, so that nothing of the image outlives it."""
    try:
        decoded = decode(area.read(request["size"]), Recipe(**request["recipe"]))
    except MemoryError:
        decoded = Decoded(error=MemoryLimit("decoding needs more memory than there is"))
    if decoded.pixels is not None:
        area.write(decoded.pixels)
    send(connection, answer_of(decoded, time.process_time()))


def _end_with_parent(connection: socket.socket, parent: int, die_with_parent: bool) -> None:
    """Two ways, because each has a gap.

    A thread that waits for the parent's end of the socket to close cannot run while a decoder holds the
    interpreter's lock. The kernel's signal comes always, but at the end of the *thread* that started this
    process, so it is asked for only where that was the parent's main thread.
    """
    threading.stack_size(1 << 18)
    threading.Thread(target=_wait_for_hangup, args=(connection.fileno(),), daemon=True).start()
    if die_with_parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        _leave()


def _wait_for_hangup(descriptor: int) -> None:
    poller = select.poll()
    poller.register(descriptor, 0)  # a hang-up is always reported
    poller.poll()
    _leave()


def _leave() -> NoReturn:
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
