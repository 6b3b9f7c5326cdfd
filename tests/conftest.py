"""Fixtures shared by all tests: where the private data lies, and one thread per process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server, running_server
from store_emulators import azure_options, gcs_options

from training.memory import keep_freed_memory, release_freed_memory

SHARED = Path(os.environ.get("CXR_RAY_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_configure() -> None:
    """The suite scores hundreds of pictures in this process; an eighth of that time was the kernel's memory."""
    keep_freed_memory()


@pytest.fixture(scope="module", autouse=True)
def give_memory_back() -> Iterator[None]:
    """At the end of a file: its freed gigabytes are no use to the next ones, which may start clusters."""
    yield
    release_freed_memory()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The private test data (``../shared``); the test is skipped, and says so, where it is absent."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("needs ../shared (reference weights, goldens and real films), which is not here")
    return SHARED


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real local S3 server in a process of its own; make a fresh bucket in each test."""
    yield from running_server()


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """fsspec options of a local Azurite; the test is skipped where it is not installed."""
    with azure_options(tmp_path_factory.mktemp("azure")) as options:
        yield options


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """fsspec options of a local fake-gcs-server; the test is skipped where it is not installed."""
    with gcs_options(tmp_path_factory.mktemp("gcs")) as options:
        yield options


@pytest.fixture(scope="session")
def published_bundle_dir(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the published weights, imported once from the Keras files of ``../shared``."""
    pytest.importorskip("h5py", reason="importing the published weights needs the keras extra")
    from cxr_ray.weights import import_keras

    directory = tmp_path_factory.mktemp("published") / "bundle"
    import_keras(shared_dir / "reference" / "weights", directory)
    return directory
