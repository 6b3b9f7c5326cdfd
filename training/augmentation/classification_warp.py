"""Random warp of a picture (and its mask) for Module 2 (REFERENCE_SPEC section 10, TRAINING_SPEC section B).

The published warp is OpenCV 4's ``warpPerspective`` of a float64 picture, which reads at places rounded to 1/32 pixel.
OpenCV 5 no longer rounds, so the rounding is spelled out here and the result does not depend on the OpenCV at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.augmentation.sampling import sample

FRACTIONS = 32
"""Places are rounded to one part in this many of a pixel."""


@dataclass(kw_only=True)
class ClassificationWarpSettings:
    """Chances and ranges of the warp; the defaults are the published ones."""

    probability: float = 0.7
    """Chance of the geometric warp (turn, zoom, shift)."""
    rotation_degrees: float = 15.0
    """Angle, drawn from plus or minus this; the picture turns by the arctangent of its tangent over ``aspect``."""
    shift: float = 0.1
    """Shift of columns and of rows, each drawn from plus or minus this share of the frame's size."""
    scale: float = 0.1
    """Zoom, drawn from 1 minus this to 1 plus this; above 1 magnifies."""
    aspect: float = 1.1
    """Fixed factor of the published code; despite its name it does not change the aspect of the picture."""
    flip_horizontal: float = 0.3
    """Chance of a flip left and right."""
    flip_vertical: float = 0.2
    """Chance of a flip top and bottom."""
    flip_both: float = 0.2
    """Chance of both flips, where nothing else was done."""


@dataclass(frozen=True, kw_only=True)
class ClassificationWarp:
    """One drawn warp."""

    matrix: tuple[tuple[float, ...], ...] | None
    """3 x 3 on (x, y, 1), from input to output; None: no geometric warp."""
    flip_left_right: bool
    """After the geometric warp."""
    flip_up_down: bool
    rows: int
    """Size of the frame that the warp was drawn for."""
    columns: int


def draw_classification_warp(
    random: np.random.RandomState, settings: ClassificationWarpSettings, *, rows: int, columns: int
) -> ClassificationWarp:
    """The next warp of the stream for a frame of ``rows`` x ``columns``.

    Takes 3 to 8 numbers from ``random``: one for the geometric warp and five more where it is taken, one per flip,
    and one for both flips only where nothing was taken so far.
    """
    matrix = None
    if random.random_sample() < settings.probability:
        matrix = _draw_matrix(random, settings, rows=rows, columns=columns)
    left_right = bool(random.random_sample() < settings.flip_horizontal)
    up_down = bool(random.random_sample() < settings.flip_vertical)
    if matrix is None and not left_right and not up_down:
        left_right = up_down = bool(random.random_sample() < settings.flip_both)
    return ClassificationWarp(
        matrix=matrix, flip_left_right=left_right, flip_up_down=up_down, rows=rows, columns=columns
    )


def warp_standardised(
    warp: ClassificationWarp, x_HW: NDArray[np.floating], mask_HW: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A standardised picture and its soft mask under one warp: float32 ``[H, W]`` each.

    Both are computed in float64 (give them as float64 for parity) and stay soft; nothing is clipped or rounded.

    Raises:
        ValueError: picture or mask not of the warp's size.
    """
    warped_PHW = _warp(warp, x_HW, mask_HW).astype(np.float32)
    return warped_PHW[0], warped_PHW[1]


def warp_pixels(warp: ClassificationWarp, pixels_HW_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same warp of grey levels, rounded half to even: uint8 ``[H, W]``.

    Raises:
        ValueError: picture not of the warp's size.
    """
    # A bilinear mean of grey levels stays inside 0..255, so nothing wraps around.
    return np.rint(_warp(warp, pixels_HW_u8)[0]).astype(np.uint8)


def _draw_matrix(
    random: np.random.RandomState, settings: ClassificationWarpSettings, *, rows: int, columns: int
) -> tuple[tuple[float, ...], ...]:
    """Five draws -> the perspective matrix through the four (float32) corners, as published."""
    angle = np.deg2rad(random.uniform(-settings.rotation_degrees, settings.rotation_degrees))
    scale = random.uniform(1 - settings.scale, 1 + settings.scale)
    aspect = random.uniform(settings.aspect, settings.aspect)  # constant, but it takes its number
    right = round(random.uniform(-settings.shift, settings.shift) * columns)
    down = round(random.uniform(-settings.shift, settings.shift) * rows)
    cosine = np.cos(angle) * (scale * np.sqrt(aspect))
    sine = np.sin(angle) * (scale / np.sqrt(aspect))
    corners = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], dtype=np.float64)
    centre = np.array([columns / 2, rows / 2])
    turned = (corners - centre) @ np.array([[cosine, sine], [-sine, cosine]]) + centre + (right, down)
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), turned.astype(np.float32))
    return tuple(tuple(float(value) for value in row) for row in matrix)


def _warp(warp: ClassificationWarp, *planes: NDArray[np.generic]) -> NDArray[np.float64]:
    """Planes of the warp's size -> float64 ``[P, H, W]``, C-contiguous."""
    for plane in planes:
        if plane.shape != (warp.rows, warp.columns):
            raise ValueError(
                f"expected a frame of {warp.rows} x {warp.columns}, the size of the warp, found {plane.shape}"
            )
    planes_PHW = np.stack(planes).astype(np.float64)
    if warp.matrix is not None:
        row_HW, column_HW = _places(warp)
        planes_PHW = sample(planes_PHW, row_HW=row_HW, column_HW=column_HW, edge="not_repeated")
    if warp.flip_left_right:
        planes_PHW = planes_PHW[:, :, ::-1]
    if warp.flip_up_down:
        planes_PHW = planes_PHW[:, ::-1]
    return np.ascontiguousarray(planes_PHW)


def _places(warp: ClassificationWarp) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Row and column in the input of every output pixel, rounded half to even to 1 / ``FRACTIONS`` pixel."""
    _, inverse = cv2.invert(np.array(warp.matrix))
    down, across = np.arange(warp.rows)[:, None], np.arange(warp.columns)
    # OpenCV divides once per pixel and multiplies x and y by it; the same here, since ties depend on it.
    depth_HW = FRACTIONS / (inverse[2, 0] * across + inverse[2, 1] * down + inverse[2, 2])
    row_HW = np.rint((inverse[1, 0] * across + inverse[1, 1] * down + inverse[1, 2]) * depth_HW)
    column_HW = np.rint((inverse[0, 0] * across + inverse[0, 1] * down + inverse[0, 2]) * depth_HW)
    return row_HW / FRACTIONS, column_HW / FRACTIONS
