"""Create-only publication on a local folder and on object stores, and the probe that refuses a store without it."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from store_emulators import new_storage

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import OutputError
from cxr_ray.pipeline.publish import SINGLE_WRITER, Publisher
from cxr_ray.pipeline.publishing import local, object_store


@pytest.fixture(params=["local", "s3", "az", "gs"])
def storage(request: pytest.FixtureRequest) -> Storage:
    return new_storage(request)


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


def test_large_files_are_created_once_too(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 and Azure take them in pieces; the precondition must hold when the pieces are put together."""
    monkeypatch.setattr(object_store, "S3_CHUNK", 3000)
    size = 10_000
    if storage.protocol == "az":
        size = 65 * 2**20  # the client's own limit of one Put Blob is 64 MiB
    first, second = os.urandom(size), os.urandom(size)
    publisher = Publisher(storage)
    assert publisher.publish("scores/large", first)
    assert not publisher.publish("scores/large", second)
    assert publisher.read("scores/large") == first
    assert publisher.names("scores") == ["large"]


def test_an_s3_upload_in_pieces_that_loses_leaves_nothing(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "S3_CHUNK", 3000)
    bucket = s3_server.make_bucket()
    publisher = Publisher(open_storage(f"s3://{bucket}/out", s3_server.storage_options))
    assert publisher.publish("a", b"x" * 10_000)
    s3_server.clear_log()
    assert not publisher.publish("a", b"y" * 10_000)
    pieces = s3_server.requests("PUT", "out/a")
    assert len(pieces) == 4
    assert all("partNumber" in entry["query"] for entry in pieces)
    assert not s3_server.filesystem().call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads")


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


def test_probe_refuses_an_s3_server_without_preconditions(s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket()
    storage = open_storage(f"s3://{bucket}/out", s3_server.storage_options)
    s3_server.ignore_preconditions()
    try:
        with pytest.raises(OutputError, match=r"the second writer was accepted.*fencing=single_writer"):
            Publisher(storage).probe()
        Publisher(storage, SINGLE_WRITER).probe()
    finally:
        s3_server.ignore_preconditions(False)
    assert not storage.fs.exists(storage.path)


def test_probe_refuses_a_folder_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*names: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(OutputError, match=r"no hard links.*fencing=single_writer"):
        Publisher(open_storage(str(tmp_path / "out"))).probe()
    assert not (tmp_path / "out").exists()


def test_a_staged_file_that_is_swept_away_is_staged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver's sweep may come between staging and link, if this one was stopped for long."""
    link, taken = os.link, []

    def swept(staged: Path, target: Path) -> None:
        if len(taken) < 3:
            taken.append(staged)
            shutil.rmtree(staged.parent)
        link(staged, target)

    monkeypatch.setattr(os, "link", swept)
    publisher = Publisher(open_storage(str(tmp_path / "out")))
    assert publisher.publish("scores/a", b"rows")
    assert len(set(taken)) == 3
    assert publisher.read("scores/a") == b"rows"
    assert list((tmp_path / "out" / "staging").iterdir()) == []


def test_a_folder_that_cannot_be_staged_in_is_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def gone(staged: Path, target: Path) -> None:
        tries.append(staged)
        raise OSError(errno.ESTALE, "stale handle")

    monkeypatch.setattr(os, "link", gone)
    with pytest.raises(OSError, match="stale"):
        Publisher(open_storage(str(tmp_path / "out"))).publish("a", b"1")
    assert len(tries) == local._TRIES


def test_a_link_whose_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS sends the request again, and reports what its own first try has made."""
    link = os.link

    def answered_twice(staged: Path, target: Path) -> None:
        link(staged, target)
        staged.unlink()  # and somebody has swept meanwhile
        raise FileExistsError(errno.EEXIST, "exists")

    publisher = Publisher(open_storage(str(tmp_path / "out")))
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", answered_twice)
        assert publisher.publish("a", b"1")
    assert not publisher.publish("a", b"2")


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
