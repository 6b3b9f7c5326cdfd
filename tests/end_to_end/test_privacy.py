"""``keep_uri=false``: no path and no identifier in OUTPUT, logs or errors; the plan stays in its own folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cxr_ray.phantoms import write_sample_archive
from end_to_end.commands import Finished, job_environment, read_table, run_command, run_job, score_cheaply

ENV = job_environment(CXR_RAY_KEY="a secret of at least thirty-two bytes")
NAME = "SMITH-JOHN"


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """A sample archive under a telling folder name, scored with ``keep_uri=false``; and the job's output."""
    root = tmp_path_factory.mktemp("private")
    write_sample_archive(root / NAME / "films", count=5)
    options = ("keep_uri=false", f"plan_dir={root}/plan", "exclude=['*.txt','*SMITH*.csv']")
    done = score_cheaply(root / NAME, root / "out", *options, env=ENV)
    return root, done


def test_nothing_of_the_paths_or_the_key_is_left(private: tuple[Path, Finished]) -> None:
    root, done = private
    for path in (root / "out").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert NAME.encode() not in content, path
            assert b"thirty-two bytes" not in content, path
    table = read_table(root / "out" / "scores")
    assert table.column("uri").null_count == table.column("member").null_count == table.num_rows == 5
    assert table.column("patient_key").null_count < table.num_rows
    assert NAME not in (done.out + done.err).replace(str(root / "plan"), "")
    assert NAME.encode() in b"".join(path.read_bytes() for path in (root / "plan").rglob("*.json")) or (
        any((root / "plan").rglob("inputs-*.parquet"))
    )


def test_verify_and_rerun_need_the_same_plan_folder(private: tuple[Path, Finished], tmp_path: Path) -> None:
    root, _ = private
    base = (f"archive={root / NAME}", f"output={root / 'out'}", "weights=seeded", "keep_uri=false")
    for plan, words in ((tmp_path / "plan", "begun with another plan_dir"), (None, "needs plan_dir")):
        options = () if plan is None else (f"plan_dir={plan}",)
        done = run_job("score", *base, *options, env=ENV)
        assert done.code == 2
        assert words in done.err
        assert NAME not in done.err
    proof = run_command(
        "-m", "cxr_ray.cli", "verify", str(root / "out"), "--plan-dir", str(root / "plan"), "--json"
    )
    assert proof.code == 0, proof.out + proof.err
    assert json.loads(proof.out)["planned"] == 5


def test_a_plan_of_another_output_is_refused(private: tuple[Path, Finished], tmp_path: Path) -> None:
    root, _ = private
    done = run_job(
        "score",
        f"archive={root / NAME}",
        f"output={tmp_path / 'other'}",
        "weights=seeded",
        "keep_uri=false",
        f"plan_dir={root / 'plan'}",
        env=ENV,
    )
    assert done.code == 2
    assert "belongs to another OUTPUT" in done.err
    assert not (tmp_path / "other").exists()


def test_another_key_is_another_identity(private: tuple[Path, Finished], tmp_path: Path) -> None:
    root, _ = private
    shutil.copytree(root / "out", tmp_path / "out")
    other = job_environment(CXR_RAY_KEY="another secret of at least thirty-two bytes")
    done = run_job(
        "score",
        f"archive={root / NAME}",
        f"output={tmp_path / 'out'}",
        "weights=seeded",
        "keep_uri=false",
        f"plan_dir={root / 'plan'}",
        env=other,
    )
    assert done.code == 2
    assert "privacy.key_fingerprint" in done.err
