"""Members on Ray Train: a killed worker and a loss of NaN in one real local Ray; the lay-out for machines not here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from end_to_end.chaos import nightly
from fake_member import ENTRY, settings, starts, weight_of

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import NonfiniteLoss, UsageError
from training.parallel.layout import Workers, lay_out
from training.parallel.member_processes import run_members_locally
from training.parallel.noticeboard import Noticeboard
from training.parallel.ray_train import run_members


@pytest.mark.skipif(
    not nightly(), reason="part of the nightly form; end_to_end/test_train_resume.py kills a job"
)
def test_a_killed_worker_resumes_and_nan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # In turn, for two workers take both CPUs: the second goes on after the first was refused.
    members = [settings(tmp_path, "nan", fail="nan"), settings(tmp_path, "killed", fail="kill", fail_rank=1)]
    for name in ("killed", "nan", "alone"):
        (tmp_path / name).mkdir()
    rows: list[tuple[str, dict[str, Any]]] = []
    with pytest.raises(NonfiniteLoss, match="nan met a loss of nan"):
        run_members(
            members,
            workers=2,
            device="cpu",
            storage=open_storage(str(tmp_path / "out")),
            listener=lambda name, row: rows.append((name, dict(row))),
            entry=ENTRY,
        )
    assert starts(tmp_path, "killed") == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert starts(tmp_path, "nan") == [(0, 0), (0, 1)], "tried again what can only fail again"
    assert [row["epoch"] for name, row in rows if name == "killed"] == [1, 2, 3, 4]
    assert {row["threads"] for _, row in rows} == {1}
    run_members_locally([settings(tmp_path, "alone")], entry=ENTRY, device="cpu")
    assert weight_of(tmp_path, "killed") == pytest.approx(weight_of(tmp_path, "alone"), rel=1e-12)
    assert not list((tmp_path / "out").glob("*")), "Ray Train's own files stayed"


@pytest.mark.parametrize(
    ("machines", "asked", "expected"),
    [
        ((2, 0), {}, (1, 1, 0.0, 2)),
        ((2, 0), {"at_once": 6}, (1, 1, 0.0, 2)),
        ((64, 0), {"workers": 2, "threads": 4}, (2, 4, 0.0, 6)),
        ((16, 1), {}, (1, 1, 1.0, 1)),
        ((16, 1), {"at_once": 6}, (1, 1, 0.1666, 6)),
        ((16, 4), {"at_once": 6}, (1, 1, 0.5, 6)),
        ((16, 4), {"workers": 2}, (2, 1, 1.0, 2)),
        ((16, 4), {"workers": 2, "at_once": 6}, (2, 1, 1.0, 2)),
        ((16, 8), {"device": "cpu"}, (1, 1, 0.0, 6)),
    ],
)
def test_lay_out_of_six_members(
    machines: tuple[int, int], asked: dict[str, Any], expected: tuple[int, int, float, int]
) -> None:
    options = {"members": 6, "workers": 1, "at_once": None, "device": "auto", "threads": 1} | asked
    count, threads, gpus, slots = expected
    assert lay_out(*machines, **options) == (Workers(count=count, threads=threads, gpus=gpus), slots)


@pytest.mark.parametrize(
    ("machines", "asked", "said"),
    [
        ((2, 0), {"workers": 3}, "execution.workers=3 of 1 threads do not fit into the 2 CPUs"),
        ((16, 1), {"workers": 2}, "do not fit into the 1 GPUs and 16 CPUs"),
        ((16, 0), {"device": "cuda"}, "Ray sees no GPU"),
    ],
)
def test_what_can_never_run_is_refused(machines: tuple[int, int], asked: dict[str, Any], said: str) -> None:
    options = {"members": 1, "workers": 1, "at_once": None, "device": "auto", "threads": 1} | asked
    with pytest.raises(UsageError, match=said):
        lay_out(*machines, **options)


def test_the_noticeboard_tells_once_and_keeps_the_first_refusal() -> None:
    board = Noticeboard()
    board.add("a", {"epoch": 1})
    board.note("a", "Traceback")
    assert board.take() == ([("a", {"epoch": 1})], [("a", "Traceback")])
    assert board.take() == ([], [])
    assert board.refusal("a") is None
    board.refuse("a", "nonfinite_loss", "first")
    board.refuse("a", "usage", "second")
    assert board.refusal("a") == ("nonfinite_loss", "first")
