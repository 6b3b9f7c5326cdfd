"""The check before a run: the archive is there, and may be read, not only listed."""

from __future__ import annotations

from pathlib import Path

import pytest
from s3_server import S3Server

from cxr_ray.archives.listing import check_readable
from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import ArchiveError


def test_a_readable_archive_passes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"film")
    check_readable(open_storage(str(tmp_path)))
    check_readable(open_storage(str(tmp_path / "a")))


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError):
        check_readable(open_storage(str(tmp_path / "absent")))


def test_a_right_to_list_is_no_right_to_read(s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket()
    for number in range(8):
        s3_server.filesystem().pipe_file(f"{bucket}/films/{number}.png", b"film")
    storage = open_storage(f"s3://{bucket}/films", s3_server.storage_options)
    check_readable(storage)
    try:
        s3_server.set_faults(1.0, kinds=("403",), match="films/0.png")
        check_readable(storage)  # one locked film does not stop a run
        s3_server.set_faults(1.0, kinds=("403",), match="films/")
        with pytest.raises(ArchiveError, match="listed but not read"):
            check_readable(storage)
    finally:
        s3_server.clear_faults()
