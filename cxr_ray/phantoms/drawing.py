"""Synthetic chest phantoms: drawings that read as frontal chest films at a glance, made from no one's data.

They serve tests, docs and the sample archive. A score on a phantom means nothing: no network was trained on
such pictures, and nothing in them is anatomy or disease.

A phantom is a map of how much a ray is weakened: body minus lungs plus heart, bones and vessels, then noise.
All lengths are fractions of the frame; u runs left to right and v top to bottom, both 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[Any]
"""``[rows, columns]`` float32: weakening of the ray, about 0 (air) to 1.6 (spine)."""

MAXIMUM: Final = 4095
"""Largest pixel value: 12 bits, as most digital films have."""
LABEL: Final = "SYNTHETIC"


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One drawing and what is known about it."""

    pixels: NDArray[np.uint16]
    """``[rows, columns]``, 0 (black, air) to 4095 (white, dense); the word SYNTHETIC is burned in."""
    lungs: NDArray[np.bool_]
    """``[rows, columns]``: where the lung fields were drawn (heart and mediastinum left out)."""
    has_opacities: bool
    """Whether patchy white areas were drawn into the lungs."""


def phantom(
    rng: np.random.Generator, *, rows: int | None = None, columns: int | None = None
) -> NDArray[np.uint16]:
    """Pixels of one phantom, ``[rows, columns]`` uint16 of 0 to 4095; see :func:`draw_phantom`."""
    return draw_phantom(rng, rows=rows, columns=columns).pixels


def draw_phantom(
    rng: np.random.Generator,
    *,
    rows: int | None = None,
    columns: int | None = None,
    opacities: bool | None = None,
) -> Phantom:
    """Draw one frontal chest phantom; the same state of ``rng`` gives the same pixels.

    Args:
        rows: height in pixels, at least 64; 440 to 600 by chance if None.
        columns: width in pixels, at least 64; 0.85 to 1.1 of the height by chance if None.
        opacities: draw patchy white areas into the lungs; by the toss of a coin if None.

    Raises:
        ValueError: a frame under 64 x 64.
    """
    rows = int(rng.integers(440, 601)) if rows is None else rows
    columns = int(rows * rng.uniform(0.85, 1.1)) if columns is None else columns
    if rows < 64 or columns < 64:
        raise ValueError(f"expected at least 64 x 64 pixels, got {rows} x {columns}")
    has_opacities = bool(rng.random() < 0.5) if opacities is None else opacities
    v_HW, u_HW = np.meshgrid(
        (np.arange(rows, dtype=np.float32) + 0.5) / rows,
        (np.arange(columns, dtype=np.float32) + 0.5) / columns,
        indexing="ij",
    )
    # The patient is never quite centred nor quite upright.
    tilt = rng.uniform(-0.03, 0.03)
    u_HW = u_HW + np.float32(rng.uniform(-0.02, 0.02)) + np.float32(tilt) * (v_HW - 0.5)

    body_HW = _body(u_HW, v_HW)
    top, base = rng.uniform(0.10, 0.14), rng.uniform(0.74, 0.80)
    left_HW = _lung(u_HW, v_HW, side=-1, top=top, base=base - 0.035)  # the liver lifts this dome
    right_HW = _lung(u_HW, v_HW, side=1, top=top, base=base)
    heart_HW = _heart(u_HW, v_HW, width=rng.uniform(0.12, 0.16), base=base)
    lungs_HW = np.maximum(left_HW, right_HW) * (1 - heart_HW)

    weakening_HW = 0.95 * body_HW - 0.62 * lungs_HW * body_HW
    weakening_HW += 0.06 * heart_HW + _spine(u_HW, v_HW) + _vessels(rng, u_HW, v_HW, lungs_HW)
    weakening_HW += _ribs(rng, u_HW, v_HW, np.maximum(left_HW, right_HW)) + _clavicles(u_HW, v_HW, top)
    weakening_HW += 0.10 * _soft(v_HW - base - 0.02, 0.03) * body_HW  # belly
    weakening_HW -= 0.20 * _ellipse(u_HW, v_HW, (0.65, base + 0.075), (0.06, 0.032), 0.7)  # stomach bubble
    if has_opacities:
        weakening_HW += 0.42 * _patches(rng, u_HW, v_HW, lungs_HW)
    return Phantom(
        pixels=_expose(rng, weakening_HW), lungs=lungs_HW > np.float32(0.5), has_opacities=has_opacities
    )


def _soft(distance_HW: Map, width: float) -> Map:
    """0 to 1 over about ``width`` around distance 0."""
    return np.asarray(0.5 + 0.5 * np.tanh(2.0 * distance_HW / width), dtype=np.float32)


def _ellipse(
    u_HW: Map, v_HW: Map, centre: tuple[float, float], radii: tuple[float, float], blur: float
) -> Map:
    radius_HW = np.hypot((u_HW - centre[0]) / radii[0], (v_HW - centre[1]) / radii[1])
    return _soft(1.0 - radius_HW, blur)


def _body(u_HW: Map, v_HW: Map) -> Map:
    """Trunk with shoulders and neck; thinner towards the flanks."""
    half_HW = 0.455 - 0.30 * np.exp(-(((v_HW + 0.03) / 0.085) ** 2)) + 0.02 * v_HW
    edge_HW = (half_HW - np.abs(u_HW - 0.5)).astype(np.float32)
    depth_HW = np.sqrt(np.clip(edge_HW / 0.30, 0, 1))
    return np.asarray(_soft(edge_HW, 0.03) * (0.62 + 0.38 * depth_HW), dtype=np.float32)


def _lung(u_HW: Map, v_HW: Map, *, side: int, top: float, base: float) -> Map:
    """One lung field: a narrow apex, a wide base on a dome. ``side`` -1 is the viewer's left."""
    out_HW = side * (u_HW - 0.5)  # grows from the midline outwards
    height_HW = np.clip((v_HW - top) / (base - top), 0, 1)
    outer_HW = 0.16 + 0.235 * height_HW**0.5
    inner_HW = 0.055 + 0.012 * np.cos(3 * height_HW) + 0.02 * height_HW**2
    apex_HW = v_HW - (top + 0.75 * (out_HW - 0.135) ** 2 / 0.10)
    dome_HW = base + 0.55 * (out_HW - 0.19) ** 2 + 0.10 * np.clip(out_HW - 0.27, 0, 1) - v_HW
    return (
        _soft(outer_HW - out_HW, 0.016)
        * _soft(out_HW - inner_HW, 0.02)
        * _soft(apex_HW, 0.03)
        * _soft(dome_HW, 0.014)
    )


def _heart(u_HW: Map, v_HW: Map, *, width: float, base: float) -> Map:
    """Heart shadow to the viewer's right, right atrium, aortic knob and pulmonary trunk."""
    ventricle_HW = _ellipse(u_HW, v_HW, (0.545, base - 0.12), (width, 0.16), 0.14)
    atrium_HW = _ellipse(u_HW, v_HW, (0.47, base - 0.13), (0.062, 0.15), 0.30)
    knob_HW = _ellipse(u_HW, v_HW, (0.542, 0.31), (0.04, 0.055), 0.45)
    trunk_HW = _ellipse(u_HW, v_HW, (0.545, 0.43), (0.05, 0.13), 0.5)
    return np.maximum(np.maximum(ventricle_HW, atrium_HW), np.maximum(knob_HW, trunk_HW))


def _spine(u_HW: Map, v_HW: Map) -> Map:
    """A bright column with the faint steps of the vertebrae, and the dark windpipe above."""
    column_HW = np.exp(-(((u_HW - 0.5) / 0.032) ** 2)) * (0.16 + 0.03 * np.cos(2 * np.pi * v_HW / 0.062))
    windpipe_HW = _soft(0.018 - np.abs(u_HW - 0.497), 0.012) * _soft(0.33 - v_HW, 0.04)
    return np.asarray(column_HW - 0.13 * windpipe_HW, dtype=np.float32)


def _ribs(rng: np.random.Generator, u_HW: Map, v_HW: Map, lungs_HW: Map) -> Map:
    """Nine pairs of rear ribs, bright rims around a paler shaft, and fainter front ends that slope down."""
    ribs_HW = np.zeros_like(u_HW)
    inside_HW = cv2.GaussianBlur(lungs_HW, (0, 0), 0.012 * lungs_HW.shape[1])
    out_HW = np.abs(u_HW - 0.5)
    pitch = rng.uniform(0.070, 0.076)
    for pair in range(9):
        fall = 0.25 + 0.16 * pair  # lower ribs hang more steeply
        rear_HW = 0.13 + pitch * pair + fall * (out_HW - 0.07) ** 2 * 3.2 - 0.25 * out_HW + 0.02
        front_HW = 0.30 + pitch * pair - 0.85 * (out_HW - 0.10)
        for centre_HW, half, shade in ((rear_HW, 0.013, 0.07), (front_HW, 0.012, 0.03)):
            distance_HW = np.abs(v_HW - centre_HW)
            rim_HW = np.exp(-(((distance_HW - half) / 0.0045) ** 2))
            ribs_HW += shade * (_soft(half - distance_HW, 0.006) + 0.6 * rim_HW)
    return np.asarray(ribs_HW * (0.12 + 0.88 * inside_HW) * (inside_HW > 0.01), dtype=np.float32)


def _clavicles(u_HW: Map, v_HW: Map, top: float) -> Map:
    """Two bars that rise gently outwards over the lung tops."""
    out_HW = np.abs(u_HW - 0.5)
    centre_HW = top + 0.075 - 0.22 * (out_HW - 0.06) + 0.02 * np.sin(14 * out_HW)
    bar_HW = _soft(0.014 - np.abs(v_HW - centre_HW), 0.010)
    return 0.15 * bar_HW * _soft(out_HW - 0.05, 0.02) * _soft(0.36 - out_HW, 0.03)


def _vessels(rng: np.random.Generator, u_HW: Map, v_HW: Map, lungs_HW: Map) -> Map:
    """Lines that branch outwards from both hila and fade, plus the hila themselves."""
    canvas_HW = np.zeros(u_HW.shape, dtype=np.uint8)
    rows, columns = u_HW.shape
    for side in (-1, 1):
        start = np.array([0.5 + side * 0.075, 0.43])
        for angle in np.linspace(-1.25, 1.35, 11) + rng.normal(0, 0.08, 11):
            point, heading, thick = start.copy(), float(angle), rng.uniform(0.007, 0.011)
            for _ in range(9):
                step = point + 0.026 * np.array([side * np.cos(heading), np.sin(heading)])
                ends = [(int(p[0] * columns), int(p[1] * rows)) for p in (point, step)]
                width = max(1, round(thick * columns))
                cv2.line(canvas_HW, ends[0], ends[1], int(255 * thick / 0.011), width, cv2.LINE_AA)
                point, heading, thick = step, heading + rng.normal(0, 0.22), thick * 0.82
    fine_HW = cv2.GaussianBlur(canvas_HW.astype(np.float32) / 255, (0, 0), 0.0025 * columns)
    out_HW = np.abs(u_HW - 0.5)
    hila_HW = _soft(1.0 - np.hypot((out_HW - 0.085) / 0.035, (v_HW - 0.44) / 0.07), 0.9)
    return np.asarray((0.20 * fine_HW + 0.14 * hila_HW) * lungs_HW, dtype=np.float32)


def _patches(rng: np.random.Generator, u_HW: Map, v_HW: Map, lungs_HW: Map) -> Map:
    """Cloudy areas of uneven density, mostly at the outer and lower lung."""
    cloud_HW = np.zeros_like(u_HW)
    for _ in range(int(rng.integers(3, 7))):
        side = 1 if rng.random() < 0.5 else -1
        centre = (0.5 + side * rng.uniform(0.18, 0.32), rng.uniform(0.42, 0.72))
        radii = (rng.uniform(0.05, 0.09), rng.uniform(0.05, 0.10))
        cloud_HW = np.maximum(cloud_HW, _ellipse(u_HW, v_HW, centre, radii, 0.9))
    coarse = rng.normal(0, 1, (24, 24)).astype(np.float32)
    texture_HW = cv2.resize(coarse, u_HW.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(cloud_HW * np.clip(0.75 + 0.35 * texture_HW, 0.1, 1.3) * lungs_HW, dtype=np.float32)


def _expose(rng: np.random.Generator, weakening_HW: Map) -> NDArray[np.uint16]:
    """Blur as a detector does, add quantum noise, scale to 12 bits and burn the label in."""
    rows, columns = weakening_HW.shape
    grey_HW = cv2.GaussianBlur(weakening_HW, (0, 0), 0.0016 * columns)
    noise_HW = rng.standard_normal((rows, columns), dtype=np.float32)
    # Fewer quanta arrive behind dense tissue, so noise grows with the weakening.
    grey_HW += cv2.GaussianBlur(noise_HW, (0, 0), 0.7) * (0.008 + 0.012 * np.clip(grey_HW, 0, 2))
    pixels_HW = np.clip(150 + 2300 * grey_HW, 0, MAXIMUM).astype(np.uint16)
    scale = columns / 900
    place = (int(0.015 * columns), int(0.985 * rows))
    letters_HW = np.zeros(
        (rows, columns), dtype=np.uint8
    )  # OpenCV writes text and smooth lines on 8 bits only
    thickness = max(1, columns // 260)
    cv2.putText(letters_HW, LABEL, place, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
    return np.maximum(pixels_HW, letters_HW.astype(np.uint16) * 13)
