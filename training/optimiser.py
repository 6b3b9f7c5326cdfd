"""Adam as Keras has it, with a learning-rate schedule and clipping (TRAINING_SPEC D).

Keras adds epsilon to the root of the *uncorrected* second moment, PyTorch to the corrected one. The two agree when
PyTorch's epsilon is divided by sqrt(1 - beta2^t) at step t. Without that, weights with small gradients differ by up
to two learning rates after three steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cxr_ray.errors import UsageError

SCHEDULES = ("constant", "cosine")


@dataclass(kw_only=True)
class OptimiserSettings:
    """How weights move."""

    kind: str = "adam"
    """``adam`` is the only one."""
    learning_rate: float = 1e-3
    """Highest learning rate of the schedule."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    epsilon: float = 1e-7
    """Added to the root of the uncorrected second moment, as Keras does."""
    amsgrad: bool = False
    """Divide by the largest second moment so far."""
    schedule: str = "constant"
    """``constant``, or ``cosine`` from the learning rate down to 0 at the last step."""
    warm_up: float = 0.0
    """Share of all steps over which the learning rate rises in a straight line."""
    clip: float | None = None
    """Largest norm of the whole gradient; longer ones are scaled down to it. null: no limit."""
    weight_decay: float = 0.0
    """Share of each weight (times the learning rate) that a step takes off, apart from the gradient (as in AdamW)."""


class KerasAdam:
    """Adam over ``parameters``, in the order given.

    Args:
        parameters: leaf tensors, already on their device. Those without ``requires_grad`` are left out.
        settings: see there.
        total_steps: length of the schedule.
        steps_before: where the step counter of the bias correction starts. The published training kept one counter
            over its six folds while the moments of each fold started at 0.

    Raises:
        UsageError: a setting that makes no sense.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        settings: OptimiserSettings,
        total_steps: int,
        *,
        steps_before: int = 0,
    ) -> None:
        _check(settings)
        self.settings = settings
        self.total_steps = total_steps
        self.learning_rate = 0.0
        """Of the last step."""
        self.gradient_norm = 0.0
        """Of the last step, before clipping."""
        self.finite = True
        """False once a gradient held NaN or infinity; that step left weights and moments as they were."""
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._steps_before = steps_before
        self._steps = 0
        self._adam = torch.optim.Adam(
            self._parameters,
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            amsgrad=settings.amsgrad,
            weight_decay=settings.weight_decay,
            decoupled_weight_decay=True,
            foreach=True,
        )
        self._moments = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if settings.amsgrad else ()))
        self._fill({})

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def step(self) -> float:
        """Clip, move the weights once, and return the learning rate used.

        A gradient that is not finite moves nothing: look at ``finite`` afterwards.
        """
        for parameter in self._parameters:
            # torch would skip it, and its own step counter would then run behind the others'.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self.gradient_norm = float(norm)
        self.finite = math.isfinite(self.gradient_norm)
        self.learning_rate = learning_rate(self.settings, self._steps + 1, self.total_steps)
        if not self.finite:
            return self.learning_rate
        if self.settings.clip is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self.settings.clip, norm)
        self._steps += 1
        t = self._steps_before + self._steps
        for group in self._adam.param_groups:
            group["lr"] = self.learning_rate
            group["eps"] = self.settings.epsilon / math.sqrt(1.0 - self.settings.beta2**t)
        self._adam.step()
        return self.learning_rate

    def state(self) -> dict[str, Tensor]:
        """Counter and moments under flat names (``step``, ``exp_avg.0``, ...): all it takes to go on bit for bit.

        Contiguous copies on the CPU, fit for safetensors.
        """
        flat = {"step": torch.tensor(self._steps, dtype=torch.int64)}
        for number, parameter in enumerate(self._parameters):
            for moment in self._moments:
                values = self._adam.state[parameter][moment].detach()
                flat[f"{moment}.{number}"] = values.to(
                    "cpu", copy=True, memory_format=torch.contiguous_format
                )
        return flat

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state()`` gave.

        Raises:
            UsageError: other names or shapes than those of this optimiser.
        """
        expected = {name: values.shape for name, values in self.state().items()}
        found = {name: values.shape for name, values in state.items()}
        if expected != found:
            odd = sorted(name for name in expected | found if expected.get(name) != found.get(name))
            raise UsageError(
                f"the optimiser's saved state does not fit these settings ({odd[0]} differs); train with the settings "
                "it was saved with, or into a new output"
            )
        self._steps = int(state["step"])
        self._fill(state)

    def _fill(self, state: dict[str, Tensor]) -> None:
        """Set counter and moments of every parameter from flat names; 0 where there is none."""
        for number, parameter in enumerate(self._parameters):
            own: dict[str, Tensor] = {"step": torch.tensor(float(self._steps_before + self._steps))}
            for moment in self._moments:
                own[moment] = torch.zeros_like(parameter, requires_grad=False)
                if state:
                    own[moment].copy_(state[f"{moment}.{number}"])
            self._adam.state[parameter] = own


def learning_rate(settings: OptimiserSettings, step: int, total_steps: int) -> float:
    """Learning rate of step 1, 2, ..., ``total_steps``; steps beyond the last keep its rate."""
    step = min(step, max(total_steps, 1))
    warm_up = round(settings.warm_up * total_steps)
    if step <= warm_up:
        return settings.learning_rate * step / warm_up
    if settings.schedule == "constant":
        return settings.learning_rate
    # The first step after the warm-up has the full rate and the last one a little more than 0, so that it counts.
    done = (step - 1 - warm_up) / max(total_steps - warm_up, 1)
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def _check(settings: OptimiserSettings) -> None:
    if settings.kind != "adam":
        raise UsageError(f"expected optimiser adam, got {settings.kind!r}")
    if settings.schedule not in SCHEDULES:
        raise UsageError(f"expected a schedule out of {', '.join(SCHEDULES)}, got {settings.schedule!r}")
    if not 0.0 <= settings.warm_up < 1.0:
        raise UsageError(f"expected warm_up to be a share of all steps, 0 to below 1, got {settings.warm_up}")
    if settings.clip is not None and settings.clip <= 0:
        raise UsageError(f"expected clip to be a gradient norm above 0 or null, got {settings.clip}")
