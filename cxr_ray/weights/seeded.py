"""A bundle from a fixed seed, so that the whole machinery can run before trained weights exist."""

from __future__ import annotations

import torch
from torch import Tensor

from cxr_ray.nets.layers import BatchNorm
from cxr_ray.nets.path import Path
from cxr_ray.nets.segmenter import LUNG_CHANNEL, Segmenter
from cxr_ray.weights.bundle import Bundle
from cxr_ray.weights.meta import BundleMeta

LUNG_BIAS = 0.5
"""Logit of "lung" everywhere: sigmoid(0.5) is about 0.62."""
HEAD_SCALE = 0.015
"""The random head is scaled down to ripple around that value instead of drowning it."""
LAST_SCALE = 10.0
"""The last layer of each path is scaled up: its random output alone gives every film 0.48 or 0.49."""

CARD = """# Seeded weights (untrained)

Made from seed {seed} by `cxr_ray.weights.seeded`. **Nothing was learned: the scores mean nothing.** They exist so that
installation, storage, resuming and pictures can be tried without trained weights.

The segmenter was given a bias of {bias} towards "lung" and a damped head, so that it calls almost every place lung with
a probability near 0.6. That is no segmentation; without it every image would be quarantined as `no_lungs`.
"""


def seeded_bundle(seed: int = 0) -> Bundle:
    """The same untrained bundle for the same seed: finite, not constant, and with "lungs" on any ordinary frame.

    How it finds lungs, plainly: the segmenter's last layer gets a fixed bias towards lung and a random part scaled
    down to a ripple, so nearly every place scores about 0.6 (the tissue gate then removes the darkest and brightest
    pixels). The last layer of each path is scaled down so that scores do not saturate.
    """
    segmenter = Segmenter().initialise(seed)
    paths = [Path().initialise(1000 * (seed + 1) + index) for index in range(6)]
    with torch.no_grad():
        segmenter.head.weight.mul_(HEAD_SCALE)
        assert segmenter.head.bias is not None  # Conv2d with bias, by construction
        segmenter.head.bias[LUNG_CHANNEL] = LUNG_BIAS
        for path in paths:
            block = path.block_c
            assert isinstance(block.shortcut_norm, BatchNorm)
            block.shortcut_norm.weight.fill_(LAST_SCALE)
            for branch in block.branches:
                branch.second.pointwise.weight.mul_(LAST_SCALE)  # type: ignore[union-attr, operator]
    meta = BundleMeta(
        name=f"seeded-{seed} (untrained: scores mean nothing)",
        trained=False,
        # Of an equalised frame: grey levels are spread evenly, so mean 127.5 and standard deviation 255 / sqrt(12).
        standardisation_mean=127.5,
        standardisation_std=73.6,
        mask_style="seeded",
        mask_styles=("seeded",),
        licence_basis="generated from a random seed; no rights of others",
    )
    return Bundle.build(
        segmenters={"seeded": _state(segmenter)},
        paths=[_state(path) for path in paths],
        meta=meta,
        card=CARD.format(seed=seed, bias=LUNG_BIAS),
    )


def _state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
