"""The optimiser against the original's (fed with its gradients), its schedule, and going on from a saved state."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxr_ray.errors import UsageError
from cxr_ray.weights.keras_files import read_model
from training.optimiser import KerasAdam, OptimiserSettings, learning_rate


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3,), (4, 2, 3, 3), (5, 1))
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    # As the loop has them on a CPU.
    made[1] = made[1].contiguous(memory_format=torch.channels_last)
    return [nn.Parameter(values) for values in made]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=generator) * 10.0 ** -(2 * i) for i, p in enumerate(parameters())]


def walk(optimiser: KerasAdam, weights: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        optimiser.zero_grad()
        for parameter, gradient in zip(weights, gradients(step), strict=True):
            parameter.grad = gradient.clone()
        optimiser.step()


@pytest.mark.parametrize(
    ("case", "file", "settings"),
    [
        ("m1s", "*2020-10-16_21_26_weights.h5", OptimiserSettings()),
        ("m2", "*_resnet_model_0_weights.h5", OptimiserSettings(learning_rate=0.002, amsgrad=True)),
    ],
    ids=["plain", "amsgrad"],
)
def test_steps_are_the_originals(shared_dir: Path, case: str, file: str, settings: OptimiserSettings) -> None:
    pytest.importorskip("h5py")
    golden = np.load(shared_dir / "reference" / "golden" / "_train_step_cases.npz")
    (path,) = (shared_dir / "reference" / "weights").glob(file)
    layers = read_model(path)
    names = [str(name).split("/") for name in golden[f"{case[:2]}_trainable_names"]]
    start = np.concatenate([layers[layer][weight].ravel() for layer, weight in names])
    parameter = nn.Parameter(torch.from_numpy(start))
    optimiser = KerasAdam([parameter], settings, 3)
    for step in (1, 2, 3):
        parameter.grad = torch.from_numpy(golden[f"{case}_grad{step}"])
        assert optimiser.step() == settings.learning_rate
        if step in (1, 3):
            difference = parameter.detach() - torch.from_numpy(golden[f"{case}_w{step}"])
            assert float(difference.abs().max()) < 1e-6


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_counter_that_runs_on_over_folds(amsgrad: bool) -> None:
    """Against the formula in float64, with moments that start at 0 while the counter does not."""
    settings = OptimiserSettings(learning_rate=0.01, amsgrad=amsgrad)
    weights = parameters()
    walk(KerasAdam(weights, settings, 4, steps_before=1000), weights, range(4))
    for number, values in enumerate(parameters()):
        w = values.detach().double()
        m, v, h = torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(w)
        for step in range(4):
            g, t = gradients(step)[number].double(), 1001 + step
            m, v = m + (g - m) * 0.1, v + (g * g - v) * 0.001
            h = torch.maximum(h, v) if amsgrad else v
            w = w - m * 0.01 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) / (h.sqrt() + 1e-7)
        torch.testing.assert_close(weights[number].detach().double(), w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_going_on_from_a_saved_state_is_bit_exact(amsgrad: bool) -> None:
    settings = OptimiserSettings(schedule="cosine", warm_up=0.3, clip=1.0, amsgrad=amsgrad, weight_decay=0.01)
    straight = parameters()
    walk(KerasAdam(straight, settings, 10), straight, range(10))

    weights = parameters()
    first = KerasAdam(weights, settings, 10)
    walk(first, weights, range(4))
    state = first.state()
    resumed = [nn.Parameter(parameter.detach().clone()) for parameter in weights]
    second = KerasAdam(resumed, settings, 10)
    second.load(state)
    walk(second, resumed, range(4, 10))
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))
    assert second.learning_rate == learning_rate(settings, 10, 10)


def test_state_is_flat_and_a_copy() -> None:
    weights = parameters()
    optimiser = KerasAdam(weights, OptimiserSettings(amsgrad=True), 5)
    state = optimiser.state()
    moments = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    assert set(state) == {"step", *(f"{moment}.{i}" for moment in moments for i in range(3))}
    assert all(values.is_contiguous() and values.device.type == "cpu" for values in state.values())
    walk(optimiser, weights, range(2))
    assert int(state["step"]) == 0
    assert not any(values.any() for values in state.values())
    assert int(optimiser.state()["step"]) == 2


def test_a_state_of_other_settings_is_refused() -> None:
    state = KerasAdam(parameters(), OptimiserSettings(amsgrad=True), 5).state()
    with pytest.raises(UsageError, match=r"max_exp_avg_sq\.0 differs"):
        KerasAdam(parameters(), OptimiserSettings(), 5).load(state)


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    weights = parameters()
    optimiser = KerasAdam(weights, OptimiserSettings(clip=1.0), 5)
    walk(optimiser, weights, range(1))
    before, state = [p.detach().clone() for p in weights], optimiser.state()
    weights[0].grad = torch.full_like(weights[0], math.nan)
    optimiser.step()
    assert not optimiser.finite
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    assert all(torch.equal(values, state[name]) for name, values in optimiser.state().items())
    walk(optimiser, weights, range(1, 2))
    assert optimiser.finite
    assert not torch.equal(before[0], weights[0])


def test_clipping_scales_the_whole_gradient() -> None:
    weights = parameters()
    # Only the first moment is looked at: 0.1 of the clipped gradient after one step.
    optimiser = KerasAdam(weights, OptimiserSettings(clip=0.5), 5)
    walk(optimiser, weights, range(1))
    norm = math.sqrt(sum(float(gradient.norm()) ** 2 for gradient in gradients(0)))
    assert norm > 0.5
    assert optimiser.gradient_norm == pytest.approx(norm)
    state = optimiser.state()
    for number, gradient in enumerate(gradients(0)):
        torch.testing.assert_close(state[f"exp_avg.{number}"], gradient * 0.05 / norm, rtol=1e-4, atol=1e-9)


def test_weights_without_a_gradient_keep_step_with_the_others() -> None:
    weights = parameters()
    optimiser = KerasAdam(weights, OptimiserSettings(), 5)
    walk(optimiser, weights, range(1))
    optimiser.zero_grad()
    weights[0].grad = torch.ones_like(weights[0])
    before = weights[2].detach().clone()
    optimiser.step()
    # A gradient of 0, as Keras has it: the first moment still moves the weight.
    assert not torch.equal(before, weights[2])


def test_schedules() -> None:
    constant = OptimiserSettings(learning_rate=2.0, warm_up=0.2)
    assert [learning_rate(constant, step, 10) for step in (1, 2, 3, 10, 11)] == [1.0, 2.0, 2.0, 2.0, 2.0]
    cosine = OptimiserSettings(learning_rate=2.0, schedule="cosine", warm_up=0.2)
    rates = [learning_rate(cosine, step, 10) for step in range(1, 11)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(1.0), "half-way between the end of the warm-up and the end"
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    assert 0.0 < rates[-1] < 0.1
    assert learning_rate(cosine, 11, 10) == rates[-1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kind": "sgd"}, "expected optimiser adam, got 'sgd'"),
        ({"schedule": "linear"}, "constant, cosine, got 'linear'"),
        ({"warm_up": 5.0}, "share of all steps"),
        ({"clip": 0.0}, "above 0 or null"),
    ],
)
def test_settings_that_make_no_sense(setting: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        KerasAdam(parameters(), OptimiserSettings(**setting), 5)  # type: ignore[arg-type]
