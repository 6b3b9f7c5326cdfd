"""A phantom of the size and grain of a digital film, to time a decoder with."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from cxr_ray.phantoms.drawing import phantom

#: 5 megapixels.
ROWS: Final = 2500
COLUMNS: Final = 2000

_GRAIN: Final = 2.0
_QUALITY: Final = 90


def five_megapixel_jpeg(seed: int = 0) -> bytes:
    """An 8-bit JPEG of about 0.3 bytes per pixel; without grain a drawing packs far better than a film."""
    rng = np.random.default_rng(seed)
    drawn = cv2.resize(
        (phantom(rng) >> 4).astype(np.float32), (COLUMNS, ROWS), interpolation=cv2.INTER_LINEAR
    )
    film = np.clip(drawn + rng.normal(0, _GRAIN, (ROWS, COLUMNS)), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", film, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
