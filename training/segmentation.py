"""Module 1 as a task of the training loop: lung pairs, the affine warp, the weighted Tanimoto loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxr_ray.nets.segmenter import Segmenter
from training.augmentation.segmentation_warp import (
    SegmentationWarpSettings,
    draw_segmentation_warp,
    warp_pair,
)
from training.loop import Batch, LoopSettings, Row, Stage
from training.losses.tanimoto import box_size, contour_weights, tanimoto_coefficient, tanimoto_loss
from training.metrics.segmentation import lung_metrics
from training.seeding import random_state


@dataclass(kw_only=True)
class SegmentationRecipe:
    """How Module 1 is trained."""

    styles: list[str] = field(default_factory=lambda: ["v7", "jms"])
    """Mask styles to train, one segmenter each; styles are never mixed."""
    stages: list[Stage] = field(default_factory=lambda: [Stage()])
    """Stretches of training, one after the other."""
    warp: SegmentationWarpSettings = field(default_factory=SegmentationWarpSettings)
    """Geometric augmentation; every training picture is warped, in every epoch anew."""
    start_seed: int = 5
    """Seed of the starting weights."""
    validation_batch: int = 4
    """Pictures of one validation step."""


@dataclass(frozen=True)
class Pairs:
    """Frames with their lungs, at 300 x 340."""

    picture_ids: Sequence[str]
    """The manifest's id of each."""
    pixels_NHW: NDArray[np.uint8]
    """Equalised frames."""
    lungs_NHW: NDArray[np.uint8]
    """1 inside the lungs, else 0."""

    def at(self, rows: int, columns: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Frames (area average) and lungs (nearest) at another size; the same arrays at their own."""
        if self.pixels_NHW.shape[1:] == (rows, columns) or not len(self.pixels_NHW):
            return self.pixels_NHW, self.lungs_NHW
        size = (columns, rows)
        frames = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in self.pixels_NHW]
        lungs = [cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT) for mask in self.lungs_NHW]
        return np.stack(frames).astype(np.uint8), np.stack(lungs).astype(np.uint8)


class SegmentationTask:
    """One mask style. The name of the style is the name of the member."""

    def __init__(
        self,
        name: str,
        recipe: SegmentationRecipe,
        settings: LoopSettings,
        *,
        training: Pairs,
        validation: Pairs,
    ) -> None:
        self.name = name
        self.recipe = recipe
        self.seed = settings.seed
        self.training = training
        self.validation = validation
        self.picture_ids = training.picture_ids
        self.folds_before = 0
        self.model: nn.Module = Segmenter().initialise(recipe.start_seed)
        self._sized: dict[tuple[str, int, int], tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    def batch(self, indices: NDArray[np.int64], stage: Stage, epoch: int) -> Batch:
        """Frames ``[B, H, W]`` 0..1 and targets ``[B, 2, H, W]`` 0/1 (lung, non-lung), float32."""
        frames, lungs = self._at("training", stage)
        pairs = [
            warp_pair(
                draw_segmentation_warp(
                    random_state(self.seed, "warp", epoch, self.picture_ids[i]),
                    self.recipe.warp,
                    rows=stage.rows,
                    columns=stage.columns,
                ),
                frames[i],
                lungs[i] * np.uint8(255),
            )
            for i in indices
        ]
        images = torch.from_numpy(np.stack([image for image, _, _ in pairs]))
        targets = torch.from_numpy(np.stack([np.stack((inside, outside)) for _, inside, outside in pairs]))
        return images, targets

    def loss(
        self, model: nn.Module, batch: Batch, stage: Stage, across: Callable[[Tensor], Tensor], share: float
    ) -> Tensor:
        """Weighted Tanimoto loss with complement over the whole batch (REFERENCE_SPEC section 9)."""
        images_BHW, target_B2HW = batch
        # The box belongs to the size of the frames (TRAINING_SPEC C), so a smaller stage has a smaller one.
        box = box_size(min(images_BHW.shape[-2:]))
        weight = contour_weights(target_B2HW, box=box, across=across)
        probability = model(images_BHW).float().softmax(dim=1)
        return tanimoto_loss(probability, target_B2HW, weight, across=across)

    def validate(self, model: nn.Module, stage: Stage) -> Row:
        """Mean lung Dice at 0.5 over the validation pictures, and the coefficient that the original monitors."""
        if not len(self.validation.picture_ids):
            return {}
        lungs, coefficients = self.predict(model, stage)
        _, truth = self._at("validation", stage)
        dice = lung_metrics(lungs, truth.astype(bool))["dice"]
        return {"val_dice": float(np.mean(dice)), "val_tanimoto": float(np.mean(coefficients))}

    def predict(self, model: nn.Module, stage: Stage) -> tuple[NDArray[np.bool_], list[float]]:
        """Lungs ``[N, H, W]`` of the validation pictures, and the Tanimoto coefficient of each batch."""
        frames, truth = self._at("validation", stage)
        device = next(model.parameters()).device
        lungs, coefficients = [], []
        for first in range(0, len(frames), self.recipe.validation_batch):
            part = slice(first, first + self.recipe.validation_batch)
            images = torch.from_numpy(frames[part].astype(np.float32) / np.float32(255)).to(device)
            probability = model(images).float().softmax(dim=1).cpu()
            inside = torch.from_numpy(truth[part].astype(np.float32))
            coefficients.append(
                float(tanimoto_coefficient(probability, torch.stack((inside, 1 - inside), 1)))
            )
            lungs.append((probability[:, 0] > 0.5).numpy())
        return np.concatenate(lungs), coefficients

    def _at(self, part: str, stage: Stage) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        key = (part, stage.rows, stage.columns)
        if key not in self._sized:
            pairs = self.training if part == "training" else self.validation
            self._sized[key] = pairs.at(stage.rows, stage.columns)
        return self._sized[key]
