"""The one boundary between decoders, which may fail in any way, and coded errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cxr_ray.decode.radiograph import Facts, Identifiers, attach_header
from cxr_ray.errors import InputError, MemoryLimit, UndecodableImage


@contextmanager
def coded_errors(
    kind: str, facts: Facts | None = None, identifiers: Identifiers | None = None
) -> Iterator[None]:
    """Turn whatever a decoder raises into a coded InputError, carrying the header once it is known.

    Decoders raise anything on hostile bytes (KeyError, struct.error, RecursionError, ...), hence the
    broad clause. Its cause is cut off on purpose: the text may quote attribute values, and would reach
    logs; the type of the exception stays in the message.

    Args:
        kind: What is being decoded, for the message ("PNG", "JPEG 2000 pixel data", ...).
        facts, identifiers: What the header said, or None while it is still being read.

    Raises:
        InputError: as raised inside, or MemoryLimit (out of memory), or UndecodableImage (the rest).
    """
    try:
        try:
            yield
        except InputError:
            raise
        except MemoryError:
            raise MemoryLimit(f"decoding the {kind} needs more memory than there is") from None
        except Exception as error:
            raise UndecodableImage(f"the {kind} cannot be decoded ({type(error).__name__})") from None
    except InputError as error:
        if facts is not None:
            attach_header(error, facts, identifiers)
        raise
