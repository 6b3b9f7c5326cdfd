"""Put the forms for GPUs into a network, once they have shown on the spot that they compute the same."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from cxr_ray.nets.ensemble import Ensemble
from cxr_ray.nets.gate import look_up
from cxr_ray.nets.network import Network
from cxr_ray.nets.segmenter import Segmenter

ABSOLUTE = 1e-4
"""By so much logits and path maps may always differ; 2e-5 is what another order of summation makes of logits."""
RELATIVE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}
"""By storage type of Module 1: or by so much of the largest one. For 16 bits five times what golden films showed."""


def has_triton() -> bool:
    """Whether triton is installed. Imports nothing."""
    return importlib.util.find_spec("triton") is not None


def accelerate(network: Network, frame: tuple[int, int], dtype: torch.dtype = torch.float32) -> str | None:
    """Replace segmenter and ensemble in place by Triton kernels, if they run and agree with them on two made frames.

    An ensemble of more than two classes stays as it is.

    Args:
        network: in eval mode and not folded, on the device that it will run on.
        frame: rows and columns.
        dtype: storage type of Module 1; Module 2 is float32 in any case.

    Returns:
        None, or a clause that says why the network was left as it is.
    """
    assert isinstance(network.segmenter, Segmenter)
    assert isinstance(network.ensemble, Ensemble)
    pixels_BHW = made_frames(2, *frame).to(network.level_table.device)
    try:
        from cxr_ray.nets.gpu.ensemble import GpuEnsemble, able
        from cxr_ray.nets.gpu.segmenter import GpuSegmenter

        with torch.inference_mode():
            segmenter = GpuSegmenter(network.segmenter, dtype=dtype)
            x_BHW = look_up(network.level_table, pixels_BHW)
            difference = _difference("logits", segmenter(x_BHW), network.segmenter(x_BHW), RELATIVE[dtype])
            segmenter.scratch.clear()
            ensemble = None
            if difference is None and able(network.ensemble):
                ensemble = GpuEnsemble(network.ensemble)
                # Any mask with an inside and an outside.
                inputs = network.ensemble.inputs(look_up(network.standard_table, pixels_BHW), x_BHW)
                difference = _difference(
                    "path maps", ensemble(inputs), network.ensemble(inputs), RELATIVE[torch.float32]
                )
                ensemble.scratch.clear()
    except Exception as error:  # of compilers, drivers and chips, each with errors of its own
        return f"the Triton kernels failed ({type(error).__name__}: {first_line(error)})"
    if difference is not None:
        return difference
    network.segmenter = segmenter
    if ensemble is not None:
        network.ensemble = ensemble
    return None


def made_frames(count: int, rows: int, columns: int) -> Tensor:
    """Frames of noise over a slope, uint8 ``[count, rows, columns]``; the same at every call."""
    noise = torch.rand(count, rows, columns, generator=torch.Generator().manual_seed(0))
    return (255 * (0.3 * noise + 0.7 * torch.linspace(0, 1, columns))).to(torch.uint8)


def _difference(what: str, found: Tensor, expected: Tensor, relative: float) -> str | None:
    """A clause that says how far apart they are; None where that is near enough."""
    difference = float((found - expected).abs().max())
    allowed = max(ABSOLUTE, relative * float(expected.abs().max()))
    if difference <= allowed:  # NaN is not
        return None
    return f"the Triton kernels differ by {difference:.1e} in {what}, more than {allowed:.1e}"


def first_line(error: Exception) -> str:
    """Of its message; compilers and drivers add pages."""
    return next(iter(str(error).splitlines()), "")
