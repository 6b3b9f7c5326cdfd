"""Members without Ray: the same result here and in children, also when a child is killed; no orphans."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_member import ENTRY, settings, starts, weight_of

from cxr_ray.errors import NonfiniteLoss, RunFailed, UsageError
from training.parallel import member_processes
from training.parallel.member_processes import run_members_locally
from training.parallel.messages import died, error_of, outcome, print_row
from training.parallel.processes import choose_device


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_processes, "RESTART_SECONDS", 0.0)


def run(
    members: list[dict[str, Any]], at_once: int = 1, rows: list[Any] | None = None, **more: Any
) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = [] if rows is None else rows
    for member in members:
        (Path(member["folder"]) / member["name"]).mkdir(parents=True, exist_ok=True)
    more = {"listener": lambda name, row: found.append((name, dict(row)))} | more
    run_members_locally(members, at_once=at_once, device="cpu", entry=ENTRY, **more)
    return found


def test_children_that_are_killed_or_give_up_end_as_this_process_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = run([settings(tmp_path, "alone")])
    members = [
        settings(tmp_path, "killed", fail="kill"),
        settings(tmp_path, "nan", fail="nan"),
        settings(tmp_path, "dying", fail="bug", times=2),
    ]
    rows: list[tuple[str, dict[str, Any]]] = []
    with pytest.raises(NonfiniteLoss, match="nan met a loss of nan"):
        run(members, at_once=2, max_failures=1, rows=rows)
    assert weight_of(tmp_path, "killed") == weight_of(tmp_path, "alone")
    assert [row for who, row in rows if who == "killed"] == [row for _, row in alone]
    assert {row["threads"] for _, row in rows} == {1}
    assert starts(tmp_path, "killed") == [(0, 0), (2, 0)]
    assert starts(tmp_path, "nan") == [(0, 0)], "tried again what can only fail again"
    assert starts(tmp_path, "dying") == [(0, 0), (2, 0)]
    assert "dying | KeyError: 'no such thing'" in capfd.readouterr().err
    run([settings(tmp_path, "dying")])
    assert starts(tmp_path, "dying")[-1] == (2, 0), "the next run goes on from the checkpoint"
    assert weight_of(tmp_path, "dying") == weight_of(tmp_path, "alone")


def test_the_others_end_before_an_error_is_raised(tmp_path: Path) -> None:
    with pytest.raises(NonfiniteLoss, match="nan met a loss of nan"):
        run([settings(tmp_path, "nan", fail="nan"), settings(tmp_path, "sound")])
    assert weight_of(tmp_path, "sound")


def test_a_failing_storage_is_tried_again_but_not_for_ever(tmp_path: Path) -> None:
    run([settings(tmp_path, "once", fail="storage")])
    assert starts(tmp_path, "once") == [(0, 0), (2, 0)]
    with pytest.raises(
        RunFailed, match=r"often failed 2 times \(the storage is full\); its checkpoints are kept"
    ):
        run([settings(tmp_path, "often", fail="storage", times=9)], max_failures=1)


def test_what_is_raised_of_several_errors() -> None:
    dead, bad = died("a", 1, "killed by signal 9"), NonfiniteLoss("b met NaN")
    with pytest.raises(NonfiniteLoss):
        outcome(["a", "b"], {"a": dead, "b": bad})
    with pytest.raises(RunFailed, match=r"a failed once \(killed by signal 9\).*; c failed 2 times"):
        outcome(["a", "b", "c"], {"c": died("c", 2, "KeyError"), "a": dead})
    outcome(["a"], {})


def test_an_interrupted_run_ends_its_children(tmp_path: Path) -> None:
    before = set(psutil.Process().children())

    def interrupt(name: str, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    members = [settings(tmp_path, name, fail="wait") for name in ("a", "b")]
    with pytest.raises(KeyboardInterrupt):
        run(members, at_once=2, listener=interrupt)
    assert not set(psutil.Process().children()) - before


PARENT = """
import sys
from pathlib import Path
from fake_member import ENTRY, settings
from training.parallel.member_processes import run_members_locally
members = [settings(Path(sys.argv[1]), name, fail="wait") for name in ("a", "b")]
run_members_locally(members, at_once=2, device="cpu", entry=ENTRY)
"""


def test_no_child_outlives_a_killed_parent(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    path = os.pathsep.join(entry for entry in sys.path if entry)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    try:
        _until(lambda: all((tmp_path / name / "failed").exists() for name in ("a", "b")), parent)
        children = psutil.Process(parent.pid).children()
        assert len(children) == 2
    finally:
        parent.kill()
        parent.wait(timeout=30)
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive


def _until(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert process.poll() is None, "the parent ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_error_keeps_its_kind_from_process_to_process() -> None:
    assert type(error_of("nonfinite_loss", "x")) is NonfiniteLoss
    assert type(error_of("usage", "x")) is UsageError
    assert type(error_of("from another version", "x")) is RunFailed


def test_a_row_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_row("fold3", {"epoch": 4.0, "train_loss": 0.123456789, "note": "x"})
    assert capsys.readouterr().err == "fold3 | epoch 4 | train_loss 0.1235 | note x\n"


def test_cpu_is_cpu() -> None:
    assert choose_device("cpu", slot=3).type == "cpu"
