"""Scattering: equal to kymatio's own transform, and a few facts that hold for any input."""

from __future__ import annotations

import pytest
import torch

from cxr_ray.nets.scattering import CHANNELS, Scattering

LIMIT = 2e-6


@pytest.mark.parametrize(("rows", "columns"), [(64, 48), (32, 84)])
def test_equals_kymatio(rows: int, columns: int) -> None:
    from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

    frames = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(1))
    ours = Scattering(rows, columns)(frames)
    theirs = ScatteringTorch2D(J=2, shape=(rows, columns), L=6)(frames)
    assert ours.shape == (2, CHANNELS, rows // 4, columns // 4)
    assert (ours - theirs).abs().max() < LIMIT


def test_a_constant_frame_has_a_low_pass_only() -> None:
    maps = Scattering(32, 32)(torch.full((1, 32, 32), 1.5))
    # phi sums to 1 but for kymatio's 3.1415 in place of pi.
    assert maps[:, 0] == pytest.approx(torch.full((1, 8, 8), 1.5), abs=1e-4)
    assert maps[:, 1:].abs().max() < 1e-5


def test_it_is_differentiable_for_training() -> None:
    frame = torch.randn(1, 32, 32, requires_grad=True)
    Scattering(32, 32)(frame).sum().backward()
    assert frame.grad is not None
    assert torch.isfinite(frame.grad).all()


def test_nothing_is_saved_or_trained() -> None:
    module = Scattering(32, 32)
    assert not module.state_dict()
    assert not list(module.parameters())


def test_a_frame_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        Scattering(30, 32)
