"""Bytes of one image to the frame that is scored, with its facts: the work that a decode process does."""

from __future__ import annotations

from dataclasses import dataclass, field

from cxr_ray.decode import DecodeLimits, Facts, Identifiers, decode, facts_of, identifiers_of
from cxr_ray.decode.coded_errors import coded_errors
from cxr_ray.errors import InputError
from cxr_ray.preprocess import preprocess


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to decode; the same for all images of a run."""

    policy: str
    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What became of one image.

    Attributes:
        pixels: the 300 x 340 frame as 102,000 bytes (row-major uint8), or None.
        error: why there are no pixels, or None.
    """

    facts: Facts = field(default_factory=Facts)
    identifiers: Identifiers = field(default_factory=Identifiers)
    flags: tuple[str, ...] = ()
    pixels: bytes | None = None
    error: InputError | None = None


def decode_content(content: bytes, recipe: Recipe) -> Decoded:
    """Decode and preprocess in this process. Whatever the bytes are, the answer is a value: no InputError leaves."""
    limits = DecodeLimits(max_bytes=recipe.max_bytes, max_pixels=recipe.max_pixels)
    flags: tuple[str, ...] = ()
    try:
        radiograph = decode(content, policy=recipe.policy, limits=limits)
        flags = radiograph.flags
        with coded_errors("frame", radiograph.facts, radiograph.identifiers):
            pixels = preprocess(radiograph.pixels).tobytes()
    except InputError as error:
        return Decoded(facts=facts_of(error), identifiers=identifiers_of(error), flags=flags, error=error)
    return Decoded(
        facts=radiograph.facts, identifiers=radiograph.identifiers, flags=radiograph.flags, pixels=pixels
    )
