"""The processes that train one member together: who am I, and sums over all of us.

Gradient convention. With R processes, process r turns its parameters w_r (equal numbers, one copy each) into a loss
L_r. ``Processes.sum`` has the adjoint of a sum over processes as its gradient (again a sum over processes), so
``backward`` on every process gives each copy the gradient of T = L_1 + ... + L_R, whatever passed between the
processes on the way. The mean over the copies, which ``DistributedDataParallel`` and ``mean_gradients`` take, is
(1/R) dT/dw. It equals the gradient of the loss L of the whole batch, exactly, in both ways of writing L_r:

* L is a function of sums over the batch (Tanimoto): every process computes L from ``sum`` of its partial sums. Then
  L_r = L, T = R L, and (1/R) dT/dw = dL/dw. The local gradient alone is R times this process's part of dL/dw.
* L is itself a sum over pictures (cross-entropy): L_r = R times the sum over the local pictures. T = R L again.

A loss that is merely local, without the factor R, would come out R times too small. Batch normalisation with shared
statistics (``sync_batch_norm``) obeys the same rule: it sends the gradient of T through the shared sums.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process among those that train one member. All methods must be called by every process, in one order."""

    rank: int = 0
    """0 to ``size`` - 1; rank 0 writes checkpoints and logs."""
    size: int = 1
    """How many there are; with 1 nothing is sent and no process group is needed."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this process computes. Its tensors must be there, since NCCL sends nothing from elsewhere."""

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> Processes:
        """A single process."""
        return cls(device=torch.device(device))

    @classmethod
    def from_environment(cls, device: torch.device | None = None) -> Processes:
        """The processes of the initialised torch.distributed group, or ``alone`` without one.

        Args:
            device: default: with NCCL the GPU numbered by the environment's LOCAL_RANK, else the CPU.
        """
        initialised = dist.is_available() and dist.is_initialized()
        if device is None:
            on_gpu = initialised and dist.get_backend() == "nccl"
            device = (
                torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
                if on_gpu
                else torch.device("cpu")
            )
        if not initialised:
            return cls.alone(device)
        return cls(rank=dist.get_rank(), size=dist.get_world_size(), device=device)

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise sum over the processes, the same on each; differentiable (see above). Any shape."""
        if self.size == 1:
            return tensor
        total: Tensor = _Sum.apply(tensor)
        return total

    def mean_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its mean over the processes: what DistributedDataParallel does, after
        ``backward`` and in one message. A parameter that took no part here counts as 0."""
        if self.size == 1:
            return
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._mean_in_place([parameter.grad for parameter in parameters if parameter.grad is not None])

    def mean_buffers(self, model: nn.Module) -> None:
        """Replace every floating buffer (batch norm's running statistics) by its mean over the processes.

        Running statistics are linear in those of the batches, so the mean taken once, before they are used or
        saved, is the mean taken at every step (TRAINING_SPEC C).
        """
        if self.size > 1:
            self._mean_in_place([buffer for buffer in model.buffers() if buffer.is_floating_point()])

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1, device=self.device))

    def gather_objects(self, rows: list[Any]) -> list[Any]:
        """The lists of all processes, joined in order of rank, on every process.

        Args:
            rows: what JSON can say (tuples come back as lists); numbers come back exactly.
        """
        if self.size == 1:
            return list(rows)
        own = _as_bytes(json.dumps(rows).encode(), self.device)
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(own)], device=self.device))
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        padded[: len(own)] = own
        received = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(received, padded)
        pairs = zip(received, lengths, strict=True)
        return [row for data, length in pairs for row in json.loads(_from_bytes(data[: int(length)]))]

    def broadcast_bytes(self, data: bytes | None) -> bytes | None:
        """Rank 0's ``data`` on every process; what the others pass is ignored."""
        if self.size == 1:
            return data
        length = torch.tensor([-1 if data is None else len(data)], device=self.device)
        dist.broadcast(length, src=0)
        if int(length) < 0:
            return None
        if self.rank == 0 and data is not None:
            message = _as_bytes(data, self.device)
        else:
            message = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        dist.broadcast(message, src=0)
        return _from_bytes(message)

    @torch.no_grad()
    def _mean_in_place(self, tensors: Iterable[Tensor]) -> None:
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for group in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            flat /= self.size
            for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                tensor.copy_(part.view(tensor.shape))


def choose_device(wanted: str, slot: int = 0) -> torch.device:
    """``cpu``, ``cuda`` or ``auto`` -> a device; with several GPUs the one for this slot."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", slot % max(torch.cuda.device_count(), 1))


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is an all-reduce."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _all_reduced(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


def _all_reduced(tensor: Tensor) -> Tensor:
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def _as_bytes(data: bytes, device: torch.device) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)


def _from_bytes(data: Tensor) -> bytes:
    return data.cpu().numpy().tobytes()
