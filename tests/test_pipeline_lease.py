"""``fencing=single_writer``: a second driver is refused while the first lives, and takes over when it is dead."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import OutputError
from cxr_ray.pipeline.publish import SINGLE_WRITER, Publisher
from cxr_ray.pipeline.publishing.lease import LEASE_FILE, WriterLease


def place(folder: Path) -> Publisher:
    return Publisher(open_storage(str(folder)), SINGLE_WRITER)


def lease(
    folder: Path, attempt: str, lost: threading.Event | None = None, patience: float = 1.0
) -> WriterLease:
    return WriterLease(
        place(folder),
        attempt,
        lost=(lost or threading.Event()).set,
        say=lambda line: None,
        beat=0.1,
        patience=patience,
        settle=0.02,
    )


def test_one_driver_leaves_nothing_behind(tmp_path: Path) -> None:
    with lease(tmp_path / "out", "a"):
        time.sleep(0.3)
        assert place(tmp_path / "out").read(LEASE_FILE) is not None
    assert not (tmp_path / "out").exists()


def test_a_living_driver_keeps_the_second_out(tmp_path: Path) -> None:
    lost = threading.Event()
    with lease(tmp_path, "first", lost):
        start = time.monotonic()
        with pytest.raises(OutputError, match=r"attempt first.*single_writer.*one at a\s+time"):
            lease(tmp_path, "second", patience=20).__enter__()
        assert time.monotonic() - start < 5, "a change is seen at once; the patience is for silence"
        assert b"first" in (place(tmp_path).read(LEASE_FILE) or b"")
    assert not lost.is_set()
    with lease(tmp_path, "third"):
        pass


def test_a_dead_drivers_lease_is_taken_over(tmp_path: Path) -> None:
    place(tmp_path).replace(LEASE_FILE, b'{"attempt": "killed", "beat": 7}')
    start = time.monotonic()
    with lease(tmp_path, "next", patience=0.5):
        assert time.monotonic() - start >= 0.5
        assert b"next" in (place(tmp_path).read(LEASE_FILE) or b"")


def test_a_driver_that_was_taken_for_dead_is_told(tmp_path: Path) -> None:
    lost = threading.Event()
    with lease(tmp_path, "slept", lost):
        place(tmp_path).replace(LEASE_FILE, b'{"attempt": "other", "beat": 1}')
        assert lost.wait(5)
    assert b"other" in (place(tmp_path).read(LEASE_FILE) or b""), "the new holder's lease is left alone"


def test_of_two_that_start_at_once_at_most_one_goes_on(tmp_path: Path) -> None:
    entered: list[str] = []
    barrier = threading.Barrier(2)

    def begin(attempt: str) -> None:
        barrier.wait()
        held = lease(tmp_path, attempt)
        try:
            held.__enter__()
        except OutputError:
            return
        entered.append(attempt)
        time.sleep(0.5)
        held.__exit__(None, None, None)

    threads = [threading.Thread(target=begin, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) <= 1


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match="cannot be written"):
        lease(tmp_path / "file" / "out", "a").__enter__()
