"""Score frames with a bundle, as they are and, for hide and seek, with the lungs hidden or everything else hidden."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_ray.nets.ensemble import class_logits, ensemble_map, log_odds
from cxr_ray.nets.folding import fold_blocks
from cxr_ray.nets.gate import level_table, look_up, quantise, standard_table, tissue
from cxr_ray.scorer import Scorer, Scores, ensemble_of
from cxr_ray.weights.bundle import Bundle
from cxr_ray.weights.storage import bundle_from_bytes, bundle_to_bytes
from training.audit.chunks import CHUNK, Arrays, Progress, Work, map_chunks


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a bundle says of N pictures, float32; NaN where ``has_lungs`` is False."""

    p_covid: NDArray[np.float32]
    """[N] ensemble probability of the positive class."""
    logit: NDArray[np.float32]
    """[N] its log-odds."""
    path_logits: NDArray[np.float32]
    """[N, K] log-odds of the positive class per path."""
    class_probs: NDArray[np.float32]
    """[N, C]"""
    lung_fraction: NDArray[np.float32]
    """[N]"""
    has_lungs: NDArray[np.bool_]
    """[N] False: no lungs were found, so there is no score."""
    lungs_removed: NDArray[np.float32] | None = None
    """[N] log-odds with the lungs hidden; None where hide and seek was not played."""
    lungs_only: NDArray[np.float32] | None = None
    """[N] log-odds with everything but the lungs hidden."""

    def __len__(self) -> int:
        return len(self.logit)


def hidden_frames(
    pixels_BHW: NDArray[np.uint8], lung_probability_BHW: NDArray[np.float32], mean: float, std: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised frames with the lungs removed, with the lungs only, and the paths' mask input; all ``[B, H, W]``.

    The standardised picture is multiplied by 1 - mask or by mask, so hidden places have the mean grey level of the
    training pictures. That mask is Module 1's of the untouched picture: soft (0 to 1), rounded to 8 bits, **without**
    the tissue gate, since the gate would leave the darkest and brightest places of the lungs in view. The mask that
    the paths get as input is the usual, gated one, so that only what is seen changes, not where the paths look.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(pixels_BHW))
    lungs = look_up(level_table(), quantise(torch.from_numpy(lung_probability_BHW)))
    standard = look_up(standard_table(mean, std), pixels)
    return standard * (1 - lungs), standard * lungs, lungs * tissue(pixels)


class HideAndSeek:
    """The paths of a scorer's bundle on pictures whose lungs, or everything else, were hidden before scattering."""

    def __init__(self, scorer: Scorer) -> None:
        ensemble = ensemble_of(scorer.bundle)
        fold_blocks(ensemble)
        self._ensemble = ensemble.to(scorer.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = scorer.device
        self._meta = scorer.meta
        self._step = 1 if scorer.device.type == "cpu" else scorer.compute_batch

    @torch.inference_mode()
    def __call__(
        self, pixels_BHW: NDArray[np.uint8], lung_probability_BHW: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        """Ensemble log-odds ``[B]`` of the positive class as "lungs_removed" and "lungs_only" (``hidden_frames``)."""
        mean, std = self._meta.standardisation_mean, self._meta.standardisation_std
        removed_BHW, only_BHW, mask_BHW = hidden_frames(pixels_BHW, lung_probability_BHW, mean, std)
        return {
            "lungs_removed": self._logits(removed_BHW, mask_BHW),
            "lungs_only": self._logits(only_BHW, mask_BHW),
        }

    def _logits(self, x_BHW: Tensor, mask_BHW: Tensor) -> NDArray[np.float32]:
        found = [torch.zeros(0)]
        for x, mask in zip(x_BHW.split(self._step), mask_BHW.split(self._step), strict=True):
            if len(x):
                inputs = self._ensemble.inputs(x.to(self._device), mask.to(self._device))
                maps = self._ensemble(inputs).contiguous()
                found.append(log_odds(class_logits(ensemble_map(maps)), self._meta.positive_index).cpu())
        return torch.cat(found).numpy()


def score_frames(
    bundle: Bundle,
    pixels_NHW: NDArray[np.uint8],
    *,
    hide_and_seek: bool = False,
    mask_style: str | None = None,
    compute_batch: int | None = None,
    device: str = "cpu",
    processes: int = 1,
    progress: Progress | None = None,
) -> Predictions:
    """Score equalised uint8 frames ``[N, 300, 340]`` with the very scorer that ``jobs/score.py`` uses.

    Args:
        bundle: the weights.
        hide_and_seek: also score with the lungs removed and with the lungs only (about 60 % more work).
        mask_style: as for ``Scorer``.
        compute_batch: pictures per network call on a GPU.
        device: torch device.
        processes: single-threaded processes side by side, on a CPU. A picture takes about 0.4 CPU seconds, and the
            scores are the same bit for bit whatever the number.
        progress: called after every chunk.

    Raises:
        UsageError: options or frames that the scorer cannot serve.
    """
    arguments = (bundle_to_bytes(bundle), device, compute_batch, mask_style, hide_and_seek)
    on_cpu = torch.device(device).type == "cpu"
    arrays = map_chunks(
        _scorer,
        arguments,
        pixels_NHW,
        chunk=CHUNK if on_cpu else (compute_batch or 64),
        processes=processes if on_cpu else 1,
        progress=progress,
    )
    return Predictions(**arrays)


def _scorer(
    bundle: bytes, device: str, compute_batch: int | None, mask_style: str | None, hide_and_seek: bool
) -> Work:
    scorer = Scorer(
        bundle_from_bytes(bundle), device=device, compute_batch=compute_batch, mask_style=mask_style
    )
    hidden = HideAndSeek(scorer) if hide_and_seek else None
    names = {field.name for field in dataclasses.fields(Predictions)} & {
        field.name for field in dataclasses.fields(Scores)
    }

    def work(pixels_BHW: NDArray[np.uint8]) -> Arrays:
        scores = scorer.score(pixels_BHW)
        arrays: Arrays = {name: getattr(scores, name) for name in names}
        if hidden is not None:
            for name, logit in hidden(pixels_BHW, scores.lung_probability).items():
                arrays[name] = np.where(scores.has_lungs, logit, np.float32(np.nan))
        return arrays

    return work
