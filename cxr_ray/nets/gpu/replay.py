"""A network on a GPU without the cost of launching it: recorded once as a CUDA graph, and fed from pinned memory.

Needs CUDA, but not triton. A recorded network computes what it computed when it was recorded, kernel for kernel, so its
values are those of the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_ray.nets.gpu.network import made_frames
from cxr_ray.nets.network import Activations

WARM_UPS = 3
"""Calls before the recording, in which libraries choose algorithms and kernels are compiled."""
SLOTS = 2
"""Batches in pinned memory: one whose copy the network waits for, one on its way."""


class Replay:
    """A network of fixed input shape on a GPU.

    ``upload`` a batch, then ``run`` it; the next one can be uploaded while it runs. What ``run`` returns is overwritten
    by the next ``run``.

    Attributes:
        waiting: batches uploaded and not run.

    Args:
        network: uint8 pixels -> what it computes; its weights and buffers must stay where they are in memory.
        shape: of the pixels, ``[B, H, W]``.
        device: a CUDA device.

    Raises:
        RuntimeError: of CUDA, where the network cannot be recorded, or memory is short.
    """

    def __init__(
        self, network: Callable[[Tensor], Activations], shape: tuple[int, int, int], device: torch.device
    ) -> None:
        self.device = device
        self._pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._pinned = [torch.zeros(shape, dtype=torch.uint8, pin_memory=True) for _ in range(SLOTS)]
        self._staged = [torch.zeros_like(self._pixels) for _ in range(SLOTS)]
        with torch.cuda.device(device):
            self._copying = torch.cuda.Stream()
            self._copied = [torch.cuda.Event() for _ in range(SLOTS)]
            self._taken = [torch.cuda.Event() for _ in range(SLOTS)]
            # Kept, and recorded on: cuBLAS has a workspace per stream, and torch's own stream for recording is one for
            # the process, of the device that recorded first.
            self._aside = torch.cuda.Stream()
            self._aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._aside):
                for _ in range(WARM_UPS):
                    network(self._pixels)
            torch.cuda.current_stream().wait_stream(self._aside)
            self._graph = torch.cuda.CUDAGraph()
            # The outer context: a recording that fails would leave this thread on its stream.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(self._graph, stream=self._aside, capture_error_mode="thread_local"),
            ):
                self._results = network(self._pixels)
        self._next, self.waiting = 0, 0

    def forget(self) -> None:
        """Leave batches that wait unrun."""
        self._next, self.waiting = (self._next + self.waiting) % SLOTS, 0

    def upload(self, pixels_BHW: NDArray[np.uint8]) -> None:
        """Start to copy a batch of the network's shape to the device; at most two wait to be run."""
        if self.waiting == SLOTS:
            raise RuntimeError("two batches wait already: run one first")
        slot = (self._next + self.waiting) % SLOTS
        self.waiting += 1
        with torch.cuda.device(self.device):
            self._copied[slot].synchronize()  # the copy before from the same pinned memory
            np.copyto(self._pinned[slot].numpy(), pixels_BHW)
            with torch.cuda.stream(self._copying):
                self._copying.wait_event(self._taken[slot])
                self._staged[slot].copy_(self._pinned[slot], non_blocking=True)
                self._copied[slot].record()

    def run(self) -> Activations:
        """The network's results for the batch that was uploaded first."""
        if not self.waiting:
            raise RuntimeError("no batch waits: upload one first")
        slot, self._next, self.waiting = self._next, (self._next + 1) % SLOTS, self.waiting - 1
        with torch.cuda.device(self.device):
            torch.cuda.current_stream().wait_event(self._copied[slot])
            self._pixels.copy_(self._staged[slot])
            self._taken[slot].record()
            self._graph.replay()
        return self._results


def recorded(
    network: Callable[[Tensor], Activations], shape: tuple[int, int, int], device: torch.device
) -> tuple[Replay, None] | tuple[None, str]:
    """The network's ``Replay``, or a clause that says why it must not be used: it gave other values than the network.

    Raises RuntimeError: as ``Replay``.
    """
    replay = Replay(network, shape, device)
    pixels_BHW = made_frames(*shape)
    replay.upload(pixels_BHW.numpy())
    found, expected = replay.run(), network(pixels_BHW.to(device))
    for name in (field.name for field in dataclasses.fields(Activations)):
        if not torch.equal(getattr(found, name), getattr(expected, name)):
            return None, f"its {name} was another than the network's"
    return replay, None


def to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, from a GPU all at once through pinned memory."""
    copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies
