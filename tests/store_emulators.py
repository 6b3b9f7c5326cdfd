"""Azurite and fake-gcs-server for tests, where they are installed; neither is needed for anything else.

* Azure: ``azurite-blob`` (``npm install azurite``) on PATH, or its path in CXR_RAY_AZURITE; and ``pip install adlfs``.
* GCS: ``fake-gcs-server`` on PATH, or its path in CXR_RAY_FAKE_GCS; and ``pip install gcsfs``.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cxr_ray.archives.storage import Storage, open_storage

#: Azurite's public account; it has no other.
_ACCOUNT = "devstoreaccount1"
_ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


_BUCKETS = (f"bucket-{number}" for number in itertools.count())


def new_storage(request: pytest.FixtureRequest, kind: str | None = None) -> Storage:
    """A new place on a store: "local", "s3", "az" or "gs" (default: the parameter of the calling fixture)."""
    kind = kind or str(request.param)
    if kind == "local":
        return open_storage(str(request.getfixturevalue("tmp_path") / "out"))
    if kind == "s3":
        server = request.getfixturevalue("s3_server")
        return open_storage(f"s3://{server.make_bucket()}/out", server.storage_options)
    bucket = next(_BUCKETS)
    storage = open_storage(
        f"{kind}://{bucket}/out", request.getfixturevalue({"az": "azure", "gs": "gcs"}[kind])
    )
    storage.fs.mkdir(bucket)
    return storage


@contextmanager
def azure_options(folder: Path) -> Iterator[dict[str, Any]]:
    """fsspec options of a running Azurite; skips where it, or adlfs, is not installed."""
    pytest.importorskip("adlfs", reason="needs the azure extra")
    program = _program("CXR_RAY_AZURITE", "azurite-blob")
    port = _free_port()
    # Azurite knows the API versions of its own day; the client may be newer.
    quiet = ("--silent", "--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence")
    with _running([program, *quiet, "--blobHost", "127.0.0.1", "--blobPort", str(port)], folder, port):
        parts = {
            "DefaultEndpointsProtocol": "http",
            "AccountName": _ACCOUNT,
            "AccountKey": _ACCOUNT_KEY,
            "BlobEndpoint": f"http://127.0.0.1:{port}/{_ACCOUNT}",
        }
        yield {"connection_string": ";".join(f"{name}={value}" for name, value in parts.items())}


@contextmanager
def gcs_options(folder: Path) -> Iterator[dict[str, Any]]:
    """fsspec options of a running fake-gcs-server; skips where it, or gcsfs, is not installed."""
    # gcsfs would ask Google's own service by gRPC, for minutes, whether the bucket is a zonal one. Read at import.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    pytest.importorskip("gcsfs", reason="needs the gcs extra")
    program = _program("CXR_RAY_FAKE_GCS", "fake-gcs-server")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [program, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    with _running([*command, "-backend", "memory"], folder, port):
        yield {"endpoint_url": url, "token": "anon", "project": "test"}


def _program(variable: str, name: str) -> str:
    found = os.environ.get(variable) or shutil.which(name)
    if not found:
        pytest.skip(f"needs {name} on PATH, or its path in {variable}")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, f"{command[0]} ended at once"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, f"{command[0]} does not answer"
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)
