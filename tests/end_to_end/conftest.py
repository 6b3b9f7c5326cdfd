"""Fixtures of the end-to-end tests: an archive of phantoms, and its table made by the real command."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from end_to_end.commands import score, score_cheaply, write_films


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve phantoms, a broken file, a constant frame, and a page of black and white without lungs."""
    folder = tmp_path_factory.mktemp("films")
    write_films(folder, 12)
    (folder / "broken.png").write_bytes((folder / "film-000.png").read_bytes()[:2000])
    cv2.imwrite(str(folder / "blank.png"), np.full((400, 340), 7, np.uint8))
    page = np.zeros((300, 340), np.uint8)
    page[:, 170:] = 255
    cv2.imwrite(str(folder / "page.png"), page)
    return folder


@pytest.fixture(scope="session")
def scored_films(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUTPUT of a job over ``films``; tests must not change it."""
    output = tmp_path_factory.mktemp("scored") / "out"
    score(films, output)
    return output


@pytest.fixture(scope="session")
def cheaply_scored_films(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUTPUT over ``films`` of a scorer that needs no network; tests must not change it."""
    output = tmp_path_factory.mktemp("cheap") / "out"
    score_cheaply(films, output)
    return output
