"""A tar.gz has no random access: 3,000 members are read twice in all (plan, run), after a kill once more."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
from s3_server import S3Server

from end_to_end.commands import ROOT, read_table, run_command, run_until

MEMBERS = 3000


def targz_of_noise(path: Path) -> None:
    """Small PNGs of noise, each different; they compress badly, so bytes read tell how far a pass went."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for number in range(MEMBERS):
            data = cv2.imencode(".png", rng.integers(0, 255, (48, 48), np.uint8))[1].tobytes()
            entry = tarfile.TarInfo(f"{number:05d}.png")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def test_passes_over_the_container(s3_server: S3Server, tmp_path: Path) -> None:
    targz_of_noise(tmp_path / "films.tar.gz")
    data = (tmp_path / "films.tar.gz").read_bytes()
    bucket, output = s3_server.make_bucket(), tmp_path / "out"
    s3_server.filesystem().pipe_file(f"{bucket}/films.tar.gz", data)
    command = [
        str(ROOT / "bench" / "null_scorer.py"),
        f"archive=s3://{bucket}/films.tar.gz",
        f"output={output}",
    ]
    command += [f"archive_options.{name}={value}" for name, value in s3_server.storage_options.items()]

    def passes() -> float:
        gets = s3_server.requests("GET", f"{bucket}/films.tar.gz")
        return sum(get["bytes"] for get in gets) / len(data)

    def parts() -> list[Path]:
        return sorted(output.glob("scores/*"))

    # 64 KB at the start tell the kind of container; they are not a pass.
    slack = 0.1
    s3_server.clear_log()
    assert run_command(*command).code == 0
    assert 1.9 < passes() < 2 + slack
    undisturbed = read_table(output / "scores")
    assert undisturbed.num_rows == MEMBERS

    output = tmp_path / "killed"
    command[2] = f"output={output}"
    s3_server.clear_log()
    run_until(command, reached=lambda: len(parts()) >= 3)
    assert len(parts()) < len(list((tmp_path / "out" / "scores").iterdir()))
    assert passes() < 2 + slack
    s3_server.clear_log()
    assert run_command(*command, "extend=false").code == 0
    assert passes() < 1 + slack
    assert read_table(output / "scores").equals(undisturbed)
