"""Silence for DICOM libraries: their warnings quote attribute values, and bad input is data here."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_LOGGERS = ("pydicom", "pylibjpeg", "openjpeg", "jpeg_ls")

_lock = threading.Lock()
_stderr_lock = threading.Lock()
_users = 0
_undo = ExitStack()


@contextmanager
def quiet_dicom() -> Iterator[None]:
    """Suppress warnings and the libraries' log records for the time of the block.

    Warning filters and log levels are global to the process, so threads share one suppression: the
    first to enter installs it, the last to leave undoes it.
    """
    global _users, _undo
    with _lock:
        if _users == 0:
            _undo = ExitStack()
            _undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            for name in _LOGGERS:
                logger = logging.getLogger(name)
                _undo.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.CRITICAL + 1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _undo.close()


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send what C code writes to file descriptor 2 to nowhere for the time of the block.

    For a library that prints from C on valid input and has no switch for it. What other threads write
    meanwhile is lost too, so it is kept to single calls.
    """
    with _stderr_lock:
        try:
            kept = os.dup(2)
        except OSError:  # the process runs without a standard error
            yield
            return
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
