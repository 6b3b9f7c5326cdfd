"""Units that fail: what may pass is tried again with pauses, anything else is fatal; reasons say no address."""

from __future__ import annotations

import pytest

from cxr_ray.errors import CxrRayError, NoLungs, PublishConflict, StorageReadError, StorageWriteError
from cxr_ray.pipeline.failures import Tries, failure_of, may_pass, pause_before, reason_of


class WorkerKilled(CxrRayError):
    code = "worker_killed"


@pytest.mark.parametrize(
    "error",
    [
        StorageReadError("x"),
        StorageWriteError("x"),
        WorkerKilled("x"),
        TimeoutError(),
        ConnectionResetError(),
    ],
)
def test_what_belongs_to_the_moment_may_pass(error: Exception) -> None:
    assert may_pass(error)
    assert not failure_of("u", "read", error, 0).fatal


@pytest.mark.parametrize("error", [PublishConflict("x"), NoLungs("x"), ValueError("x"), MemoryError()])
def test_anything_else_is_fatal_and_never_tried_again(error: Exception) -> None:
    waited: list[float] = []
    assert not Tries(5, wait=waited.append).again(error)
    assert waited == []
    assert failure_of("u", "read", error, 0).fatal


def test_tries_end_after_growing_pauses() -> None:
    waited: list[float] = []
    told: list[int] = []
    tries = Tries(3, wait=waited.append, on_retry=lambda: told.append(1))
    assert [tries.again(TimeoutError()) for _ in range(5)] == [True, True, True, False, False]
    assert len(told) == tries.done == 3
    for seconds, middle in zip(waited, (1, 4, 16), strict=True):
        assert middle / 2 <= seconds <= middle * 1.5


def test_pauses_are_bounded_and_spread() -> None:
    assert max(pause_before(30) for _ in range(200)) <= 90
    assert len({pause_before(2) for _ in range(20)}) == 20


def test_reasons_are_sentences_without_addresses() -> None:
    error = OSError(5, "Input/output error", "/secret/films/a.png")
    assert reason_of(error) == "the storage failed (OSError: Input/output error)"
    assert reason_of(StorageReadError("The archive cannot be read: timed out.")) == (
        "The archive cannot be read: timed out"
    )
    assert reason_of(ValueError("first\nsecond")) == "ValueError: first"
    assert failure_of("u", "read", KeyError("x"), 2).code == "internal"
    assert failure_of("u", "read", error, 2).code == "storage"
