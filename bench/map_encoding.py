"""What the two small pictures of a row cost: milliseconds and bytes, for settings of the PNG encoder.

    python bench/map_encoding.py [OUTPUT]

OUTPUT: a score table whose heat maps and masks are encoded again; without it phantoms are scored first. Settings take
turns, picture by picture. The setting in use is marked; the median row of OUTPUT stands beside it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pyarrow.dataset as pads

sys.path.insert(0, str(Path(__file__).parents[1]))

from cxr_ray.phantoms import phantom
from cxr_ray.pipeline import map_encoding
from cxr_ray.pipeline.map_encoding import EVIDENCE_SHAPE, decode_heat_map_png, decode_lung_mask_png
from cxr_ray.preprocess import preprocess

ROWS = 40
REPEATS = 5
STRATEGIES = {
    "default": cv2.IMWRITE_PNG_STRATEGY_DEFAULT,
    "filtered": cv2.IMWRITE_PNG_STRATEGY_FILTERED,
    "huffman": cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY,
    "rle": cv2.IMWRITE_PNG_STRATEGY_RLE,
}
FILTERS = {
    "none": cv2.IMWRITE_PNG_FILTER_NONE,
    "paeth": cv2.IMWRITE_PNG_FILTER_PAETH,
    "up": cv2.IMWRITE_PNG_FILTER_UP,
}
LEVELS = (1, 2, 3, 6, 9)


def pictures(output: str | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """8-bit heat maps and boolean masks."""
    if output is None:
        from cxr_ray.scorer import Scorer
        from cxr_ray.weights import load_bundle

        films = np.stack([preprocess(phantom(np.random.default_rng(seed))) for seed in range(16)])
        scores = Scorer(load_bundle("default")).score(films)
        return list(scores.heat_map), list(scores.lung_mask)
    table = pads.dataset(f"{output}/scores").head(ROWS, columns=["heat_map", "lung_mask"]).drop_null()
    maps = [levels(png) for png in table.column("heat_map").to_pylist()]
    return maps, [decode_lung_mask_png(png) for png in table.column("lung_mask").to_pylist()]


def levels(png: bytes) -> np.ndarray:
    """Grey levels of a heat map."""
    found = np.rint(decode_heat_map_png(png, 0.0, 255.0)).astype(np.uint8)
    assert found.shape == EVIDENCE_SHAPE
    return found


def measure(images: list[np.ndarray], settings: dict[str, list[int]]) -> dict[str, tuple[float, float]]:
    """Milliseconds (the least of some repeats, mean over pictures) and median bytes."""
    times: dict[str, list[float]] = defaultdict(list)
    sizes: dict[str, list[int]] = defaultdict(list)
    for image in images:
        for name, flags in settings.items():
            found = []
            for _ in range(REPEATS):
                begin = time.perf_counter()
                png = cv2.imencode(".png", image, flags)[1]
                found.append(time.perf_counter() - begin)
            times[name].append(1000 * min(found))
            sizes[name].append(len(png))
    return {name: (statistics.mean(times[name]), statistics.median(sizes[name])) for name in settings}


def settings(bilevel: bool, used: tuple[tuple[int, int], ...]) -> dict[str, list[int]]:
    """All combinations, the one in use with a star."""
    found = {}
    for level in LEVELS:
        for strategy, strategy_number in STRATEGIES.items():
            for filter_name, filter_number in FILTERS.items():
                flags = {
                    cv2.IMWRITE_PNG_COMPRESSION: level,
                    cv2.IMWRITE_PNG_STRATEGY: strategy_number,
                    cv2.IMWRITE_PNG_FILTER: filter_number,
                } | ({cv2.IMWRITE_PNG_BILEVEL: 1} if bilevel else {})
                star = " *" if flags == dict(used) else ""
                found[f"{level} {strategy} {filter_name}{star}"] = [
                    number
                    for flag in sorted(flags.items(), key=lambda one: one[0] != cv2.IMWRITE_PNG_BILEVEL)
                    for number in flag
                ]
    return found


def main() -> None:
    maps, masks = pictures(sys.argv[1] if len(sys.argv) > 1 else None)
    grey = [mask.astype(np.uint8) * np.uint8(255) for mask in masks]
    for title, images, bilevel, used in (
        ("heat map", maps, False, map_encoding._HEAT_PNG),
        ("lung mask", grey, True, map_encoding._MASK_PNG),
    ):
        found = measure(images, settings(bilevel, used))
        print(f"\n{title}, {len(images)} pictures\n\n| setting | ms | bytes |\n| --- | --- | --- |")
        best: list[float] = []
        for name, (ms, size) in sorted(found.items(), key=lambda item: item[1]):
            # Only what no quicker setting beats in size.
            if name.endswith("*") or not best or size < min(best):
                best.append(size)
                print(f"| {name} | {ms:.3f} | {size:.0f} |")


if __name__ == "__main__":
    main()
