"""What a training step costs on one CPU core, before and after, in one run: ``python bench/training_step.py``.

Before: every depthwise convolution as torch's dilated one, every 1x1 as a convolution, features computed for each fold.
After: what ``cxr_ray.nets`` and ``training`` do. CPU seconds of one thread, smallest of ``--repeats``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cxr_ray.nets import layers
from cxr_ray.nets.depthwise import DepthwiseConv
from cxr_ray.nets.ensemble import Ensemble, class_logits
from cxr_ray.nets.folding import fold_blocks
from cxr_ray.nets.network import Network
from cxr_ray.nets.path import Path
from cxr_ray.nets.segmenter import Segmenter
from training.losses.cross_entropy import weighted_cross_entropy
from training.losses.tanimoto import box_size, contour_weights, tanimoto_loss
from training.memory import keep_freed_memory

FOLDS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="Module 1 at 300 x 340 too (minutes)")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    keep_freed_memory()
    sizes = [(150, 170, 4)] + ([(300, 340, 2)] if parser.parse_args().full else [])
    rows = [segmenter_row(*size, repeats) for size in sizes] + [path_row(repeats), epoch_row(repeats)]
    print("| what | before | after | ratio |\n| --- | ---: | ---: | ---: |")
    for name, before, after, unit in rows:
        print(f"| {name} | {before:.3g} {unit} | {after:.3g} {unit} | {before / after:.2f} |")
    print(
        json.dumps(
            {name: {"before": before, "after": after, "unit": unit} for name, before, after, unit in rows}
        )
    )


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """The networks as a straight reading of the specification would write them."""
    fast = DepthwiseConv.forward, layers.pointwise

    def dilated(self: DepthwiseConv, x: Tensor) -> Tensor:
        p = self.pad
        return nn.Conv2d.forward(self, F.pad(x, (p, p, p, p)))

    DepthwiseConv.forward, layers.pointwise = dilated, lambda conv, x: conv(x)  # type: ignore[method-assign]
    try:
        yield
    finally:
        DepthwiseConv.forward, layers.pointwise = fast  # type: ignore[method-assign]


def cost(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds, the smallest of ``repeats`` after one call to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def segmenter_row(rows: int, columns: int, batch: int, repeats: int) -> tuple[str, float, float, str]:
    """Forward and backward of Module 1 with its loss, per picture; plain in torch's default layout, its quickest."""
    random = np.random.RandomState(0)
    x = torch.from_numpy(random.rand(batch, rows, columns).astype(np.float32))
    lungs = (
        F.interpolate(torch.from_numpy(random.rand(batch, 1, 5, 4)), (rows, columns), mode="bilinear") > 0.5
    )
    target = torch.cat((lungs, ~lungs), dim=1).float()

    def step(model: Segmenter) -> None:
        weight = contour_weights(target, box=box_size(rows))
        tanimoto_loss(model(x).softmax(1), target, weight).backward()

    with plain_convolutions():
        model = Segmenter().initialise().train()
        before = cost(lambda: step(model), repeats)
    model = Segmenter().initialise().train().to(memory_format=torch.channels_last)
    after = cost(lambda: step(model), repeats)
    return f"Module 1, {rows} x {columns}, one picture", before / batch, after / batch, "CPU s"


def path_row(repeats: int, batch: int = 8) -> tuple[str, float, float, str]:
    """Forward and backward of one path, per picture."""
    random = np.random.RandomState(0)
    x = torch.from_numpy(random.rand(batch, 50, 75, 85).astype(np.float32))
    label, weight = torch.arange(batch) % 2, torch.ones(batch)

    def step(model: Path, x: Tensor) -> None:
        weighted_cross_entropy(class_logits(model(x)), label, weight, batch=batch).backward()

    with plain_convolutions():
        model = Path().initialise().train()
        before = cost(lambda: step(model, x), repeats)
    model = Path().initialise().train().to(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last)
    after = cost(lambda: step(model, last), repeats)
    return "Module 2, one path, one picture", before * 1000 / batch, after * 1000 / batch, "CPU ms"


def epoch_row(repeats: int, epochs: int = 8, copies: int = 4) -> tuple[str, float, float, str]:
    """Path inputs of one picture over a whole training of six folds: made in each step of each fold (its mask once,
    scattering each time), or once per copy for all."""
    network = Network(Segmenter(), Ensemble(rows=300, columns=340, paths=0), mean=124.0, std=76.0).eval()
    fold_blocks(network)
    frame = torch.rand(1, 300, 340)
    x, mask = torch.rand(1, 300, 340), torch.rand(1, 300, 340)
    with torch.inference_mode():
        masked = cost(lambda: network.segmenter(frame), repeats)
        scattered = cost(lambda: network.ensemble.inputs(x, mask), repeats)
    seen = epochs * (FOLDS - 1)  # a picture is held out by one fold
    return (
        f"Path inputs of one picture, six folds, {epochs} epochs",
        masked + seen * scattered,
        (masked + copies * scattered),
        "CPU s",
    )


if __name__ == "__main__":
    main()
