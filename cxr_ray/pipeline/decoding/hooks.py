"""Test hooks of the decode process: content that misbehaves on demand. Imported only with CXR_RAY_TEST_HOOKS=1.

    CXRRAY-TEST-HOOK VERB [NUMBER] [once=FILE]

on the first line. What follows that line is then decoded, if the process still can. With ``once=FILE`` the hook acts
only while FILE does not exist, and makes it first. Without the variable such content is ``unknown_format``.
"""

from __future__ import annotations

import os
import signal
import time

MAGIC = b"CXRRAY-TEST-HOOK "

_SIGNALS = {
    "segv": signal.SIGSEGV,
    "abort": signal.SIGABRT,
    "bus": signal.SIGBUS,
    "ill": signal.SIGILL,
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
}


def obey(content: bytes) -> bytes:
    """Act on the first line of ``content`` where it is a hook; returns what is to be decoded."""
    if not content.startswith(MAGIC):
        return content
    line, _, rest = content.partition(b"\n")
    verb, *words = line[len(MAGIC) :].decode().split()
    number = next((float(word) for word in words if "=" not in word), None)
    marker = next((word.removeprefix("once=") for word in words if word.startswith("once=")), None)
    if marker is not None:
        if os.path.exists(marker):
            return rest
        with open(marker, "wb"):
            pass
    _act(verb, number)
    return rest


def _act(verb: str, number: float | None) -> None:
    if verb == "exit":
        os._exit(int(number or 0))
    elif verb in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[verb])
        time.sleep(1)  # until the signal is there
    elif verb == "spin":  # seconds of CPU
        end = time.process_time() + (60 if number is None else number)
        while time.process_time() < end:
            sum(range(2_000_000))
    elif verb == "hold":  # burns CPU and never lets go of the interpreter's lock, as a decoder in C may
        sum(range(10**12))
    elif verb == "sleep":
        time.sleep(3600 if number is None else number)
    elif verb == "hog":  # MiB a second in small pieces, touched
        held = []
        while True:
            held.append(b"x" * (1 << 20))
            time.sleep(1 / (number or 1000))
    elif verb == "reserve":  # MiB in one piece, untouched
        bytearray(int((number or 1 << 20) * (1 << 20)))
    else:
        raise ValueError(f"no such hook: {verb}")
