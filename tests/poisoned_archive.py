"""Archives with files that no decoder should survive, and the code that each of them must get.

Kinds named ``hook_...`` act only where ``CXR_RAY_TEST_HOOKS=1`` is set; the others are ordinary bad files.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from cxr_ray.phantoms import phantom

#: Kind -> quarantine code.
CODES = {
    "truncated": "truncated",
    "zero_bytes": "empty_file",
    "huge_header": "oversized",
    "bomb": "memory_limit",
    "hook_exit": "decoder_crashed",
    "hook_spin": "time_limit",
    "nan_pixels": "nonfinite_pixels",
}

#: The bomb inflates 280 kB to 288 MB of 16-bit grey, within ``max_pixels``: too much under this limit, the smallest.
#: Under the default limit it is decoded in about a CPU second, and refused for being of one grey level.
BOMB_SIDE = 12_000
DECODE_MEMORY = 2**28


def write_archive(folder: Path, images: int, poisoned: int = 0) -> dict[str, str | None]:
    """``images`` small PNG films; ``poisoned`` of them, evenly spread, are replaced by each kind in turn.

    Returns:
        File name -> expected code (None: scored). The films that are left are the same bytes as without poison.
    """
    folder.mkdir(parents=True)
    films = [_film(seed) for seed in range(12)]
    every = images // poisoned if poisoned else images + 1
    kinds = list(CODES)
    expected: dict[str, str | None] = {}
    for number in range(images):
        name = f"film-{number:05d}.png"
        content = _png(np.roll(films[number % len(films)], number // len(films), axis=1))
        expected[name] = None
        if number % every == every - 1 and number // every < poisoned:
            kind = kinds[(number // every) % len(kinds)]
            expected[name] = CODES[kind]
            content = _POISON[kind](content)
        (folder / name).write_bytes(content)
    return expected


def _film(seed: int) -> np.ndarray:
    pixels = phantom(np.random.default_rng(seed))
    return cv2.resize((pixels >> 4).astype(np.uint8), (340, 400), interpolation=cv2.INTER_AREA)


def _png(pixels: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", pixels)
    assert done
    return data.tobytes()


def _png_of(rows: int, columns: int, bits: int, pixel_data: bytes) -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, bits, 0, 0, 0, 0)),
        (b"IDAT", pixel_data),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _bomb(film: bytes) -> bytes:
    """A few hundred kilobytes that inflate a thousandfold, within ``max_pixels``."""
    packer = zlib.compressobj(9)
    line = b"\0" + bytes(2 * BOMB_SIDE)
    data = b"".join(packer.compress(line) for _ in range(BOMB_SIDE)) + packer.flush()
    return _png_of(BOMB_SIDE, BOMB_SIDE, 16, data)


def _nan_pixels(film: bytes) -> bytes:
    pixels = np.linspace(0, 1, 400 * 340, dtype=np.float32).reshape(400, 340)
    pixels[200, 170] = np.nan
    done, data = cv2.imencode(".tiff", pixels)
    assert done
    return data.tobytes()


_POISON: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda film: film[: len(film) // 2],
    "zero_bytes": lambda film: b"",
    "huge_header": lambda film: _png_of(30_000, 30_000, 8, zlib.compress(bytes(30_001))),
    "bomb": _bomb,
    "hook_exit": lambda film: b"CXRRAY-TEST-HOOK exit 1\n" + film,
    "hook_spin": lambda film: b"CXRRAY-TEST-HOOK spin 60\n" + film,
    "nan_pixels": _nan_pixels,
}
