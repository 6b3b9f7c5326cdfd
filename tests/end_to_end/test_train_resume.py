"""SIGKILL a training's worker, then its driver and all else, mid-epoch: the same command ends with the same weights."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from s3_server import S3Server
from training_run import make_material

from end_to_end.chaos import nightly
from end_to_end.commands import run_command, started, wait_until

pytestmark = pytest.mark.timeout(1800)

PATIENCE = 600.0
"""Seconds that one phase may take where other programs use the same two cores; a quiet machine needs a twentieth."""
PICTURES = 14
EPOCH = 6
"""Steps of an epoch: twelve pictures are for training, two to a batch."""
EPOCHS = 2
MEMBER = "members/v7"
SETTINGS = (
    "manifest.manifest_ids=pseudonyms",
    "recipe.segmentation.styles=[v7]",
    "recipe.loop.batch_norm=sync",
    "recipe.loop.checkpoint_steps=1",
    "execution.device=cpu",
)

Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """``jobs/train.py`` for Module 1 at a fifth of its size, into an output."""
    manifest, shards = make_material(tmp_path_factory.mktemp("material"), PICTURES)

    def build(output: Path | str, launcher: str, *options: str, rate: str = "0.0005") -> list[str]:
        stage = f"{{rows: 60, columns: 68, epochs: {EPOCHS}, batch: 2, optimiser: {{learning_rate: {rate}}}}}"
        data = (f"shards={shards}", f"manifest.path={manifest}", f"recipe.segmentation.stages=[{stage}]")
        run = (f"output={output}", f"execution.launcher={launcher}")
        return ["jobs/train.py", "task=segmentation", *data, *SETTINGS, *run, *options]

    return build


@pytest.fixture(scope="module")
def undisturbed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the member leaves when nothing happens to it, without Ray."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    done = run_command(*command(output, "local"), timeout=PATIENCE)
    assert done.code == 0, done.err[-2000:]
    assert done.summary["members"]["v7"]["step"] == EPOCHS * EPOCH
    return output / MEMBER


def numbers(names: list[str]) -> list[int]:
    """Steps of the checkpoints among these paths."""
    found = (re.search(r"/checkpoint-(\d+)-[0-9a-f]+\.safetensors$", name) for name in names)
    return [int(match[1]) for match in found if match]


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray Train's workers below a driver."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_killed_worker_and_a_killed_driver_change_no_bit(
    command: Command, undisturbed: Path, s3_server: S3Server
) -> None:
    bucket, fs = s3_server.make_bucket(), s3_server.filesystem()
    options = [f"output_options.{name}={value}" for name, value in s3_server.storage_options.items()]
    train = command(f"s3://{bucket}/out", "ray", *options)

    def newest() -> int:
        return max(numbers(fs.find(f"{bucket}/out/{MEMBER}/checkpoints")), default=0)

    with started(train) as process:
        wait_until(lambda: newest() >= 2, process, PATIENCE)
        (worker,) = workers(process)
        worker.kill()
        at_kill = newest()
        assert at_kill % EPOCH, "not in the middle of an epoch"
        wait_until(lambda: newest() >= EPOCH + 2, process, PATIENCE)
        assert worker not in workers(process)
    assert max(EPOCH, at_kill) < newest() < EPOCHS * EPOCH
    done = run_command(*train, timeout=PATIENCE)
    assert done.code == 0, done.err[-2000:]

    weights = fs.cat_file(f"{bucket}/out/{MEMBER}/weights.safetensors")
    assert weights == (undisturbed / "weights.safetensors").read_bytes()
    saved = numbers([entry["path"] for entry in s3_server.requests("PUT") if f"/{bucket}/" in entry["path"]])
    assert set(saved) == set(range(1, EPOCHS * EPOCH + 1))
    assert saved == sorted(saved), "a start went back behind the last checkpoint"
    left = fs.find(f"{bucket}/out")
    assert not [name for name in left if "/ray_train/" in name]
    everything = "".join(fs.cat_file(name).decode("latin-1") for name in left)
    assert s3_server.storage_options["secret"] not in everything


@pytest.mark.skipif(
    not nightly(), reason="part of the nightly form; test_training_loop.py has it without Ray"
)
def test_two_workers_learn_what_one_learns(command: Command, undisturbed: Path, tmp_path: Path) -> None:
    with started(command(tmp_path / "out", "ray", "execution.workers=2")) as process:
        wait_until(lambda: len(workers(process)) == 2, process, PATIENCE)
        assert process.wait(timeout=PATIENCE) == 0
    ours, alone = (
        pq.read_table(folder / "history.parquet")["train_loss"].to_pylist()
        for folder in (tmp_path / "out" / MEMBER, undisturbed)
    )
    assert len(ours) == EPOCHS
    assert ours == pytest.approx(alone, rel=1e-4)


def test_a_nan_step_stops_the_fold_and_keeps_the_last_good_checkpoint(
    command: Command, tmp_path: Path
) -> None:
    done = run_command(*command(tmp_path / "out", "local", rate="1e25"), timeout=PATIENCE)
    assert done.code == 1
    said = done.err.strip().splitlines()[-1]
    assert re.match(r"error: v7 met a (loss|gradient) .* in epoch 1, step \d; its last good checkpoint", said)
    folder = tmp_path / "out" / MEMBER
    assert not list(folder.glob("weights*")) + list(folder.glob("done*"))
    paths = [str(path) for path in (folder / "checkpoints").glob("*.safetensors")]
    assert max(numbers(paths)) == int(said.split("step ")[1][0]) - 1
    for path in paths:
        assert all(np.isfinite(tensor).all() for tensor in safetensors.numpy.load_file(path).values())
