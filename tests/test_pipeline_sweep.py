"""What killed runs left behind goes at the next start; what may belong to a living driver stays."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from s3_server import S3Server
from store_emulators import new_storage

from cxr_ray.archives.storage import open_storage
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.publishing import sweep
from cxr_ray.pipeline.publishing.sweep import STALE_SECONDS, _abort_uploads, modified_time


def test_old_local_left_overs_go_and_young_ones_stay(tmp_path: Path) -> None:
    publisher = Publisher(open_storage(str(tmp_path / "out")))
    publisher.publish("scores/part-a.parquet", b"rows")
    staging = tmp_path / "out" / "staging"
    old, young = staging / "old", staging / "young"
    # Killed between link and unlink: the staged name of a published part.
    os.link(tmp_path / "out" / "scores" / "part-a.parquet", old)
    young.write_bytes(b"half")
    long_ago = time.time() - STALE_SECONDS - 5
    os.utime(old, (long_ago, long_ago))
    publisher.probe()
    assert sorted(os.listdir(staging)) == ["old", "young"]
    publisher.probe(sweep=True)
    assert os.listdir(staging) == ["young"]
    assert publisher.read("scores/part-a.parquet") == b"rows"


def test_age_is_by_the_storages_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is hours ahead must not take a living driver's file away."""
    publisher = Publisher(open_storage(str(tmp_path / "out")))
    publisher.publish("staging/node-check-other", b"x")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    publisher.probe(sweep=True)
    assert publisher.names("staging") == ["node-check-other"]


@pytest.mark.parametrize("store", ["s3", "az", "gs"])
def test_objects_are_swept_by_the_servers_clock(
    store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Publisher(new_storage(request, store))
    publisher.publish("staging/node-check-old", b"x")
    publisher.publish("scores/part-a.parquet", b"rows")
    publisher.probe(sweep=True)
    assert publisher.names("staging") == ["node-check-old"]
    monkeypatch.setattr(sweep, "STALE_SECONDS", 1.0)  # LastModified has whole seconds
    time.sleep(2.1)
    publisher.publish("staging/node-check-young", b"x")
    publisher.probe(sweep=True)
    assert publisher.names("staging") == ["node-check-young"]
    assert publisher.names("scores") == ["part-a.parquet"]


def test_unfinished_uploads_of_yesterday_are_aborted(s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket()
    fs = s3_server.filesystem()
    for key in ("out/scores/part-a", "out/scores/part-b", "elsewhere/part"):
        fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    storage = open_storage(f"s3://{bucket}/out", s3_server.storage_options)

    def left() -> list[str]:
        uploads = fs.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads") or []
        return sorted(upload["Key"] for upload in uploads)

    # moto says that every upload began on 2010-11-10, so the clock is what is moved here.
    began = datetime(2010, 11, 10, 20, 48, 33, tzinfo=UTC)
    assert _abort_uploads(storage, (began + timedelta(hours=23)).timestamp()) == 0
    assert left() == ["elsewhere/part", "out/scores/part-a", "out/scores/part-b"]
    Publisher(storage).probe(sweep=True)
    assert left() == ["elsewhere/part"]


def test_a_store_that_does_not_list_stops_no_run(s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket()
    publisher = Publisher(open_storage(f"s3://{bucket}/out", s3_server.storage_options))
    s3_server.set_faults(1.0, kinds=("403",), match=f"/{bucket}?")
    try:
        publisher.probe(sweep=True)
    finally:
        s3_server.clear_faults()


@pytest.mark.parametrize("name", ["mtime", "LastModified", "last_modified"])
def test_times_of_all_clients_are_read(name: str) -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    assert modified_time({name: when}) == when.timestamp()
    assert modified_time({"mtime": 12.5}) == 12.5
    assert modified_time({"created": when}) is None
