"""``ray job submit`` against a local head: archive, weights and output on S3, nothing shared by disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from s3_server import S3Server
from training_run import make_material

from cxr_ray.archives.storage import open_storage
from cxr_ray.weights import save_bundle, seeded_bundle
from end_to_end.commands import ROOT, by_content, job_environment, read_table

SCRIPTS = Path(sys.executable).parent
AGENT_SECONDS = 60


@dataclass(frozen=True)
class Head:
    """A running head node."""

    address: str
    env: dict[str, str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head node on free loopback ports, with two logical CPUs, ended by its own process group."""
    # Ray keeps sockets in its temp dir, and their path may be at most 107 bytes long.
    folder = Path(f"/tmp/ray-test-{os.getpid()}")
    dashboard = free_port()
    env = job_environment(RAY_AUTH_MODE="disabled", PATH=f"{SCRIPTS}:{os.environ['PATH']}")
    env.pop("PYTHONPATH")  # the job must find its code in the uploaded working directory
    log = open(tmp_path_factory.mktemp("head") / "head.log", "w")  # noqa: SIM115 - lives as long as the head
    process = subprocess.Popen(
        [
            str(SCRIPTS / "ray"), "start", "--head", "--block", f"--port={free_port()}", "--num-cpus=2",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            # Its own: where another cluster of this machine has the usual port, the node takes no jobs.
            f"--dashboard-agent-listen-port={free_port()}",
            "--object-store-memory=500000000", f"--temp-dir={folder}",
        ],
        env=env, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, Path(log.name).read_text()[-2000:]
                time.sleep(0.5)
        yield Head(address, env)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=5)  # a head drains for up to 30 s; nothing here is worth draining
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as a user would submit it."""
    folder = tmp_path_factory.mktemp("submitted") / "project"
    folder.mkdir()
    for name in ("cxr_ray", "training", "jobs", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def submit(
    head: Head, workdir: Path, *options: str, job: str = "jobs/score.py"
) -> subprocess.CompletedProcess[str]:
    command = ["job", "submit", "--address", head.address, "--working-dir", str(workdir)]
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        done = subprocess.run(
            [str(SCRIPTS / "ray"), *command, "--", "python", job, *options],
            env=head.env,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        # The head answers before its node does; on a busy machine long before.
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


def test_submitted_job_scores_from_s3_to_s3(
    head: Head, workdir: Path, films: Path, scored_films: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    bucket = s3_server.make_bucket()
    fs = s3_server.filesystem()
    for path in films.iterdir():
        fs.pipe_file(f"{bucket}/films/{path.name}", path.read_bytes())
    save_bundle(seeded_bundle(0), f"s3://{bucket}/bundle", **s3_server.storage_options)
    settings = "{" + ", ".join(f"{k}: '{v}'" for k, v in s3_server.storage_options.items()) + "}"
    options = [
        f"archive=s3://{bucket}/films",
        f"output=s3://{bucket}/out",
        f"weights=s3://{bucket}/bundle",
        *(f"{name}_options={settings}" for name in ("archive", "output", "weights")),
    ]
    done = submit(head, workdir, *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    summary = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"output"'))
    assert (summary["planned"], summary["scored"]) == (15, 12)
    storage = open_storage(f"s3://{bucket}/out", s3_server.storage_options)
    table = read_table(f"{bucket}/out/scores", filesystem=storage.fs)
    assert by_content(table) == by_content(read_table(scored_films / "scores"))

    # A refusal passes through as a failed job, and its sentence is in the job's log.
    refused = submit(head, workdir, *options, "compute_batch=3")
    assert refused.returncode != 0
    assert "score.compute_batch" in refused.stdout + refused.stderr


def test_a_submitted_training_finds_its_code_in_the_workers_too(
    head: Head, workdir: Path, tmp_path: Path
) -> None:
    manifest, shards = make_material(tmp_path / "material", 8)
    stage = "{rows: 60, columns: 68, epochs: 1, batch: 2, optimiser: {learning_rate: 0.0005}}"
    done = submit(
        head, workdir,
        "task=segmentation", f"shards={shards}", f"manifest.path={manifest}", f"output={tmp_path / 'out'}",
        "manifest.manifest_ids=pseudonyms", "recipe.segmentation.styles=[v7]",
        f"recipe.segmentation.stages=[{stage}]", "execution.device=cpu",
        job="jobs/train.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert (tmp_path / "out" / "members" / "v7" / "weights.safetensors").exists()


def test_output_that_the_nodes_cannot_reach_is_refused(head: Head, workdir: Path, films: Path) -> None:
    """The archive of a driver's own disk is visible here, an S3 endpoint that nobody serves is not."""
    dead = f"{{endpoint_url: 'http://127.0.0.1:{free_port()}', key: k, secret: s}}"
    start = time.monotonic()
    done = submit(
        head,
        workdir,
        f"archive={films}",
        "output=s3://nowhere/out",
        "weights=seeded",
        f"output_options={dead}",
    )
    assert done.returncode != 0
    assert time.monotonic() - start < 90
    assert "error: " in done.stdout + done.stderr
