"""The compiled code for this processor: found, opened and checked. Needs torch only to learn what the processor can."""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import cache

VERSION = 1
"""Of the compiled functions, as ``segmenter.cpp`` has it: another build is left alone."""
MODULES = {"AVX512": "_cxr_ray_avx512", "AVX2": "_cxr_ray_avx2"}
"""Instruction set, as torch names it -> name of the build (pyproject.toml). They lie beside the package, not in it:
a job's working directory brings the sources to a cluster, where only the installed package has been compiled."""


@dataclass(frozen=True)
class Library:
    """One build.

    Attributes:
        instructions: key of ``MODULES``.
        functions: the opened library.
        lanes: floats in a vector; the weights are packed for it.
        pixels: columns of a frame must be a multiple of it.
    """

    instructions: str
    functions: ctypes.CDLL
    lanes: int
    pixels: int


def built() -> list[str]:
    """Instruction sets that there is a build for. Opens nothing and imports no torch."""
    return [name for name, module in MODULES.items() if _file(module) is not None]


@cache
def find_library() -> Library | None:
    """The best build that this processor can run; None where there is none."""
    import torch

    able = torch.backends.cpu.get_cpu_capability()
    usable = {"AVX512": ("AVX512", "AVX2"), "AVX2": ("AVX2",)}.get(able, ())
    return next(filter(None, map(open_library, usable)), None)


def open_library(instructions: str) -> Library | None:
    """The build for one instruction set; None where it is missing or of another version."""
    file = _file(MODULES[instructions])
    if file is None:
        return None
    try:
        functions = ctypes.CDLL(file)
        if functions.fused_version() != VERSION:
            return None
        for name in ("fused_workspace", "fused_path_workspace", "fused_scattering_workspace"):
            getattr(functions, name).restype = ctypes.c_long
        for name in ("fused_segment", "fused_path", "fused_scatter"):
            getattr(functions, name).restype = None
    except (OSError, AttributeError):  # another machine's file, or an older one
        return None
    return Library(instructions, functions, functions.fused_lanes(), functions.fused_pixels())


def _file(module: str) -> str | None:
    spec = importlib.util.find_spec(module)
    return spec.origin if spec is not None and spec.has_location else None
