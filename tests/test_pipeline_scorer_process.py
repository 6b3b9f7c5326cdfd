"""Scorers side by side: their rate, their environment, and an end where one of them dies."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

from cxr_ray.errors import MeasurementFailed
from cxr_ray.pipeline.scorer_process import WORKER_ENVIRONMENT, environment, scoring_rate


class Sleeper:
    """Takes a tenth of a second per image, in the environment of a worker."""

    compute_batch = 2

    def score(self, pixels_BHW: np.ndarray) -> Any:
        assert WORKER_ENVIRONMENT.items() <= os.environ.items()
        time.sleep(0.1 * len(pixels_BHW))


def test_scorers_work_at_the_same_time() -> None:
    assert scoring_rate(Sleeper, 3, seconds=1.0) == pytest.approx(30, rel=0.25)


def test_a_scorer_that_dies_ends_the_measurement() -> None:
    with pytest.raises(MeasurementFailed, match="ended"):
        scoring_rate(partial(os._exit, 3), 2)


def test_the_environment_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_RAY_TEST_A", "1")
    monkeypatch.delenv("CXR_RAY_TEST_B", raising=False)
    with environment({"CXR_RAY_TEST_A": "2", "CXR_RAY_TEST_B": "3"}):
        assert (os.environ["CXR_RAY_TEST_A"], os.environ["CXR_RAY_TEST_B"]) == ("2", "3")
    assert os.environ["CXR_RAY_TEST_A"] == "1"
    assert "CXR_RAY_TEST_B" not in os.environ
