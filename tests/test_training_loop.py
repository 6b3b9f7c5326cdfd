"""The training loop: going on after a kill, stopping at NaN, and two workers against one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray
from torch import Tensor, nn

from cxr_ray.errors import NonfiniteLoss
from cxr_ray.nets.ensemble import class_logits
from cxr_ray.nets.path import Path as PathNet
from training.checkpoints import Checkpoints
from training.loop import Batch, LoopSettings, Row, Stage, batches, train
from training.losses.cross_entropy import weighted_cross_entropy
from training.optimiser import OptimiserSettings
from training.parallel.processes import Processes
from training.seeding import random_state

STAGES = [
    Stage(epochs=2, batch=4, drop_last=True, optimiser=OptimiserSettings(learning_rate=0.003, amsgrad=True)),
    Stage(epochs=1, batch=6, drop_last=True, optimiser=OptimiserSettings(learning_rate=0.001)),
]


class Noise:
    """A path on made features, drawn from (picture, epoch) as real copies are; class 1 is brighter."""

    name = "fold0"
    folds_before = 0

    def __init__(self, pictures: int = 13, poison: int | None = None) -> None:
        self.picture_ids: Sequence[str] = [f"picture {i}" for i in range(pictures)]
        self.model: nn.Module = PathNet(lung_gate=True).initialise(3)
        self.poison = poison
        self.steps: list[tuple[int, ...]] = []

    def batch(self, indices: NDArray[np.int64], stage: Stage, epoch: int) -> Batch:
        self.steps.append(tuple(indices.tolist()))
        rows = [random_state(1, epoch, self.picture_ids[i]).normal(i % 2, 1, (50, 9, 11)) for i in indices]
        x = torch.from_numpy(np.stack(rows).astype(np.float32))
        x[:, 49] = x[:, 49].sigmoid()
        if self.poison is not None and epoch == 1 and self.poison in indices:
            x[0, 0, 0, 0] = torch.nan
        return x, torch.from_numpy(indices % 2)

    def loss(
        self, model: nn.Module, batch: Batch, stage: Stage, across: Callable[[Tensor], Tensor], share: float
    ) -> Tensor:
        x, label = batch
        return weighted_cross_entropy(class_logits(model(x)), label, torch.ones(len(label)), batch=1) * share

    def validate(self, model: nn.Module, stage: Stage) -> Row:
        return {"val_loss": 0.5}


class Killed(Exception):
    """Stands for whatever ends a process in the middle of its work."""


def run(task: Noise, folder: Path, **changes: Any) -> list[Row]:
    settings = LoopSettings(seed=7, checkpoint_steps=2, **changes.pop("settings", {}))
    return train(
        task,
        STAGES,
        settings,
        processes=changes.pop("processes", Processes.alone()),
        checkpoints=Checkpoints(str(folder)),
        report=changes.pop("report", lambda row: None),
    )


def weights(task: Noise) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in task.model.state_dict().values()])


@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path, step: int) -> None:
    """Steps 1 and 5 lie behind a checkpoint within an epoch, 3 at an epoch's end, 7 in the second stage."""
    undisturbed = Noise()
    history = run(undisturbed, tmp_path / "a")

    killed = Noise()
    whole_batch = killed.batch

    def die(indices: NDArray[np.int64], stage: Stage, epoch: int) -> Batch:
        if len(killed.steps) == step:
            raise Killed
        return whole_batch(indices, stage, epoch)

    killed.batch = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run(killed, tmp_path / "b")
    resumed = Noise()
    again = run(resumed, tmp_path / "b")

    assert torch.equal(weights(undisturbed), weights(resumed))
    assert len(killed.steps) + len(resumed.steps) < 2 * len(undisturbed.steps)
    timeless = [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history
    ]
    assert timeless == [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in again
    ]


def test_a_finished_run_trains_nothing(tmp_path: Path) -> None:
    run(Noise(), tmp_path)
    again = Noise()
    assert len(run(again, tmp_path)) == 3
    assert again.steps == []


def test_nan_stops_the_member_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    task = Noise(poison=12)
    with pytest.raises(NonfiniteLoss, match="fold0 met a loss of nan in epoch"):
        run(task, tmp_path)
    kept = Checkpoints(str(tmp_path)).latest()
    assert kept is not None
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in kept.tensors.values())


def test_history_has_one_row_per_epoch_over_all_stages(tmp_path: Path) -> None:
    seen: list[Row] = []
    history = run(Noise(), tmp_path, report=seen.append)
    assert history == seen
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert [row["step"] for row in history] == [3, 6, 8]
    assert all(row["val_loss"] == 0.5 for row in history)


def test_every_epoch_has_an_order_of_its_own() -> None:
    task, settings = Noise(), LoopSettings(seed=7)
    first, second = (np.concatenate(list(batches(task, Stage(batch=5), settings, n))) for n in (0, 1))
    assert sorted(first) == sorted(second) == list(range(13))
    assert list(first) != list(second)
    still = np.concatenate(list(batches(task, Stage(batch=5, shuffle=False), settings, 1)))
    assert list(still) == list(range(13))


STEPS = 20


def learn(processes: Processes, folder: Path) -> dict[str, Tensor]:
    """The loss of each step, the gradient of the first one, and the weights at the end; every epoch is one step."""
    task, gradients = Noise(pictures=5), []

    def keep_gradient(row: Row) -> None:
        if row["epoch"] == 1:
            gradients.append(
                torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])
            )

    history = train(
        task,
        [Stage(epochs=STEPS, batch=5, optimiser=OptimiserSettings(learning_rate=0.001))],
        LoopSettings(seed=7, batch_norm="sync"),
        processes=processes,
        checkpoints=Checkpoints(str(folder)),
        report=keep_gradient,
    )
    losses = torch.tensor([row["train_loss"] for row in history], dtype=torch.float64)
    return {"losses": losses, "gradient": gradients[0].clone(), "weights": weights(task).clone()}


def join_group(rank: int, folder: str) -> dict[str, Tensor]:
    """Learn as one of two gloo workers."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    try:
        return learn(Processes.from_environment(), Path(folder, "checkpoints"))
    finally:
        dist.destroy_process_group()


def second_worker(_: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.save(join_group(1, folder), f"{folder}/second.pt")


def test_two_workers_learn_what_one_learns(tmp_path: Path) -> None:
    """Shares of three and two pictures, batch statistics over both; the first worker is this process."""
    child = mp.spawn(second_worker, args=(str(tmp_path),), nprocs=1, join=False)
    one = learn(Processes.alone(), tmp_path / "one")  # while the child imports torch
    first = join_group(0, str(tmp_path))
    while not child.join():
        continue
    second = torch.load(tmp_path / "second.pt", weights_only=True)
    assert len(first["losses"]) == STEPS
    assert torch.equal(first["weights"], second["weights"])
    for two in (first, second):
        off = (two["gradient"] - one["gradient"]).norm() / one["gradient"].norm()
        assert float(off) < 1e-5
        assert float((two["losses"] / one["losses"] - 1).abs().max()) < 1e-4
    assert one["losses"][-1] < one["losses"][0]
