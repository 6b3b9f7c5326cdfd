"""Path inputs computed once for all folds: the published flow up to the scattering, for a few copies of each picture.

Scattering and Module 1 have nothing to train, so what they give is kept on disk in chunks that every fold's process
maps into memory. A chunk's content depends on its pictures and settings only; it is written beside its place and
renamed, so processes may compute the store together, and a killed one leaves nothing half done.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_ray.nets.gate import look_up, quantise, tissue
from cxr_ray.nets.network import Network
from cxr_ray.nets.path import MASK_THRESHOLD
from cxr_ray.nets.segmenter import lung_probability
from training.augmentation.classification_warp import (
    ClassificationWarpSettings,
    draw_classification_warp,
    warp_standardised,
)
from training.augmentation.degradation import DegradationSettings, degrade
from training.seeding import random_state

CHUNK = 32
OPEN_CHUNKS = 256
"""Each open chunk holds a file descriptor."""
COPIES = ("plain", "warped", "degraded", "removed", "only")
"""plain: as scoring sees it. warped: another geometry. degraded: another camera, then another geometry. removed: the
lungs blanked out. only: everything but the lungs blanked out."""


@dataclass(kw_only=True)
class CopySettings:
    """Which copies of a picture are made."""

    kinds: list[str] = field(default_factory=lambda: ["plain", "warped", "degraded"])
    """One entry per copy, from plain, warped, degraded, removed, only; a kind may occur several times."""
    warp: ClassificationWarpSettings = field(default_factory=ClassificationWarpSettings)
    """Geometry of the warped and degraded copies."""
    degradation: DegradationSettings = field(default_factory=DegradationSettings)
    """Camera of the degraded copies."""
    seed: int = 1
    """Seed of what is drawn for the copies."""


class FeatureStore:
    """Path inputs ``[50, h, w]`` float32 by picture and copy.

    Args:
        folder: local folder of the store; made if it is not there.
        network: the segmenter, gate, standardisation and scattering of scoring; its paths are not used.
        pixels_NHW: equalised frames; picture_ids: their ids in the manifest, which seed the draws.
        fingerprint: names segmenter and standardisation; with pixels, ids and settings it names the store.
    """

    def __init__(
        self,
        folder: Path,
        network: Network,
        pixels_NHW: NDArray[np.uint8],
        picture_ids: Sequence[str],
        settings: CopySettings,
        *,
        fingerprint: str,
    ) -> None:
        pixels = hashlib.sha256(np.ascontiguousarray(pixels_NHW).data).hexdigest()
        named = json.dumps([fingerprint, pixels, asdict(settings), list(picture_ids)], sort_keys=True)
        self.folder = folder / hashlib.sha256(named.encode()).hexdigest()[:16]
        self.network, self.pixels_NHW, self.picture_ids = network, pixels_NHW, picture_ids
        self.settings = settings
        self._maps: dict[int, NDArray[np.float32]] = {}
        self._levels: dict[int, Tensor] = {}

    @property
    def chunks(self) -> int:
        """Number of files."""
        return -(-len(self.picture_ids) // CHUNK)

    def fill(self, start: int = 0) -> None:
        """Compute what is missing, from chunk ``start`` on and round again (other processes start elsewhere)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for chunk in range(self.chunks):
            path = self._path((start + chunk) % self.chunks)
            if path.exists():
                continue
            first = ((start + chunk) % self.chunks) * CHUNK
            pictures = range(first, min(first + CHUNK, len(self.picture_ids)))
            values = np.stack([self.compute(i) for i in pictures])
            aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            with aside.open("wb") as file:
                np.save(file, values)
            aside.replace(path)

    def get(self, picture: int, copy: int) -> NDArray[np.float32]:
        """Path input of one copy of one picture; ``fill`` must have run."""
        chunk, place = divmod(picture, CHUNK)
        if chunk not in self._maps:
            if len(self._maps) >= OPEN_CHUNKS:
                self._maps.clear()
            self._maps[chunk] = np.load(self._path(chunk), mmap_mode="r")
        return self._maps[chunk][place, copy]

    def compute(self, picture: int) -> NDArray[np.float32]:
        """All copies of one picture, ``[copies, 50, h, w]``."""
        return np.stack([self.draw(picture, copy) for copy in range(len(self.settings.kinds))])

    def draw(self, picture: int, copy: int, epoch: int | None = None) -> NDArray[np.float32]:
        """One copy of one picture ``[50, h, w]``, computed now; with ``epoch``, drawn anew for each epoch."""
        x, mask = self._copy(self.settings.kinds[copy], picture, (copy, epoch), self.pixels_NHW[picture])
        return self._inputs(x, mask)

    @torch.inference_mode()
    def _inputs(self, x_HW: NDArray[np.float32], mask_HW: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.network.ensemble.inputs(torch.from_numpy(x_HW)[None], torch.from_numpy(mask_HW)[None])[
            0
        ].numpy()

    def has_lungs(self, picture: int) -> bool:
        """Whether the paths see any lung in the untouched picture."""
        return bool((self.plain(picture)[-1] > MASK_THRESHOLD).any())

    def plain(self, picture: int) -> NDArray[np.float32]:
        """The untouched picture's path input, from the store where a plain copy is kept, else computed now."""
        kinds = self.settings.kinds
        if "plain" in kinds and self._path(picture // CHUNK).exists():
            return self.get(picture, kinds.index("plain"))
        x, _, mask = self.standardised(self.pixels_NHW[picture], picture)
        return self._inputs(x, mask)

    def _copy(
        self, kind: str, picture: int, draw: tuple[int, int | None], pixels_HW: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Standardised frame and gated mask of one copy, float32 ``[H, W]``."""
        random = random_state(self.settings.seed, "copy", *map(str, draw), self.picture_ids[picture])
        if kind == "degraded":
            x, soft, mask = self.standardised(degrade(random, pixels_HW, self.settings.degradation))
        else:
            x, soft, mask = self.standardised(pixels_HW, picture)
        if kind in ("warped", "degraded"):
            rows, columns = pixels_HW.shape
            warp = draw_classification_warp(random, self.settings.warp, rows=rows, columns=columns)
            x, mask = warp_standardised(warp, x.astype(np.float64), mask.astype(np.float64))
        elif kind == "removed":
            x = x * (np.float32(1) - soft)
        elif kind == "only":
            x = x * soft
        return x, mask

    @torch.inference_mode()
    def standardised(
        self, pixels_HW: NDArray[np.uint8], picture: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Standardised frame, quantised lung mask, and the mask behind the tissue gate, as scoring has them.

        ``picture``: whose pixels they are, if they are a picture's own: its lungs are then looked for only once.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(pixels_HW))[None]
        net = self.network
        levels = None if picture is None else self._levels.get(picture)
        if levels is None:
            levels = quantise(lung_probability(net.segmenter(look_up(net.level_table, pixels))))
            if picture is not None:
                self._levels[picture] = levels
        soft = look_up(net.level_table, levels)
        mask = soft * tissue(pixels)
        return look_up(net.standard_table, pixels)[0].numpy(), soft[0].numpy(), mask[0].numpy()

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:05d}.npy"
