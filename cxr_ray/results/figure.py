"""The four-panel figure of REFERENCE_SPEC section 8: image, positive, negative, difference.

Drawn on black in the original's aspect ratio. Nothing but the image_id names the image: no path, no header
value. (Letters burned into the pixels themselves are shown, as in any viewer.)
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import MissingExtra
from cxr_ray.results.heat_maps import HeatMaps, decode_heat_map, decode_lung_mask, rebuild_maps

NOTICE: Final = "research software, not a medical device"
MOST_OPAQUE: Final = 0.5

_PANEL_INCHES: Final = 4.3
_DPI: Final = 110
_INK: Final = "#e8e8e8"
_FAINT: Final = "#9a9a9a"
_COLOURS: Final = "jet"  # as published, so that figures can be compared with the authors' own


def draw_figure(
    values: Mapping[str, Any], image_HW: NDArray[np.uint8] | None, *, weights: str | None = None
) -> bytes:
    """PNG bytes of the figure of one scored row.

    Args:
        values: the row (image_id, p_covid, lung_fraction, flags, decision, threshold_name, image_rows,
            image_columns, heat_lo, heat_hi, heat_map, lung_mask).
        image_HW: preprocessed image ``[300, 340]`` uint8; None draws the maps on the lung outline only.
        weights: name of the bundle for the last line, if known.

    Raises:
        UsageError: the row was not scored.
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra(
            "pictures need matplotlib; install it with: pip install 'cxr_ray[results]'"
        ) from error
    mask_HW = decode_lung_mask(values)
    maps = rebuild_maps(decode_heat_map(values), mask_HW)
    ratio = _pixel_ratio(values, mask_HW.shape)
    # Films of odd shape (a strip, a scan bed) keep their aspect inside a panel of bounded height.
    height = _PANEL_INCHES * float(np.clip(ratio * mask_HW.shape[0] / mask_HW.shape[1], 0.5, 1.6))
    figure = Figure(figsize=(4 * _PANEL_INCHES + 0.4, height + 1.65), dpi=_DPI, facecolor="black")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 4)
    top, bottom = 1 - 0.80 / figure.get_figheight(), 0.85 / figure.get_figheight()
    figure.subplots_adjust(left=0.008, right=0.992, top=top, bottom=bottom, wspace=0.03)
    for panel, (title, map_HW, limits, opacity, ends) in zip(panels, _panels(values, maps), strict=True):
        panel.set_axis_off()
        title = "Lungs" if map_HW is None and image_HW is None else title
        panel.set_title(title, color=_INK, fontsize=14, pad=6)
        _background(panel, image_HW, mask_HW, ratio)
        if map_HW is not None:
            _overlay(figure, panel, map_HW, limits, opacity, ratio, ends)
    _captions(figure, values, weights)
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", facecolor="black", metadata={"Description": NOTICE, "Software": "cxr_ray"}
    )
    return buffer.getvalue()


Panel = tuple[str, "NDArray[np.float32] | None", tuple[float, float], float, tuple[str, str]]


def _panels(values: Mapping[str, Any], maps: HeatMaps) -> list[Panel]:
    """Title, map, colour limits, opacity and the words at both ends of the colour bar, per panel."""
    positive = float(values["p_covid"])
    negative = 1.0 - positive
    ends, both = ("least", "most"), ("Covid−", "Covid+")
    unit = (0.0, 1.0)
    return [
        ("Image", None, unit, 0.0, ends),
        (f"Covid+  {positive:.3f}", maps.positive, unit, min(MOST_OPAQUE, positive), ends),
        (f"Covid−  {negative:.3f}", maps.negative, unit, min(MOST_OPAQUE, negative), ends),
        (
            f"Difference  {positive - negative:+.3f}".replace("-", "−"),
            maps.difference,
            (-1.0, 1.0),
            min(MOST_OPAQUE, abs(positive - negative)),
            both,
        ),
    ]


def _pixel_ratio(values: Mapping[str, Any], shape: tuple[int, ...]) -> float:
    """Height over width of one of our pixels on the original film, which was squeezed to 300 x 340."""
    rows, columns = values.get("image_rows"), values.get("image_columns")
    return (rows / shape[0]) / (columns / shape[1]) if rows and columns else 1.0


def _background(
    panel: Any, image_HW: NDArray[np.uint8] | None, mask_HW: NDArray[np.bool_], ratio: float
) -> None:
    if image_HW is None:
        panel.imshow(0.4 * mask_HW, cmap="gray", vmin=0, vmax=1, aspect=ratio)
        panel.contour(mask_HW.astype(np.float32), levels=[0.5], colors=[_FAINT], linewidths=0.9)
    else:
        panel.imshow(image_HW, cmap="gray", vmin=0, vmax=255, aspect=ratio)


def _overlay(
    figure: Any,
    panel: Any,
    map_HW: NDArray[np.float32],
    limits: tuple[float, float],
    opacity: float,
    ratio: float,
    ends: tuple[str, str],
) -> None:
    """The map over the panel, transparent outside the mask, and its colour bar below."""
    if np.isnan(map_HW).all():
        style = {"color": _INK, "fontsize": 12, "ha": "center", "va": "center"}
        panel.text(0.5, 0.5, "map undefined\n(constant)", transform=panel.transAxes, **style)
        return
    shown = np.ma.masked_invalid(map_HW)
    drawn = panel.imshow(
        shown,
        cmap=_COLOURS,
        vmin=limits[0],
        vmax=limits[1],
        alpha=opacity,
        aspect=ratio,
        interpolation="nearest",
    )
    panel.apply_aspect()
    box = panel.get_position()
    inch = 1 / figure.get_figheight()
    bar = figure.add_axes((box.x0 + 0.25 * box.width, box.y0 - 0.24 * inch, 0.5 * box.width, 0.09 * inch))
    colours = figure.colorbar(drawn, cax=bar, orientation="horizontal", ticks=[])
    colours.solids.set_alpha(1)
    colours.outline.set_visible(False)
    for side, anchor, word in ((-0.04, "right", ends[0]), (1.04, "left", ends[1])):
        bar.text(side, 0.5, word, color=_FAINT, fontsize=10, ha=anchor, va="center", transform=bar.transAxes)


def _captions(figure: Any, values: Mapping[str, Any], weights: str | None) -> None:
    inch = 1 / figure.get_figheight()
    facts = [f"image {values['image_id']}"]
    if values.get("lung_fraction") is not None:
        facts.append(f"lungs {values['lung_fraction']:.0%} of the frame")
    if values.get("decision"):
        facts.append(f"{values['decision']} at threshold {values['threshold_name']}")
    if values.get("flags"):
        facts.append(f"flags: {', '.join(values['flags'])}")
    style = {"color": _FAINT, "fontsize": 11}
    figure.text(0.01, 1 - 0.20 * inch, "   ·   ".join(facts), va="center", **style)
    notice = NOTICE if weights is None else f"{NOTICE}   ·   weights: {weights}"
    meaning = "colours show where the evidence lies inside these lungs, not how much there is"
    figure.text(0.01, 0.20 * inch, notice, va="center", **{**style, "color": _INK})
    figure.text(0.99, 0.20 * inch, meaning, va="center", ha="right", **style)
