"""Put the form for GPUs of Module 1 into a network, once it has shown on the spot that it computes the same."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from cxr_ray.nets.network import Network
from cxr_ray.nets.segmenter import Segmenter

ABSOLUTE, RELATIVE = 1e-4, 1e-5
"""Logits may differ by so much, or by so much of the largest one; 2e-5 is what another order of summation makes."""


def has_triton() -> bool:
    """Whether triton is installed. Imports nothing."""
    return importlib.util.find_spec("triton") is not None


def accelerate(network: Network, frame: tuple[int, int]) -> str | None:
    """Replace the segmenter in place by Triton kernels, if they run and agree with it on two made frames.

    Args:
        network: in eval mode and not folded, on the device that it will run on.
        frame: rows and columns.

    Returns:
        None, or a clause that says why the network was left as it is.
    """
    assert isinstance(network.segmenter, Segmenter)
    try:
        from cxr_ray.nets.gpu.segmenter import GpuSegmenter

        form = GpuSegmenter(network.segmenter)
        x_BHW = made_frames(*frame).to(network.level_table.device)
        with torch.inference_mode():
            expected, found = network.segmenter(x_BHW), form(x_BHW)
    except Exception as error:  # of compilers, drivers and chips, each with errors of its own
        return f"the Triton kernels failed ({type(error).__name__}: {_first_line(error)})"
    form.scratch.clear()
    difference = float((found - expected).abs().max())
    allowed = max(ABSOLUTE, RELATIVE * float(expected.abs().max()))
    if not difference <= allowed:  # so that NaN counts as a difference
        return f"the Triton kernels differ by {difference:.1e} in logits, more than {allowed:.1e}"
    network.segmenter = form
    return None


def made_frames(rows: int, columns: int) -> Tensor:
    """Two frames of noise over a slope, float32 ``[2, rows, columns]``, 0 to 1; the same at every call."""
    noise = torch.rand(2, rows, columns, generator=torch.Generator().manual_seed(0))
    return 0.3 * noise + 0.7 * torch.linspace(0, 1, columns)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
