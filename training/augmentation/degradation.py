"""Random change of contrast, sharpness, noise and coding, so that a network leans less on how a film was made.

Not published: the ``deg`` copies of this project. Sources of films differ in exactly these properties, and a network
can tell Covid+ from Covid- by the source alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_ray.preprocess import equalise


@dataclass(kw_only=True)
class DegradationSettings:
    """Ranges and chances; two numbers are the lower and upper end of an even draw."""

    gamma: float = 0.5
    """Contrast: grey level (0..1) to the power of e to the draw from plus or minus this."""
    sharpness_probability: float = 1.0
    """Chance of one of three, each as likely: Gaussian blur, down- and up-scaling, unsharp masking."""
    blur_pixels: tuple[float, float] = (0.4, 1.6)
    """Standard deviation of the Gaussian, of blur and of unsharp masking."""
    downscale: tuple[float, float] = (0.4, 0.8)
    """Share of rows and columns that is left before scaling up again."""
    unsharp_amount: tuple[float, float] = (0.5, 1.5)
    """How much of the difference to the blurred picture is added."""
    noise_probability: float = 0.5
    """Chance of Gaussian noise."""
    noise: tuple[float, float] = (0.005, 0.03)
    """Standard deviation of the noise, in shares of the grey scale."""
    jpeg_probability: float = 0.6
    """Chance of coding as JPEG and back."""
    jpeg_quality: tuple[int, int] = (25, 85)
    """JPEG quality, both ends included."""


def degrade(
    random: np.random.RandomState, pixels_HW_u8: NDArray[np.uint8], settings: DegradationSettings
) -> NDArray[np.uint8]:
    """A degraded copy of an equalised picture, equalised again: uint8 ``[H, W]``, any size.

    Order: contrast, sharpness, noise, JPEG, equalisation. Takes 10 numbers from ``random`` in any case, and then the
    noise only where there is noise. Equal from run to run with the same OpenCV; other versions may differ by a grey
    level, because their blur, resize and JPEG coder do.
    """
    gamma = np.exp(random.uniform(-settings.gamma, settings.gamma))
    sharpness_drawn = random.random_sample() < settings.sharpness_probability
    kind = int(random.random_sample() * 3)
    sigma = random.uniform(*settings.blur_pixels)
    share = random.uniform(*settings.downscale)
    amount = random.uniform(*settings.unsharp_amount)
    noise_drawn = random.random_sample() < settings.noise_probability
    noise = random.uniform(*settings.noise)
    jpeg_drawn = random.random_sample() < settings.jpeg_probability
    worst, best = settings.jpeg_quality
    quality = worst + int(random.random_sample() * (best - worst + 1))

    # One look-up instead of a power per pixel.
    table = ((np.arange(256) / 255.0) ** gamma).astype(np.float32)
    grey_HW: NDArray[np.float32] = table[pixels_HW_u8]
    if sharpness_drawn:
        if kind == 0:
            grey_HW = _blur(grey_HW, sigma)
        elif kind == 1:
            grey_HW = _rescale(grey_HW, share)
        else:
            grey_HW = _sharpen(grey_HW, sigma, amount)
    if noise_drawn:
        grey_HW = grey_HW + (noise * random.standard_normal(grey_HW.shape)).astype(np.float32)
    levels_HW = np.rint(grey_HW * np.float32(255)).clip(0, 255).astype(np.uint8)
    if jpeg_drawn:
        levels_HW = _through_jpeg(levels_HW, quality)
    return equalise(levels_HW)


def _blur(grey_HW: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(grey_HW, (0, 0), sigma), dtype=np.float32)


def _sharpen(grey_HW: NDArray[np.float32], sigma: float, amount: float) -> NDArray[np.float32]:
    return grey_HW + np.float32(amount) * (grey_HW - _blur(grey_HW, sigma))


def _rescale(grey_HW: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Down by area averages and up by bilinear blending."""
    rows, columns = grey_HW.shape
    smaller = (max(1, round(columns * share)), max(1, round(rows * share)))
    shrunk = cv2.resize(grey_HW, smaller, interpolation=cv2.INTER_AREA)
    grown = cv2.resize(shrunk, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return np.asarray(grown, dtype=np.float32)


def _through_jpeg(levels_HW: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    _, coded = cv2.imencode(".jpg", levels_HW, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE), dtype=np.uint8)
