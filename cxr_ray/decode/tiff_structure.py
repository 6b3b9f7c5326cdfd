"""TIFF directories: header and completeness (TIFF 6.0 and BigTIFF)."""

from __future__ import annotations

from dataclasses import dataclass

from cxr_ray.decode.radiograph import DecodeLimits
from cxr_ray.decode.raster_header import RasterHeader, unpack_at
from cxr_ray.errors import OversizedInput, TruncatedImage, UndecodableImage, UnsupportedEncoding

NEW_SUBFILE_TYPE, COLUMNS, ROWS, BITS, PHOTOMETRIC = 254, 256, 257, 258, 262
STRIP_OFFSETS, STRIP_SIZES, TILE_COLUMNS, TILE_ROWS, TILE_OFFSETS, TILE_SIZES = 273, 279, 322, 323, 324, 325
TERMS = {0: "MONOCHROME1", 1: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR", 5: "CMYK", 6: "RGB", 8: "RGB"}
_TYPE_WIDTHS = ((1, (1, 2, 6, 7)), (2, (3, 8)), (4, (4, 9, 11, 13)), (8, (5, 10, 12, 16, 17, 18)))
TYPE_SIZES = {kind: width for width, kinds in _TYPE_WIDTHS for kind in kinds}
INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}  # unsigned field types that hold sizes and offsets
MAX_PAGES = 64  # directories looked at; enough to tell one page from many


@dataclass(frozen=True)
class _Layout:
    """Byte order and field widths of classic TIFF or BigTIFF."""

    order: str
    count: str  # of directory entries
    word: str  # value counts and offsets

    @property
    def entry_size(self) -> int:
        return 20 if self.word == "Q" else 12

    @property
    def inline_size(self) -> int:
        return 8 if self.word == "Q" else 4


Directory = dict[int, tuple[int, ...]]


def read_header(data: bytes) -> RasterHeader:
    """Size and layout of the first page; ``frames`` counts pages that are no thumbnails.

    Raises:
        TruncatedImage: a directory or a value in it lies behind the end.
        UndecodableImage: no directory, or one without a size.
    """
    pages = _directories(data)
    first = pages[0]
    rows, columns = (first.get(tag, (0,))[0] for tag in (ROWS, COLUMNS))
    if not rows or not columns:
        raise UndecodableImage("the TIFF header states no size")
    full = sum(not page.get(NEW_SUBFILE_TYPE, (0,))[0] & 0b101 for page in pages[1:])  # no thumbnail or mask
    photometric = TERMS.get(first.get(PHOTOMETRIC, (1,))[0])
    if photometric is None:
        raise UnsupportedEncoding("a TIFF of an unusual colour model; grey, RGB, palette and CMYK are read")
    bits = first.get(BITS, (1,))[0]
    return RasterHeader(rows=rows, columns=columns, bits=bits, photometric=photometric, frames=1 + full)


def check_complete(data: bytes, limits: DecodeLimits) -> None:
    """Demand that every strip or tile of the first page lies inside the data.

    Raises:
        TruncatedImage: a strip or tile runs past the end, or none are listed.
        UndecodableImage: different numbers of offsets and sizes.
        OversizedInput: a tile larger than an image may be.
    """
    page = _directories(data)[0]
    tile_rows, tile_columns = (page.get(tag, (1,))[0] for tag in (TILE_ROWS, TILE_COLUMNS))
    if tile_rows * tile_columns > limits.max_pixels:
        raise OversizedInput(f"the TIFF has tiles of {tile_rows} x {tile_columns} pixels")
    for offsets_tag, sizes_tag in ((STRIP_OFFSETS, STRIP_SIZES), (TILE_OFFSETS, TILE_SIZES)):
        offsets, sizes = page.get(offsets_tag, ()), page.get(sizes_tag, ())
        if not offsets:
            continue
        if len(offsets) != len(sizes):
            raise UndecodableImage("the TIFF lists different numbers of strip offsets and sizes")
        if any(offset + size > len(data) for offset, size in zip(offsets, sizes, strict=True)):
            raise TruncatedImage("the TIFF ends before its pixel data does")
        return
    raise TruncatedImage("the TIFF lists no pixel data")


def _directories(data: bytes) -> list[Directory]:
    """All page directories, at most MAX_PAGES; integer fields only."""
    order = "<" if data[:2] == b"II" else ">"
    (version,) = unpack_at(order + "H", data, 2)
    if version == 43:
        layout = _Layout(order, "Q", "Q")
        (offset,) = unpack_at(order + "Q", data, 8)
    else:
        layout = _Layout(order, "H", "I")
        (offset,) = unpack_at(order + "I", data, 4)
    pages: list[Directory] = []
    seen: set[int] = set()
    while offset and offset not in seen and len(pages) < MAX_PAGES:
        seen.add(offset)
        page, offset = _read_directory(data, offset, layout)
        pages.append(page)
    if not pages:
        raise UndecodableImage("the TIFF has no directory")
    return pages


def _read_directory(data: bytes, offset: int, layout: _Layout) -> tuple[Directory, int]:
    """One directory and the offset of the next (0 for none)."""
    (entries,) = unpack_at(layout.order + layout.count, data, offset)
    offset += 8 if layout.count == "Q" else 2
    if entries * layout.entry_size > len(data) - offset:
        raise TruncatedImage("the TIFF ends inside a directory")
    page: Directory = {}
    for _ in range(entries):
        tag, kind, count = unpack_at(f"{layout.order}HH{layout.word}", data, offset)
        value_offset = offset + layout.entry_size - layout.inline_size
        size = TYPE_SIZES.get(kind, 1) * count
        if size > layout.inline_size:
            (value_offset,) = unpack_at(layout.order + layout.word, data, value_offset)
        if value_offset + size > len(data):
            raise TruncatedImage("the TIFF ends before a value of its directory")
        if kind in INTEGERS and count:
            page[tag] = unpack_at(f"{layout.order}{count}{INTEGERS[kind]}", data, value_offset)
        offset += layout.entry_size
    (following,) = unpack_at(layout.order + layout.word, data, offset)
    return page, following
