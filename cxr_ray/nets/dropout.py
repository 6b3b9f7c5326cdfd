"""Spatial dropout whose draws can be tied to the pictures instead of to the order of the work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

SPATIAL_DROPOUT = 0.05
_MIX = 0x9E3779B97F4A7C15
_WORD = 2**64


class SpatialDropout(nn.Module):
    """Drops whole channels in train mode; nothing to train and nothing in the saved state.

    With ``keys`` (one integer per picture of the batch) the channels that a picture loses depend on its key and on
    ``place`` only, so that the same picture loses the same channels in whatever batch or process it is computed.
    """

    def __init__(self, *, place: int, rate: float = SPATIAL_DROPOUT) -> None:
        super().__init__()
        self.rate = rate
        self.place = place
        self.keys: Sequence[int] | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x_BCHW
        if self.keys is None:
            return F.dropout2d(x_BCHW, self.rate)
        B, C = x_BCHW.shape[:2]
        if len(self.keys) != B:
            raise ValueError(f"expected one dropout key for each of {B} pictures, got {len(self.keys)}")
        kept = torch.stack([self._kept(key, C) for key in self.keys]) / (1.0 - self.rate)
        return x_BCHW * kept.to(x_BCHW)[:, :, None, None]

    def _kept(self, key: int, channels: int) -> Tensor:
        seed = (key * _MIX + self.place + 1) % _WORD
        generator = torch.Generator().manual_seed(seed - _WORD // 2)
        return (torch.rand(channels, generator=generator) >= self.rate).float()


def key_dropout(model: nn.Module, keys: Iterable[int] | None) -> None:
    """Tie every dropout below ``model`` to the pictures of the coming batch; None: back to torch's generator."""
    fixed = None if keys is None else list(keys)
    for module in model.modules():
        if isinstance(module, SpatialDropout):
            module.keys = fixed
