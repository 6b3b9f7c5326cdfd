"""Module 2 as a task of the training loop: one path on one fold, over path inputs that all folds share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxr_ray.nets.ensemble import class_logits, log_odds
from cxr_ray.nets.path import Path
from training.augmentation.mirror import mirror_features
from training.features import CopySettings, FeatureStore
from training.loop import Batch, LoopSettings, Row, Stage
from training.losses.cross_entropy import class_weights, weighted_cross_entropy
from training.losses.silence import silence_penalty
from training.metrics.classification import mixed_source_auc, roc_auc
from training.seeding import random_state
from training.splits.folds import FoldSettings


@dataclass(kw_only=True)
class ClassificationRecipe:
    """How the paths of Module 2 are trained."""

    classes: list[str] = field(default_factory=lambda: ["Covid+", "Covid-"])
    """Channels of the class map, two or more."""
    positive_class: str = "Covid+"
    """The class that ``p_covid`` and the logits speak of."""
    folds: FoldSettings = field(default_factory=FoldSettings)
    """One path per fold: trained without it, and judged on it."""
    calibration_share: float = 0.0
    """Share of the training groups kept from all paths, for calibration and thresholds."""
    lung_gate: bool = True
    """Paths see nothing outside the lungs (stored with the bundle; off in the published network)."""
    mask_style: str = "v7"
    """Which segmenter makes the masks."""
    standardisation_mean: float | None = 124.07157127013421
    """Grey level subtracted from the equalised frame; null: measured on the training pictures."""
    standardisation_std: float | None = 75.97485671901313
    """Grey levels per unit; null: measured on the training pictures."""
    copies: CopySettings = field(default_factory=CopySettings)
    """Copies of each picture to choose from."""
    copy_shares: list[float] = field(default_factory=list)
    """How often each copy is chosen; empty: equally often."""
    fresh_copies: bool = False
    """Draw copies anew in every epoch, with a scattering in each step, instead of once for all."""
    mirror: float = 0.5
    """Share of the pictures that are mirrored left to right, on the path inputs."""
    class_weights: str = "published"
    """``published``, ``balanced`` or ``none`` (see ``losses.cross_entropy``)."""
    same_start: bool = False
    """All paths start from the same weights, as the original's do."""
    start_seed: int = 5
    """Seed of the starting weights."""
    running_step_counter: bool = False
    """Adam's step counter runs on over the folds while its moments start afresh, as in the original."""
    stages: list[Stage] = field(default_factory=lambda: [Stage()])
    """Stretches of training, one after the other."""


@dataclass(frozen=True)
class Labelled:
    """What is known of the pictures of a feature store, in its order."""

    picture_ids: Sequence[str]
    """The manifest's id of each."""
    class_N: NDArray[np.int64]
    """Index into the classes."""
    source: Sequence[str]
    """Where each comes from."""


class PathTask:
    """One path: pictures ``training`` and ``held_out`` are indices into the store."""

    def __init__(
        self,
        name: str,
        recipe: ClassificationRecipe,
        settings: LoopSettings,
        *,
        store: FeatureStore,
        pictures: Labelled,
        training: NDArray[np.int64],
        held_out: NDArray[np.int64],
        number: int,
    ) -> None:
        self.name = name
        self.recipe, self.seed = recipe, settings.seed
        self.store, self.pictures = store, pictures
        self.training, self.held_out = training, held_out
        self.picture_ids: Sequence[str] = [pictures.picture_ids[i] for i in training]
        self.folds_before = number if recipe.running_step_counter else 0
        start = recipe.start_seed if recipe.same_start else recipe.start_seed + number
        self.model: nn.Module = Path(classes=len(recipe.classes), lung_gate=recipe.lung_gate).initialise(
            start
        )
        labels = [int(pictures.class_N[i]) for i in training]
        self.weights_C = class_weights(labels, classes=len(recipe.classes), rule=recipe.class_weights)
        self.mean_weight = self.weights_C[torch.tensor(labels)].mean()
        shares = np.array(recipe.copy_shares or [1.0] * len(recipe.copies.kinds))
        self._cumulative = np.cumsum(shares / shares.sum())

    def batch(self, indices: NDArray[np.int64], stage: Stage, epoch: int) -> Batch:
        """Path inputs ``[B, 50, h, w]``, target probabilities ``[B, C]`` and weights ``[B]``, float32.

        With ``stage.silence`` the pictures follow once more, without lungs: their true class, and weight 0.
        """
        classes = len(self.recipe.classes)
        features, targets, weights = [], [], []
        for i in indices:
            picture = int(self.training[i])
            random = random_state(self.seed, "choice", epoch, self.picture_ids[i])
            copy = int(np.searchsorted(self._cumulative, random.random_sample(), side="right"))
            copy = min(copy, len(self._cumulative) - 1)
            if self.recipe.fresh_copies:
                x = torch.from_numpy(self.store.draw(picture, copy, epoch))
            else:
                x = torch.from_numpy(np.array(self.store.get(picture, copy)))
            if random.random_sample() < self.recipe.mirror:
                x = mirror_features(x)
            label = int(self.pictures.class_N[picture])
            if self.recipe.copies.kinds[copy] == "removed":
                # Without lungs there is nothing to tell the classes by: the right answer is "cannot say".
                targets.append(torch.full((classes,), 1.0 / classes))
                weights.append(self.mean_weight)
            else:
                targets.append(nn.functional.one_hot(torch.tensor(label), classes).float())
                weights.append(self.weights_C[label])
            features.append(x)
        for i in indices if stage.silence else ():
            random = random_state(self.seed, "silence", epoch, self.picture_ids[i])
            x = self._removed(int(self.training[i]), epoch)
            features.append(mirror_features(x) if random.random_sample() < self.recipe.mirror else x)
            true = torch.tensor(int(self.pictures.class_N[self.training[i]]))
            targets.append(nn.functional.one_hot(true, classes).float())
            weights.append(torch.tensor(0.0))
        inputs = torch.stack(features).contiguous(memory_format=torch.channels_last)
        return inputs, torch.stack(targets), torch.stack(weights)

    def loss(
        self, model: nn.Module, batch: Batch, stage: Stage, across: Callable[[Tensor], Tensor], share: float
    ) -> Tensor:
        """Class-weighted cross-entropy over the picture count (REFERENCE_SPEC section 10), plus the stage's silence."""
        inputs, target_BC, weight_B = batch
        logits = class_logits(model(inputs).float())
        loss = weighted_cross_entropy(logits, target_BC, weight_B, batch=1) * share
        if stage.silence:
            half = len(logits) // 2
            loss = loss + stage.silence * silence_penalty(logits[half:], target_BC[half:], across=across)
        return loss

    def _removed(self, picture: int, epoch: int) -> Tensor:
        copy = self.recipe.copies.kinds.index("removed")
        if self.recipe.fresh_copies:
            return torch.from_numpy(self.store.draw(picture, copy, epoch))
        return torch.from_numpy(np.array(self.store.get(picture, copy)))

    def validate(self, model: nn.Module, stage: Stage) -> Row:
        """Loss, AUC (also inside the sources that hold both classes) and accuracy on the fold held out."""
        if not len(self.held_out):
            return {}
        logits_NC = self.logits(model, self.held_out)
        labels = self.pictures.class_N[self.held_out]
        losses = weighted_cross_entropy(
            logits_NC, torch.from_numpy(labels), self.weights_C[torch.from_numpy(labels)], batch=len(labels)
        )
        row = {
            "val_loss": float(losses),
            "val_accuracy": float((logits_NC.argmax(1).numpy() == labels).mean()),
        }
        positive = self.recipe.classes.index(self.recipe.positive_class)
        score = log_odds(logits_NC, positive).numpy()
        truth = labels == positive
        sources = np.array([self.pictures.source[i] for i in self.held_out])
        row["val_auc"] = roc_auc(truth, score)
        row["val_mixed_auc"] = mixed_source_auc(truth, score, sources)
        return {name: value for name, value in row.items() if np.isfinite(value)}

    @torch.inference_mode()
    def logits(self, model: nn.Module, pictures: NDArray[np.int64]) -> Tensor:
        """Class logits ``[N, C]`` of the untouched (plain) pictures, in eval mode."""
        device = next(model.parameters()).device
        model.eval()
        rows = []
        for picture in pictures:
            inputs = torch.from_numpy(np.array(self.store.plain(int(picture))))[None].to(device)
            rows.append(class_logits(model(inputs.contiguous(memory_format=torch.channels_last))).cpu())
        return torch.cat(rows).float()
