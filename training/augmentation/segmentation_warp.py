"""Random warp of a picture and its lung mask for Module 1 (REFERENCE_SPEC section 10, TRAINING_SPEC section A).

Equal to the published generator (keras-preprocessing 1.1.0 to 1.1.2): same draws, same matrix, centre n / 2 + 0.5.
Later releases of that library turn the other way and use another centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.augmentation.sampling import sample


@dataclass(kw_only=True)
class SegmentationWarpSettings:
    """Ranges of the warp; the defaults are the published ones. Every picture is warped."""

    rotation_degrees: float = 90.0
    """Turn about the centre, drawn from plus or minus this angle."""
    shift: float = 0.1
    """Shift of rows and of columns, each drawn from plus or minus this share of the frame's size."""
    shear_degrees: float = 15.0
    """Shear angle, drawn from plus or minus this."""
    zoom: float = 0.1
    """Zoom of rows and of columns, each drawn from 1 minus this to 1 plus this; above 1 shrinks the picture."""
    flip_horizontal: bool = True
    """Flip left and right every second time."""
    flip_vertical: bool = True
    """Flip top and bottom every second time."""


@dataclass(frozen=True, kw_only=True)
class SegmentationWarp:
    """One drawn warp; the first six numbers describe the way from an output pixel to its place in the input."""

    theta_degrees: float
    shift_rows: float
    """Pixels; positive reads from further down."""
    shift_columns: float
    """Pixels; positive reads from further right."""
    shear_degrees: float
    zoom_rows: float
    zoom_columns: float
    flip_left_right: bool
    """After the warp, before ``flip_up_down``."""
    flip_up_down: bool
    rows: int
    """Size of the frame that the warp was drawn for."""
    columns: int

    def matrix(self) -> NDArray[np.float64]:
        """float64 ``[3, 3]``: (row, column, 1) of an output pixel -> its place in the input, flips left out."""
        theta, shear = np.deg2rad(self.theta_degrees), np.deg2rad(self.shear_degrees)
        turn = np.array([[np.cos(theta), -np.sin(theta), 0], [np.sin(theta), np.cos(theta), 0], [0, 0, 1]])
        slant = np.array([[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]])
        zoom = np.diag([self.zoom_rows, self.zoom_columns, 1.0])
        about_origin = turn @ _translation(self.shift_rows, self.shift_columns) @ slant @ zoom
        centre = (self.rows / 2 + 0.5, self.columns / 2 + 0.5)
        return _translation(*centre) @ about_origin @ _translation(-centre[0], -centre[1])


def draw_segmentation_warp(
    random: np.random.RandomState, settings: SegmentationWarpSettings, *, rows: int, columns: int
) -> SegmentationWarp:
    """The next warp of the stream for a frame of ``rows`` x ``columns``.

    Always takes 8 numbers from ``random``, also where a range is 0 or a flip is off, so that two settings draw the
    same angles from the same seed.
    """
    reach, angle, slant = settings.shift, settings.rotation_degrees, settings.shear_degrees
    # Arguments are evaluated from top to bottom: this order is the published order of draws.
    return SegmentationWarp(
        theta_degrees=random.uniform(-angle, angle),
        shift_rows=random.uniform(-reach, reach) * rows,
        shift_columns=random.uniform(-reach, reach) * columns,
        shear_degrees=random.uniform(-slant, slant),
        zoom_rows=random.uniform(1 - settings.zoom, 1 + settings.zoom),
        zoom_columns=random.uniform(1 - settings.zoom, 1 + settings.zoom),
        flip_left_right=bool(random.random_sample() < 0.5) and settings.flip_horizontal,
        flip_up_down=bool(random.random_sample() < 0.5) and settings.flip_vertical,
        rows=rows,
        columns=columns,
    )


def warp_pair(
    warp: SegmentationWarp, frame_HW_u8: NDArray[np.uint8], lungs_HW_u8: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """A picture and its mask under one warp: (image 0..1, lungs 0 or 1, non-lungs 0 or 1), float32 ``[H, W]`` each.

    ``lungs_HW_u8`` holds 0 and 255. Each mask is warped and rounded by itself, as published, so in the rare case of
    an exact tie a pixel is neither lung nor non-lung.

    Raises:
        ValueError: picture or mask not of the warp's size, or a mask of 0 and 1 instead of 0 and 255.
    """
    for name, plane in (("picture", frame_HW_u8), ("mask", lungs_HW_u8)):
        if plane.shape != (warp.rows, warp.columns):
            raise ValueError(
                f"expected a {name} of {warp.rows} x {warp.columns}, the size of the warp, found {plane.shape}"
            )
    if lungs_HW_u8.max() == 1:
        raise ValueError("expected a lung mask of 0 and 255, found 0 and 1; multiply it by 255")
    planes_PHW = np.stack((frame_HW_u8, lungs_HW_u8, 255 - lungs_HW_u8)).astype(np.float64)
    matrix = warp.matrix()
    down, across = np.arange(warp.rows)[:, None], np.arange(warp.columns)
    sampled_PHW = sample(
        planes_PHW,
        row_HW=matrix[0, 0] * down + (matrix[0, 1] * across + matrix[0, 2]),
        column_HW=matrix[1, 0] * down + (matrix[1, 1] * across + matrix[1, 2]),
        edge="repeated",
    )
    if warp.flip_left_right:
        sampled_PHW = sampled_PHW[:, :, ::-1]
    if warp.flip_up_down:
        sampled_PHW = sampled_PHW[:, ::-1]
    scaled_PHW = np.ascontiguousarray(sampled_PHW, dtype=np.float32)
    scaled_PHW *= np.float32(1 / 255)
    np.rint(scaled_PHW[1:], out=scaled_PHW[1:])
    return scaled_PHW[0], scaled_PHW[1], scaled_PHW[2]


def _translation(rows: float, columns: float) -> NDArray[np.float64]:
    return np.array([[1.0, 0.0, rows], [0.0, 1.0, columns], [0.0, 0.0, 1.0]])
