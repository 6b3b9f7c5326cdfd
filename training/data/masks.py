"""Lung masks of the frames: PNG files the size of their pictures, resized to 300 x 340.

Resizing is nearest neighbour with half-pixel centres: output pixel i reads input pixel
floor((i + 0.5) * in / out), in whole-number arithmetic. OpenCV's INTER_NEAREST_EXACT and torch's
"nearest-exact" mean the same and differ only where that is a whole number, which they may round down
(held by a test).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_ray.archives.addresses import Addresses
from cxr_ray.archives.storage import explain, is_storage_error, open_storage
from cxr_ray.errors import StorageReadError, TrainingDataError
from cxr_ray.preprocess import COLUMNS, ROWS
from training.data.example import Example
from training.data.frames import Frames

_READERS = 8


def load_masks(frames: Frames, *, root: str, options: Mapping[str, Any] | None = None) -> NDArray[np.uint8]:
    """Lung masks ``[N, 300, 340]`` of the frames: uint8, 1 inside the lungs, else 0.

    Args:
        frames: of ``load_frames``.
        root: address that relative masks start from, see ``manifest_root``.
        options: fsspec options of the masks.

    Raises:
        TrainingDataError: an example without mask, a mask that is not there, cannot be decoded, has another
            size than its picture, more than two grey levels, or no lung at all.
        StorageReadError: the storage failed.
    """
    addresses = Addresses(open_storage(root, options))
    sizes = zip(frames.examples, frames.source_rows.tolist(), frames.source_columns.tolist(), strict=True)
    with ThreadPoolExecutor(_READERS) as readers:
        masks = readers.map(lambda given: _load(addresses, *given), list(sizes))
        lungs_NHW = np.empty((len(frames), ROWS, COLUMNS), np.uint8)
        for place, mask_HW in enumerate(masks):
            lungs_NHW[place] = mask_HW
    return lungs_NHW


def resize_mask(mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A mask ``[H, W]`` at 300 x 340, nearest neighbour with half-pixel centres."""
    return mask_HW[np.ix_(_nearest(mask_HW.shape[0], ROWS), _nearest(mask_HW.shape[1], COLUMNS))]


def _nearest(size: int, wanted: int) -> NDArray[np.int64]:
    """The input pixel of each of ``wanted`` output pixels."""
    return (2 * np.arange(wanted, dtype=np.int64) + 1) * size // (2 * wanted)


def _load(addresses: Addresses, example: Example, rows: int, columns: int) -> NDArray[np.uint8]:
    if example.mask is None:
        raise TrainingDataError(f"{example.called} names no mask; segmentation needs one for every picture")
    levels_HW = _read(addresses, example)
    if levels_HW.shape != (rows, columns):
        raise TrainingDataError(
            f"the mask of {example.called} is {levels_HW.shape[0]} x {levels_HW.shape[1]} pixels (rows x columns), "
            f"but its picture is {rows} x {columns}; give a mask of the picture's own size"
        )
    levels = np.unique(levels_HW)
    if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
        raise TrainingDataError(
            f"the mask of {example.called} holds {len(levels)} grey levels; expected 0 outside the lungs and one "
            "other value inside"
        )
    if not levels.any():
        raise TrainingDataError(f"the mask of {example.called} is empty; drop the row or draw the lungs")
    return resize_mask((levels_HW > 0).astype(np.uint8))


def _read(addresses: Addresses, example: Example) -> NDArray[Any]:
    uri = addresses.resolve(example.mask or "")
    storage = addresses.storage_of(uri)
    try:
        encoded = storage.fs.cat_file(storage.path_of(uri))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise TrainingDataError(
            f"the mask of {example.called} is not there; restore the file or mend the manifest's mask column"
        ) from error
    except Exception as error:
        if not is_storage_error(error):
            raise
        raise StorageReadError(f"the mask of {example.called} cannot be read: {explain(error)}") from error
    levels_HW = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    if levels_HW is None:
        raise TrainingDataError(f"the mask of {example.called} is no picture that can be decoded; give a PNG")
    return np.asarray(levels_HW)
