"""A scorer that hangs, or kills its process: the run ends with one sentence, and the other units are published."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from end_to_end.commands import Finished, run_command, score_cheaply, write_films

FAULTY_SCORE = "tests/end_to_end/faulty_score.py"


@pytest.fixture(scope="module")
def films_and_a_victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three films, and a nearly white one, which ``faulty_score.py`` chokes on."""
    folder = tmp_path_factory.mktemp("victim") / "films"
    write_films(folder, 3)
    white = np.full((400, 340), 255, np.uint8)
    white[:20] = np.arange(340) % 255
    cv2.imwrite(str(folder / "film-victim.png"), white)
    return folder


def score_with(fault: str, archive: Path, output: Path, *options: str) -> Finished:
    return run_command(
        FAULTY_SCORE, fault, f"archive={archive}", f"output={output}", "unit_size=1", "actors=1", *options
    )


def test_a_scorer_that_hangs_ends_the_run_with_the_state_of_the_stages(
    films_and_a_victim: Path, tmp_path: Path
) -> None:
    # Long enough for a busy machine to start an actor.
    done = score_with("hang", films_and_a_victim, tmp_path / "out", "no_progress_seconds=30")
    assert done.code == 1
    assert "no progress for" in done.err
    assert "score: actors 1 alive" in done.err
    assert "waits for its running tasks" in done.err
    assert len(list((tmp_path / "out" / "scores").iterdir())) == 3


def test_a_unit_that_kills_its_scorer_stops_no_other_and_is_listed(
    films_and_a_victim: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    done = score_with("die", films_and_a_victim, output, "rounds=1")
    assert done.code == 1
    assert "1 unit was not published (g00000-u000003), because its worker died again and again" in done.err
    assert len(list((output / "scores").iterdir())) == 3
    assert score_cheaply(films_and_a_victim, output).summary["scored"] == 4
