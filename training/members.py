"""One member of a run from data to weights: what every worker process executes, with Ray or without."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import cv2
import pyarrow as pa
import safetensors.torch
import torch

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import TrainingDataError
from training.checkpoints import Checkpoints
from training.classification import PathTask
from training.curves import Curves
from training.evidence import filled, put, put_table, write_out_of_fold, write_validation
from training.loop import Row, train
from training.material import read_material
from training.memory import keep_freed_memory
from training.options import TrainOptions, train_options
from training.parallel.processes import Processes
from training.segmentation import SegmentationTask
from training.tasks import classification_task, segmentation_task

DONE = "done.json"
WEIGHTS = "weights.safetensors"


def member_names(options: TrainOptions) -> list[str]:
    """Members of the run that are to be trained now. Raises TrainingDataError where ``only`` names another."""
    if options.task == "segmentation":
        names = list(options.recipe.segmentation.styles)
    else:
        names = [f"fold{number}" for number in range(options.recipe.classification.folds.count)]
    odd = sorted(set(options.execution.only) - set(names))
    if odd:
        raise TrainingDataError(
            f"execution.only names {', '.join(odd)}, but the members are {', '.join(names)}"
        )
    return [name for name in names if not options.execution.only or name in options.execution.only]


def run_member(settings: dict[str, Any], processes: Processes, report: Callable[[Row], None]) -> None:
    """Train one member, or go on with it, and write its results; a finished one is left as it is.

    Args:
        settings: ``{"name": member, "options": as_plain(options)}``.
        report: called on every rank at the end of every epoch.
    """
    options, name = train_options(settings["options"]), settings["name"]
    torch.set_num_threads(options.execution.threads)
    cv2.setNumThreads(options.execution.threads)
    keep_freed_memory()
    # float32 means IEEE float32, and the same GPU gives the same result twice.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    output = open_storage(f"{options.output}/members/{name}", options.output_options)
    if output.fs.exists(f"{output.path}/{DONE}"):
        return
    material = read_material(options)
    checkpoints = Checkpoints(f"{options.output}/members/{name}/checkpoints", options.output_options)
    curves = _curves(output, checkpoints) if processes.rank == 0 else None

    def finish_epoch(row: Row) -> None:
        if curves is not None:
            curves.add(row)
        report(row)

    task: SegmentationTask | PathTask
    if options.task == "segmentation":
        task, stages = segmentation_task(name, options, material), options.recipe.segmentation.stages
    else:
        task = classification_task(name, options, material, processes)
        stages = options.recipe.classification.stages
    history = train(
        task,
        stages,
        options.recipe.loop,
        processes=processes,
        checkpoints=checkpoints,
        report=finish_epoch,
    )
    if curves is not None:
        curves.close()
    if processes.rank == 0:
        if isinstance(task, SegmentationTask):
            write_validation(output, task, material, options)
        else:
            write_out_of_fold(output, task, material, options)
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in task.model.state_dict().items()}
        put(output, WEIGHTS, safetensors.torch.save(state))
        put_table(output, "history.parquet", pa.Table.from_pylist(filled(history)))
        put(output, DONE, json.dumps({"epochs": len(history), **history[-1]}).encode())
    processes.barrier()


def _curves(output: Storage, checkpoints: Checkpoints) -> Curves:
    checkpoint = checkpoints.latest()
    return Curves(output, epochs_done=len(checkpoint.facts["history"]) if checkpoint else 0)
