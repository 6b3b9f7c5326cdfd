"""Storages: canonical addresses, options, secrecy, what a bad address or option says."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from s3_server import SECRET_KEY, S3Server

from cxr_ray.archives.storage import explain, open_storage
from cxr_ray.errors import ArchiveError, MissingExtra


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("/data/films/", "file:///data/films"),
        ("file:///data/a b", "file:///data/a b"),
        ("/data/x/../films", "file:///data/films"),
        ("s3://bucket/films/", "s3://bucket/films"),
        ("s3a://bucket/films", "s3://bucket/films"),
        ("memory://films", "memory:///films"),
    ],
)
def test_canonical_address_and_back(address: str, url: str) -> None:
    storage = open_storage(address)
    assert storage.url == url
    assert storage.path_of(storage.url) == storage.path
    assert open_storage(url).url == url


def test_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_storage("films").url == f"file://{tmp_path}/films"


def test_name_that_is_no_utf8_survives_the_way_into_the_table(tmp_path: Path) -> None:
    odd = os.path.join(tmp_path, os.fsdecode(b"film\xff.png"))
    Path(odd).write_bytes(b"x")
    storage = open_storage(str(tmp_path))
    uri = storage.uri_of(odd)
    assert uri.endswith("film\\xff.png")
    uri.encode("utf-8")
    assert storage.path_of(uri) == odd


def test_secrets_stay_out_of_repr_and_travel_in_pickle(s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket()
    s3_server.filesystem().pipe(f"{bucket}/a.png", b"film")
    storage = open_storage(f"s3://{bucket}", s3_server.storage_options)
    assert storage.fs.cat_file(f"{bucket}/a.png") == b"film"
    assert SECRET_KEY not in repr(storage)
    again = pickle.loads(pickle.dumps(storage))
    assert again.url == storage.url
    assert again.fs.cat_file(f"{bucket}/a.png") == b"film"


def test_region_and_retries_reach_the_client(s3_server: S3Server) -> None:
    options = {**s3_server.storage_options, "region": "eu-central-1", "config_kwargs": {"read_timeout": 7}}
    client = open_storage("s3://bucket", options).fs.s3
    assert client.meta.region_name == "eu-central-1"
    assert client.meta.config.read_timeout == 7
    assert client.meta.config.retries["mode"] == "standard"


@pytest.mark.parametrize(
    ("address", "options", "says"),
    [
        ("", {}, "empty"),
        ("foo://bucket", {}, "foo://"),
        ("simplecache::s3://bucket", {}, "Chained"),
        ("ftp://user:hunter2@host/films", {}, "storage options"),
        ("s3://bucket", {"endpoint": "x"}, "Unknown storage option for s3://: endpoint"),
        ("s3://bucket", {"key": "a", "username": "hush"}, "do not fit"),
    ],
)
def test_bad_address_or_option(address: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(ArchiveError, match=says) as caught:
        _ = open_storage(address, options).fs
    assert "hush" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_missing_package_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from cxr_ray.archives.storage import open_storage\n"
        "from cxr_ray.errors import MissingExtra\n"
        "try: open_storage('s3://bucket')\n"
        "except MissingExtra as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 'pip install "cxr_ray[s3]"' in out
    assert issubclass(MissingExtra, Exception)


def test_explain_quotes_no_server_text() -> None:
    assert explain(PermissionError(13, "key AKIA123 refused")) == "access denied"
    assert "secret" not in explain(RuntimeError("secret"))
    assert "No space left" in explain(OSError(28, "secret"))
