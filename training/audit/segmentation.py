"""The audit of a segmenter: lung Dice and the like by source and mask style, and paired with another bundle.

Frames are 300 x 340, masks resized nearest, lung where the probability is above 0.5, means over pictures; nothing is
smoothed. ``segmentation.json``::

    task, split, bundle, bootstrap         as in ``training.audit.classification``
    counts      {pairs, groups, no_segmenter: style -> pairs left out}
    tables      [{source, mask_style, pairs, groups, dice, jaccard, precision, recall, paper_pooled_two_channel,
                  compared: {dice, ...}, difference: {dice, ...}}]; source or mask_style null: all of them
    compared    the other bundle, or null; ``difference`` is this bundle minus it, paired
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cxr_ray.errors import TrainingDataError
from cxr_ray.nets.folding import fold_blocks
from cxr_ray.nets.gate import level_table, look_up
from cxr_ray.nets.segmenter import Segmenter, lung_probability
from cxr_ray.weights.bundle import Bundle
from cxr_ray.weights.storage import bundle_from_bytes, bundle_to_bytes
from training.audit.chunks import CHUNK, Arrays, Progress, Work, map_chunks
from training.audit.classification import AuditResult, AuditSettings
from training.audit.sections import as_json, describe
from training.data.frames import Frames
from training.metrics.bootstrap import LEVEL, Indices, group_bootstrap_many
from training.metrics.segmentation import LUNG_METRICS, PAPER_POOLED, lung_metrics, pooled_accuracy

LUNG_PROBABILITY = 0.5


def predict_lungs(
    bundle: Bundle,
    pixels_NHW: NDArray[np.uint8],
    mask_styles: Sequence[str],
    *,
    device: str = "cpu",
    processes: int = 1,
    progress: Progress | None = None,
) -> NDArray[np.bool_]:
    """Lungs ``[N, 300, 340]`` of each frame by the bundle's segmenter of its style, probability > 0.5.

    Args:
        bundle: the weights.
        pixels_NHW: equalised uint8 frames.
        mask_styles: ``[N]`` style of each frame's mask; the bundle has a segmenter for each of them.
        device, processes, progress: as for ``score_frames``.
    """
    lungs = np.zeros(pixels_NHW.shape, dtype=bool)
    styles = np.array(mask_styles)
    for style in np.unique(styles):
        chosen = np.flatnonzero(styles == style)
        found = map_chunks(
            _segmenter,
            (bundle_to_bytes(bundle), str(style), device),
            pixels_NHW[chosen],
            chunk=CHUNK,
            processes=processes if device == "cpu" else 1,
            progress=progress,
        )
        lungs[chosen] = found["lungs"]
    return lungs


def audit_segmentation(
    bundle: Bundle,
    frames: Frames,
    masks_NHW: NDArray[np.uint8],
    *,
    settings: AuditSettings,
    split: str = "",
    compare: Bundle | None = None,
    device: str = "cpu",
    processes: int = 1,
    progress: Progress | None = None,
) -> AuditResult:
    """Segment labelled frames and count.

    Args:
        bundle: the audited weights.
        frames: every example has a mask and a mask style.
        masks_NHW: 0/1 lungs of ``load_masks``.
        compare: another bundle, on the same pairs; pairs of a style that either lacks are left out and counted.

    Raises:
        TrainingDataError: no pair is of a style that the bundles segment.
    """
    styles = [example.mask_style or "" for example in frames.examples]
    known = set(bundle.segmenters) & set(bundle.segmenters if compare is None else compare.segmenters)
    kept = [i for i, style in enumerate(styles) if style in known]
    if not kept:
        raise TrainingDataError(
            f"no pair has a mask style that can be audited: the bundle segments {', '.join(sorted(known)) or 'none'}, "
            f"the pairs are of style {', '.join(sorted(set(styles))) or 'none'}"
        )
    part, true = frames.take(kept), masks_NHW[kept].astype(bool)
    style_N = [styles[i] for i in kept]
    run: dict[str, Any] = {"device": device, "processes": processes, "progress": progress}
    pred = predict_lungs(bundle, part.pixels_NHW, style_N, **run)
    other = None if compare is None else predict_lungs(compare, part.pixels_NHW, style_N, **run)
    figures = _figures(pred, true)
    compared = None if other is None else _figures(other, true)
    missing = [style for style in styles if style not in known]
    source = np.array([example.source or "unknown" for example in part.examples])
    group = np.array([example.unit_key for example in part.examples])
    summary = {
        "task": "segmentation",
        "split": split,
        "bundle": describe(bundle),
        "counts": {
            "pairs": len(kept),
            "groups": len(np.unique(group)),
            "no_segmenter": {style: missing.count(style) for style in sorted(set(missing))},
        },
        "bootstrap": {"unit": "group", "draws": settings.draws, "seed": settings.seed, "level": LEVEL},
        "tables": [
            {"source": name, "mask_style": style, **_row(chosen, figures, compared, group, settings)}
            for name, style, chosen in _cells(source, np.array(style_N))
        ],
        "compared": None if compare is None else describe(compare),
    }
    columns: dict[str, Any] = {
        "image_id": part.image_id,
        "group": group.tolist(),
        "source": source.tolist(),
        "mask_style": style_N,
        **figures,
        **{f"compared_{name}": values for name, values in (compared or {}).items()},
    }
    return AuditResult(summary, pa.table(columns))


def _figures(pred: NDArray[np.bool_], true: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    pooled = [pooled_accuracy(p[None], t[None])[PAPER_POOLED] for p, t in zip(pred, true, strict=True)]
    # Pictures are of one size, so the mean over pictures is the pooled figure.
    return {**lung_metrics(pred, true), PAPER_POOLED: np.array(pooled)}


def _cells(
    source: NDArray[Any], style: NDArray[Any]
) -> Iterator[tuple[str | None, str | None, NDArray[Any]]]:
    """Every source and style, every style whole, and all pairs."""
    for one_style in np.unique(style):
        for one_source in np.unique(source[style == one_style]):
            yield str(one_source), str(one_style), (style == one_style) & (source == one_source)
        yield None, str(one_style), style == one_style
    yield None, None, np.ones(len(style), dtype=bool)


def _row(
    chosen: NDArray[np.bool_],
    figures: dict[str, NDArray[np.float64]],
    compared: dict[str, NDArray[np.float64]] | None,
    group: NDArray[Any],
    settings: AuditSettings,
) -> dict[str, Any]:
    def means(values: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
        inside = {name: column[chosen] for name, column in values.items()}

        def statistics(i: Indices) -> dict[str, float]:
            return {name: float(column[i].mean()) for name, column in inside.items()}

        return as_json(
            group_bootstrap_many(statistics, group[chosen], draws=settings.draws, seed=settings.seed)
        )

    row: dict[str, Any] = {
        "pairs": int(chosen.sum()),
        "groups": len(np.unique(group[chosen])),
        **means(figures),
    }
    if compared is not None:
        row["compared"] = means(compared)
        row["difference"] = means(
            {name: figures[name] - compared[name] for name in (*LUNG_METRICS, PAPER_POOLED)}
        )
    return row


def _segmenter(bundle: bytes, style: str, device: str) -> Work:
    model = Segmenter()
    model.load_state_dict(dict(bundle_from_bytes(bundle).segmenters[style]))
    model.eval().requires_grad_(False)
    fold_blocks(model)
    model = model.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    levels = level_table().to(device)
    if device == "cpu":
        torch.set_num_threads(1)  # as in the scorer: processes, not threads, share the machine

    @torch.inference_mode()
    def work(pixels_BHW: NDArray[np.uint8]) -> Arrays:
        found = []
        for pixels in pixels_BHW:  # one by one, which is fastest on a CPU
            x = look_up(levels, torch.from_numpy(np.ascontiguousarray(pixels[None])).to(device))
            found.append((lung_probability(model(x)) > LUNG_PROBABILITY).cpu().numpy())
        return {"lungs": np.concatenate(found) if found else np.zeros(pixels_BHW.shape, dtype=bool)}

    return work
