"""Create-only publication on a local folder and on S3, and the probe that refuses a store without it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import OutputError
from cxr_ray.pipeline.publish import SINGLE_WRITER, Publisher


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "out"))
    server = request.getfixturevalue("s3_server")
    bucket = server.make_bucket()
    return open_storage(f"s3://{bucket}/out", server.storage_options)


def test_first_writer_wins_and_nothing_is_overwritten(storage: Storage) -> None:
    publisher = Publisher(storage)
    assert publisher.publish("scores/part-a.parquet", b"first")
    assert not publisher.publish("scores/part-a.parquet", b"second")
    assert publisher.read("scores/part-a.parquet") == b"first"
    assert publisher.names("scores") == ["part-a.parquet"]


def test_racing_writers_have_exactly_one_winner(storage: Storage) -> None:
    won: list[bool] = []
    barrier = threading.Barrier(6)

    def race(number: int) -> None:
        publisher = Publisher(open_storage(storage.url, storage.options))
        barrier.wait()
        won.append(publisher.publish("race", str(number).encode()))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 5 + [True]


def test_missing_names_and_folders_are_not_errors(storage: Storage) -> None:
    publisher = Publisher(storage)
    assert publisher.read("nothing") is None
    assert publisher.names("scores") == []
    assert publisher.is_empty()


def test_probe_leaves_nothing_behind(storage: Storage) -> None:
    publisher = Publisher(storage)
    publisher.probe()
    assert publisher.is_empty()
    assert not storage.fs.exists(storage.path)


def test_probe_refuses_a_store_that_accepts_a_name_twice(tmp_path: Path) -> None:
    class Forgetful(Publisher):
        def publish(self, name: str, data: bytes) -> bool:
            self.storage.fs.makedirs(self.path("staging"), exist_ok=True)
            self.storage.fs.pipe_file(self.path(name), data)
            return True

    with pytest.raises(OutputError, match=r"the second writer was accepted.*fencing=single_writer"):
        Forgetful(open_storage(str(tmp_path / "forgetful"))).probe()
    assert not (tmp_path / "forgetful").exists()


def test_probe_refuses_stores_of_which_nothing_is_known() -> None:
    # fsspec gives every store a "create" that looks first and writes then, which is not one step.
    with pytest.raises(OutputError, match=r"memory://.*fencing=single_writer"):
        Publisher(open_storage("memory://somewhere/out")).probe()
    Publisher(open_storage("memory://somewhere/out"), SINGLE_WRITER).probe()


def test_probing_does_not_disturb_a_writer(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "out"))
    stop = threading.Event()

    def probe_on() -> None:
        while not stop.is_set():
            Publisher(storage).probe()

    prober = threading.Thread(target=probe_on)
    prober.start()
    try:
        assert all(Publisher(storage).publish(f"scores/{number}", b"x") for number in range(300))
    finally:
        stop.set()
        prober.join()


def test_probe_refuses_an_unwritable_folder(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(OutputError, match="cannot be written"):
        Publisher(open_storage(str(blocked / "out"))).probe()


def test_single_writer_keeps_what_is_there(tmp_path: Path) -> None:
    publisher = Publisher(open_storage(str(tmp_path)), SINGLE_WRITER)
    assert publisher.publish("a", b"1")
    assert not publisher.publish("a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_unknown_fencing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="create_only, single_writer"):
        Publisher(open_storage(str(tmp_path)), "maybe")


def test_local_publication_leaves_no_staging_files(tmp_path: Path) -> None:
    publisher = Publisher(open_storage(str(tmp_path)))
    publisher.publish("scores/a", b"1")
    publisher.publish("scores/a", b"2")
    publisher.replace("run.json", b"{}")
    assert os.listdir(tmp_path / "staging") == []
