"""A whole small training for tests: made films in, options composed as ``jobs/train.py`` composes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from end_to_end.commands import write_films
from hydra import compose, initialize_config_dir
from training_material import make_shards, write_manifest

from cxr_ray.pipeline.launch import open_mapping
from training.options import TrainOptions, train_options

CONF = Path(__file__).parents[1] / "conf"
SOURCES = ("north", "north", "east", "west")
SMALL = (
    "recipe.segmentation.styles=[v7]",
    "recipe.segmentation.stages=[{rows: 60, columns: 68, epochs: 2, batch: 4, optimiser: {learning_rate: 0.005}}]",
    "recipe.classification.folds.count=2",
    "recipe.classification.calibration_share=0.3",
    "recipe.classification.copies.kinds=[plain,removed]",
    "recipe.classification.copy_shares=[]",
    "recipe.classification.stages=[{epochs: 3, batch: 3, drop_last: true, silence: 0.5, "
    "optimiser: {learning_rate: 0.005}}]",
    "recipe.loop.checkpoint_steps=2",
    "execution.launcher=local",
    "execution.at_once=1",
    "execution.device=cpu",
)


def make_material(folder: Path, pictures: int = 20) -> tuple[Path, str]:
    """Films with lung masks, labels, patients and sources; returns the manifest and its shards.

    Two pictures a patient; every fifth patient is of split ``val``.
    """
    rows: list[dict[str, Any]] = []
    (folder / "masks").mkdir(parents=True)
    for number, film in enumerate(write_films(folder / "films", pictures)):
        mask_HW = np.zeros((400, 340), np.uint8)
        mask_HW[80:320, 50:150] = mask_HW[80:320, 190:290] = 255
        mask = folder / "masks" / f"{film.stem}.png"
        cv2.imwrite(str(mask), mask_HW, [cv2.IMWRITE_PNG_BILEVEL, 1])
        patient = number // 2
        if patient % 2:
            _roughen(film, number)
        rows.append(
            {
                "id": film.stem,
                "file": f"films/{film.name}",
                "mask": f"masks/{mask.name}",
                "mask_style": "v7",
                "patient_id": f"p{patient}",
                "label": "covid" if patient % 2 else "noncovid",
                "source": SOURCES[patient % 4],
                "split": "val" if patient % 5 == 4 else "train",
                "licence": "CC BY 4.0",
            }
        )
    manifest = write_manifest(folder / "manifest.csv", rows)
    return manifest, make_shards(manifest, folder / "shards")


def _roughen(film: Path, seed: int) -> None:
    """Coarse noise inside the lungs: a class that a network can learn in a few steps."""
    pixels = cv2.imread(str(film), cv2.IMREAD_GRAYSCALE).astype(np.float64)
    noise = np.random.RandomState(seed).normal(0, 60, (pixels.shape[0] // 4, pixels.shape[1] // 4))
    pixels += cv2.resize(noise, pixels.shape[::-1], interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(film), np.clip(pixels, 0, 255).astype(np.uint8))


def options(task: str, manifest: Path, shards: str, output: Path, *overrides: str) -> TrainOptions:
    """What ``python jobs/train.py task=... `` with these overrides runs with."""
    given = [
        f"task={task}",
        f"shards={shards}",
        f"manifest.path={manifest}",
        "manifest.manifest_ids=pseudonyms",
        "manifest.label_map={covid: Covid+, noncovid: Covid-}",
        f"output={output}",
        f"execution.work_dir={output.parent / 'work'}",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return train_options(
            compose("train", overrides=[open_mapping(one) for one in (*given, *SMALL, *overrides)])
        )
