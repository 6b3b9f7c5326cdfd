"""Bad input to the commands: exit code 2, one sentence that says what to do, nothing half created."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from end_to_end.commands import Finished, run_job, write_films


def assert_refused(done: Finished, *words: str) -> None:
    assert done.code == 2, (done.out, done.err)
    lines = [line for line in done.err.strip().splitlines() if line]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_films(tmp_path / "films", 1)
    return tmp_path / "films"


@pytest.mark.parametrize("job", ["score", "ingest"])
def test_missing_archive(job: str, tmp_path: Path) -> None:
    done = run_job(job, f"archive={tmp_path}/nowhere", f"output={tmp_path}/out", *_weights(job))
    assert_refused(done, "nowhere")
    assert not (tmp_path / "out").exists()


def test_unknown_option(archive: Path, tmp_path: Path) -> None:
    done = run_job("score", f"archive={archive}", f"output={tmp_path}/out", "colour=blue", "weights=seeded")
    assert_refused(done, "colour")
    assert not (tmp_path / "out").exists()


def test_no_archive_option(tmp_path: Path) -> None:
    assert_refused(run_job("score", f"output={tmp_path}/out"), "archive")


def test_wrong_type(archive: Path, tmp_path: Path) -> None:
    done = run_job("score", f"archive={archive}", f"output={tmp_path}/out", "weights=seeded", "limit=many")
    assert_refused(done, "limit")


def test_empty_archive(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "notes.csv").write_text("a,b\n")
    done = run_job("score", f"archive={tmp_path}/films", f"output={tmp_path}/out", "weights=seeded")
    assert_refused(done, "holds no images", "1 files were left out by name")
    assert not (tmp_path / "out").exists()


def test_unwritable_output(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, no folder")
    done = run_job("score", f"archive={archive}", f"output={tmp_path}/file/out", "weights=seeded")
    assert_refused(done, "OUTPUT")


def test_output_of_something_else(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    done = run_job("score", f"archive={archive}", f"output={tmp_path}/thesis", "weights=seeded")
    assert_refused(done, "not of a cxr_ray run")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_output_of_another_identity(films: Path, scored_films: Path) -> None:
    before = sorted(path.name for path in scored_films.rglob("*"))
    done = run_job("score", f"archive={films}", f"output={scored_films}", "weights=seeded", "compute_batch=3")
    assert_refused(done, "score.compute_batch")
    assert sorted(path.name for path in scored_films.rglob("*")) == before


def test_output_inside_the_archive(archive: Path) -> None:
    done = run_job("score", f"archive={archive}", f"output={archive}/out", "weights=seeded")
    assert_refused(done, "inside")
    assert not (archive / "out").exists()


def test_missing_and_damaged_bundle(archive: Path, tmp_path: Path) -> None:
    from cxr_ray.weights import save_bundle, seeded_bundle

    bundle = tmp_path / "bundle"
    options = (f"archive={archive}", f"output={tmp_path}/out", f"weights={bundle}")
    assert_refused(run_job("score", *options), "bundle")
    save_bundle(seeded_bundle(0), bundle)
    tensors = bytearray((bundle / "paths.safetensors").read_bytes())
    tensors[-1] ^= 1
    (bundle / "paths.safetensors").write_bytes(bytes(tensors))
    assert_refused(run_job("score", *options), "paths.safetensors")
    assert not (tmp_path / "out").exists()


def test_score_table_is_no_archive(scored_films: Path, tmp_path: Path) -> None:
    done = run_job("score", f"archive={scored_films}", f"output={tmp_path}/out", "weights=seeded")
    assert_refused(done, "score table")


def test_hidden_paths_without_key(archive: Path, tmp_path: Path) -> None:
    done = run_job(
        "score", f"archive={archive}", f"output={tmp_path}/out", "weights=seeded", "keep_uri=false"
    )
    assert_refused(done, "needs a key")


def test_credentials_never_show_in_a_refusal(tmp_path: Path) -> None:
    secret = "do-not-show-me"
    done = run_job(
        "score",
        "archive=s3://bucket/films",
        f"output={tmp_path}/out",
        "weights=seeded",
        f"archive_options={{endpoint_url: 'http://127.0.0.1:9', key: {secret}, secret: {secret}}}",
    )
    assert_refused(done)
    assert secret not in done.out + done.err


def _weights(job: str) -> list[str]:
    return ["weights=seeded"] if job == "score" else []


def test_identity_file_is_not_rewritten(films: Path, scored_films: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(scored_films, copy)
    record = json.loads((copy / "identity.json").read_text())
    record["document"]["score"]["threads"] = 99
    (copy / "identity.json").write_text(json.dumps(record))
    assert_refused(run_job("score", f"archive={films}", f"output={copy}", "weights=seeded"), "damaged")


@pytest.mark.parametrize("option", ["variant=loud", "mask_style=xyz"])
def test_bad_score_options_are_refused_before_anything_starts(
    option: str, archive: Path, tmp_path: Path
) -> None:
    done = run_job("score", f"archive={archive}", f"output={tmp_path}/out", "weights=seeded", option)
    assert_refused(done, option.split("=")[0])
    assert not (tmp_path / "out").exists()


def test_manifest_options_on_a_folder(archive: Path, tmp_path: Path) -> None:
    options = ("manifest.columns={uri: file}", "carry=[ward]")
    done = run_job("score", f"archive={archive}", f"output={tmp_path}/out", "weights=seeded", *options)
    assert_refused(done, "manifest")
    assert not (tmp_path / "out").exists()
