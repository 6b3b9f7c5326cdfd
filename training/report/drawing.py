"""One look for all figures, and a figure as a data URI: SVG with letters as outlines, the same everywhere."""

from __future__ import annotations

import base64
import io
from typing import Any, Final

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

# Okabe and Ito's colours: told apart by colour-blind readers, and by lightness in a grey print.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#4d4d4d")
POSITIVE: Final = "#d55e00"
NEGATIVE: Final = "#0072b2"
INK: Final = "#22262b"
FAINT: Final = "#8a929b"
PALE: Final = "#e7ebef"
DASHES: Final = ("-", "--", "-.", ":")

NARROW: Final = (5.2, 3.9)
"""Inches of a figure that shares the width with a neighbour; letters stay readable on a telephone."""

_LOOK: Final = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "cxr_ray",  # the same data give the same bytes
}


class Drawing:
    """A matplotlib figure in the report's look; ``with Drawing() as axes: ...`` and then ``uri``.

    Args:
        size: inches.
        grid: rows and columns of axes.
    """

    def __init__(self, size: tuple[float, float] = NARROW, grid: tuple[int, int] = (1, 1)) -> None:
        self._size, self._grid = size, grid
        self._context: Any = matplotlib.rc_context(_LOOK)
        self.uri = ""

    def __enter__(self) -> Any:
        self._context.__enter__()
        self._canvas = Canvas(figsize=self._size, layout="constrained")
        FigureCanvasSVG(self._canvas)
        return self._canvas.subplots(*self._grid)

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        try:
            if kind is None:
                buffer = io.BytesIO()
                self._canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
                self.uri = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        finally:
            self._context.__exit__(kind, value, trace)


def colour(index: int) -> str:
    """Colour of the index-th line of a figure."""
    return COLOURS[index % len(COLOURS)]
