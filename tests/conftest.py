"""Fixtures shared by all tests: where the private data lies, and one thread per process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("CXR_RAY_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The private test data (``../shared``); the test is skipped, and says so, where it is absent."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("needs ../shared (reference weights, goldens and real films), which is not here")
    return SHARED
