"""The training loop of one member (a fold's path, or a segmenter): plain torch, one process or many, resumable.

A *member* runs through one or more *stages* (frame size, epochs, batch, optimiser). Every draw is tied to (seed,
epoch, picture), so nothing but weights, optimiser and counters has to be kept to go on after a kill, in the middle of
an epoch too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxr_ray.errors import NonfiniteLoss, TrainingDataError
from cxr_ray.nets.dropout import key_dropout
from training.checkpoints import Checkpoints
from training.optimiser import KerasAdam, OptimiserSettings
from training.parallel.processes import Processes
from training.parallel.sync_batch_norm import use_sync_batch_norm
from training.seeding import derive, epoch_order

Row = dict[str, float]
Batch = tuple[Tensor, ...]


@dataclass(kw_only=True)
class Stage:
    """A stretch of training under one set of settings."""

    epochs: int = 100
    """Passes over the training pictures."""
    batch: int = 12
    """Pictures of one step, over all workers."""
    rows: int = 300
    """Height of the frames (segmentation only: a smaller frame is quicker and sees a wider field)."""
    columns: int = 340
    """Width of the frames (segmentation only)."""
    drop_last: bool = False
    """Leave out an incomplete last batch."""
    shuffle: bool = True
    """Draw a new order for each epoch."""
    silence: float = 0.0
    """Weight of a penalty on scores that follow the class without lungs (classification only): each picture of a batch
    is then there with its lungs removed too, at twice the cost; 0: off."""
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    """Starts afresh with each stage."""


@dataclass(kw_only=True)
class LoopSettings:
    """What the loop itself can be told."""

    seed: int = 1
    """Seed of the order of pictures, augmentation and dropout (copies, folds and starting weights have their own)."""
    batch_norm: str = "local"
    """``local``: each worker normalises its own share of a batch; ``sync``: all shares together."""
    batch_norm_momentum: float = 0.01
    """Share of a batch in the running statistics (0.01 is Keras' 0.99)."""
    checkpoint_steps: int = 0
    """Steps between two checkpoints within an epoch; 0: only at its end."""
    validate_every: int = 1
    """Epochs between two looks at the validation pictures; the last epoch always has one."""
    precision: str = "float32"
    """``float32``, or ``bfloat16`` for the forward pass on a GPU."""


class Task(Protocol):
    """What the loop needs to know of a module and its data."""

    name: str
    """Name of the member: ``fold0``, ``v7``, ..."""
    model: nn.Module
    folds_before: int
    """Members whose steps Adam's bias correction counts as made before; 0 but for the original's recipe."""
    picture_ids: Sequence[str]
    """The manifest's id of each training picture: what its draws depend on, wherever the files lie."""

    def batch(self, indices: NDArray[np.int64], stage: Stage, epoch: int) -> Batch:
        """Augmented tensors of these training pictures, on the CPU."""

    def loss(
        self, model: nn.Module, batch: Batch, stage: Stage, across: Callable[[Tensor], Tensor], share: float
    ) -> Tensor:
        """Loss of this worker's pictures. ``across`` sums over the workers; ``share`` is workers / pictures of the
        whole batch, so that a sum times ``share``, averaged over the workers, is the mean over the batch."""

    def validate(self, model: nn.Module, stage: Stage) -> Row:
        """Metrics on the validation pictures, in eval mode and without gradients."""


@dataclass
class _Progress:
    """Where a member stands; everything but tensors of a checkpoint."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[Row] = field(default_factory=list)


def train(
    task: Task,
    stages: Sequence[Stage],
    settings: LoopSettings,
    *,
    processes: Processes,
    checkpoints: Checkpoints,
    report: Callable[[Row], None],
) -> list[Row]:
    """Train ``task.model`` in place, from the newest checkpoint if there is one; returns one row per epoch.

    Only rank 0 writes checkpoints; ``report`` is called on every rank at the end of each epoch.

    Raises:
        NonfiniteLoss: a step gave NaN or infinity. The last good checkpoint stays.
        TrainingDataError: fewer pictures than one batch.
    """
    for stage in stages:
        if not steps_per_epoch(len(task.picture_ids), stage):
            raise TrainingDataError(
                f"{task.name} has {len(task.picture_ids)} training pictures, fewer than a batch of {stage.batch}; give "
                "more pictures, a smaller batch or drop_last=false"
            )
    model = task.model.to(processes.device)
    if processes.device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _set_batch_norm(model, settings, processes)
    progress, optimiser = _restore(task, stages, processes, checkpoints)
    while progress.stage < len(stages):
        stage = stages[progress.stage]
        if optimiser is None:
            optimiser = _optimiser(task, stage)
        while progress.epoch < stage.epochs:
            _epoch(task, model, stage, settings, progress, optimiser, processes, checkpoints)
            last = progress.epoch + 1 == stage.epochs
            row = _finish_epoch(task, model, stage, settings, progress, optimiser, processes, last)
            _save(checkpoints, model, optimiser, progress, processes)
            report(row)
        progress.stage, progress.epoch, optimiser = progress.stage + 1, 0, None
    return progress.history


def steps_per_epoch(pictures: int, stage: Stage) -> int:
    """Batches of one epoch."""
    return pictures // stage.batch if stage.drop_last else -(-pictures // stage.batch)


def batches(task: Task, stage: Stage, settings: LoopSettings, number: int) -> Iterator[NDArray[np.int64]]:
    """The batches of one epoch (``number`` counts over all stages): indices of training pictures."""
    pictures = len(task.picture_ids)
    order = epoch_order(pictures, settings.seed, task.name, "order", number, shuffle=stage.shuffle)
    for step in range(steps_per_epoch(pictures, stage)):
        yield order[step * stage.batch : (step + 1) * stage.batch]


def _epoch(
    task: Task,
    model: nn.Module,
    stage: Stage,
    settings: LoopSettings,
    progress: _Progress,
    optimiser: KerasAdam,
    processes: Processes,
    checkpoints: Checkpoints,
) -> None:
    """Steps of one epoch that are still to do."""
    number = len(progress.history)
    sync = settings.batch_norm == "sync"
    model.train()
    for step, indices in enumerate(batches(task, stage, settings, number)):
        if step < progress.step or len(indices) < processes.size:
            continue
        started = time.monotonic()
        share = np.array_split(indices, processes.size)[processes.rank]
        batch = tuple(tensor.to(processes.device) for tensor in task.batch(share, stage, number))
        key_dropout(model, _dropout_keys(task, settings, number, share, len(batch[0])))
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss = task.loss(
                model,
                batch,
                stage,
                processes.sum if sync else _alone,
                processes.size / len(indices) if sync else 1 / len(share),
            )
        mean_loss = float(processes.sum(loss.detach())) / processes.size
        if not np.isfinite(mean_loss):
            raise NonfiniteLoss(_stopped(task, progress, f"a loss of {mean_loss}"))
        optimiser.zero_grad()
        loss.backward()
        # Data parallel by hand: weights start equal (same seed or checkpoint) and every rank takes the same step.
        processes.mean_gradients(model)
        optimiser.step()
        if not optimiser.finite:
            raise NonfiniteLoss(_stopped(task, progress, "a gradient with NaN or infinite numbers"))
        progress.step, progress.total_steps = step + 1, progress.total_steps + 1
        progress.loss_sum += mean_loss
        progress.seconds += time.monotonic() - started
        if settings.checkpoint_steps and progress.step % settings.checkpoint_steps == 0:
            _save(checkpoints, model, optimiser, progress, processes)


def _dropout_keys(
    task: Task, settings: LoopSettings, number: int, share: NDArray[np.int64], rows: int
) -> list[int]:
    """One key per row of a batch; rows beyond the pictures are the same pictures again."""
    ids = [task.picture_ids[i] for i in share]
    keys = [derive(settings.seed, task.name, "dropout", number, i) for i in ids]
    for again in range(1, rows // len(ids)):
        keys += [derive(settings.seed, task.name, "dropout", number, i, again) for i in ids]
    return keys


def _finish_epoch(
    task: Task,
    model: nn.Module,
    stage: Stage,
    settings: LoopSettings,
    progress: _Progress,
    optimiser: KerasAdam,
    processes: Processes,
    last: bool,
) -> Row:
    """Validate, add a row to the history and move on to the next epoch."""
    processes.mean_buffers(model)
    number = len(progress.history) + 1
    pictures = progress.step * stage.batch
    row: Row = {
        "epoch": number,
        "step": progress.total_steps,
        "learning_rate": optimiser.learning_rate,
        "train_loss": progress.loss_sum / max(progress.step, 1),
        "seconds": progress.seconds,
        "images_per_second": pictures / progress.seconds if progress.seconds else 0.0,
    }
    if (last or number % settings.validate_every == 0) and processes.rank == 0:
        model.eval()
        with torch.inference_mode():
            row |= task.validate(model, stage)
    progress.history.append(row)
    progress.epoch, progress.step, progress.loss_sum, progress.seconds = progress.epoch + 1, 0, 0.0, 0.0
    return row


def _optimiser(task: Task, stage: Stage) -> KerasAdam:
    steps = stage.epochs * steps_per_epoch(len(task.picture_ids), stage)
    return KerasAdam(task.model.parameters(), stage.optimiser, steps, steps_before=task.folds_before * steps)


def _save(
    checkpoints: Checkpoints,
    model: nn.Module,
    optimiser: KerasAdam,
    progress: _Progress,
    processes: Processes,
) -> None:
    # Running statistics of batch norm drift apart between the workers until the epoch's end.
    processes.mean_buffers(model)
    if processes.rank == 0:
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in optimiser.state().items()}
        checkpoints.save(progress.total_steps, tensors, dict(vars(progress)))
    processes.barrier()


def _restore(
    task: Task, stages: Sequence[Stage], processes: Processes, checkpoints: Checkpoints
) -> tuple[_Progress, KerasAdam | None]:
    """Counters and optimiser of the newest checkpoint, its weights in ``task.model``; or a fresh start."""
    checkpoint = checkpoints.latest_for_all(processes)
    if checkpoint is None:
        return _Progress(), None
    facts: dict[str, Any] = dict(checkpoint.facts)
    progress = _Progress(**facts)
    tensors = checkpoint.tensors
    task.model.load_state_dict(_below(tensors, "model."))
    stage = stages[progress.stage]
    optimiser = _optimiser(task, stage)
    optimiser.load(_below(tensors, "optimiser."))
    if progress.epoch == stage.epochs:
        return _Progress(**{**facts, "stage": progress.stage + 1, "epoch": 0}), None
    return progress, optimiser


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _set_batch_norm(model: nn.Module, settings: LoopSettings, processes: Processes) -> None:
    from cxr_ray.nets.layers import BatchNorm

    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.momentum = settings.batch_norm_momentum
    if settings.batch_norm == "sync":  # with one process too, so that both do the same arithmetic
        use_sync_batch_norm(model, processes)


def _alone(sums: Tensor) -> Tensor:
    return sums


def _stopped(task: Task, progress: _Progress, what: str) -> str:
    return (
        f"{task.name} met {what} in epoch {len(progress.history) + 1}, step {progress.step + 1}; its last good "
        "checkpoint is kept: lower the learning rate or set a gradient clip, then train into a new output"
    )
