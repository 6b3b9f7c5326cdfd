"""Losses of both modules against the original's, and against their definitions on made data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cxr_ray.errors import UsageError
from training.losses.cross_entropy import class_weights, weighted_cross_entropy
from training.losses.silence import SIZE, silence_penalty
from training.losses.tanimoto import box_size, contour_weights, tanimoto_coefficient, tanimoto_loss


class Cases:
    """``_loss_cases.npz``: four pictures with masks, predictions, weights and results."""

    def __init__(self, shared_dir: Path) -> None:
        self.values = np.load(shared_dir / "reference" / "golden" / "_loss_cases.npz")
        self.target = torch.from_numpy(np.stack((self.values["y_lung"], self.values["y_non"]), axis=1))
        self.probability = self.channels_first("p")

    def channels_first(self, key: str) -> Tensor:
        return torch.from_numpy(self.values[key].astype(np.float32)).permute(0, 3, 1, 2)

    def number(self, key: str) -> float:
        return float(self.values[key])


@pytest.fixture(scope="module")
def cases(shared_dir: Path) -> Cases:
    return Cases(shared_dir)


def made_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities and masks ``[4, 2, 40, 52]`` with lungs that touch the frame's edge."""
    generator = torch.Generator().manual_seed(seed)
    field = F.avg_pool2d(torch.randn(4, 1, 40, 52, generator=generator), 9, stride=1, padding=4)
    lungs = (field > 0.0).float()
    logits = torch.randn(4, 2, 40, 52, generator=generator) + 2 * torch.cat((field, -field), dim=1)
    return logits.softmax(dim=1), torch.cat((lungs, 1 - lungs), dim=1)


# -- Tanimoto --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("short_side", "box"), [(150, 11), (151, 21), (300, 21), (301, 31), (600, 31), (601, 41)]
)
def test_box_size(short_side: int, box: int) -> None:
    assert box_size(short_side) == box


def test_contour_weights_are_the_originals(cases: Cases) -> None:
    weight = contour_weights(cases.target, box=21)
    assert weight.dtype == torch.float32
    assert torch.equal(weight, cases.channels_first("w"))


def test_loss_and_coefficient_are_the_originals(cases: Cases) -> None:
    y, p = cases.target, cases.probability
    weighted = tanimoto_loss(p, y, contour_weights(y, box=21))
    assert abs(float(weighted) - cases.number("weighted_tani_loss")) < 5e-7
    assert abs(float(tanimoto_loss(p, y)) - cases.number("tani_loss")) < 5e-7
    assert abs(float(tanimoto_coefficient(p, y)) - cases.number("tani_coeff")) < 5e-7
    for one, (loss, coefficient) in enumerate(cases.values["per_image_wloss_tani"]):
        y1, p1 = y[one : one + 1], p[one : one + 1]
        assert abs(float(tanimoto_loss(p1, y1, contour_weights(y1, box=21))) - loss) < 5e-7
        assert abs(float(tanimoto_coefficient(p1, y1)) - coefficient) < 5e-7


def test_gradient_is_the_originals(cases: Cases) -> None:
    p = cases.probability.clone().requires_grad_()
    tanimoto_loss(p, cases.target, contour_weights(cases.target, box=21)).backward()
    assert p.grad is not None
    expected = cases.channels_first("grad_loss_p_x1e6_every4th_row_col")
    # Stored as float16: half a unit in the last place of values up to 13.5.
    torch.testing.assert_close(p.grad[..., ::4, ::4] * 1e6, expected, rtol=5e-4, atol=1e-4)


def test_border_is_that_of_a_box_mean() -> None:
    _, y = made_batch()
    mean = F.avg_pool2d(y.double(), 11, stride=1, padding=5, count_include_pad=False)
    border = (mean > 0.005) & (mean < 0.995)
    weight = 1 + 2 * border.double()
    expected = (weight * weight.numel() / weight.sum()).square()
    torch.testing.assert_close(contour_weights(y, box=11).double(), expected, rtol=1e-6, atol=0)
    assert 0.1 < float(border.double().mean()) < 0.99


def test_half_a_batch_with_the_sums_of_the_other_half() -> None:
    """What ``across`` is for: each process sees its share, weights and loss are those of the whole batch."""
    p, y = made_batch()
    p.requires_grad_()
    weight = contour_weights(y, box=11)
    loss = tanimoto_loss(p, y, weight)
    (gradient,) = torch.autograd.grad(loss, p)

    seen: list[Tensor] = []

    def record(sums: Tensor) -> Tensor:
        seen.append(sums.detach())
        return sums

    contour_weights(y[:1], box=11, across=record)
    own_weight = contour_weights(y[1:], box=11, across=lambda sums: sums + seen[-1])
    assert torch.equal(own_weight, weight[1:])

    tanimoto_loss(p[:1], y[:1], weight[:1], across=record)
    own_loss = tanimoto_loss(p[1:], y[1:], own_weight, across=lambda sums: sums + seen[-1])
    assert len(seen) == 2, "one reduction for the weights, one for the loss"
    assert abs((own_loss - loss).item()) < 1e-6
    (own_gradient,) = torch.autograd.grad(own_loss, p)
    torch.testing.assert_close(own_gradient[1:], gradient[1:], rtol=1e-5, atol=1e-9)


def test_perfect_and_opposite_masks() -> None:
    _, y = made_batch()
    weight = contour_weights(y, box=11)
    assert not weight.requires_grad
    assert float(tanimoto_loss(y, y, weight)) == 0.0
    assert float(tanimoto_loss(1 - y, y, weight)) > 0.999
    assert float(tanimoto_coefficient(y, y)) == 1.0


def test_half_precision_does_not_overflow() -> None:
    p, y = made_batch()
    exact, rounded = tanimoto_loss(p, y), tanimoto_loss(p.bfloat16(), y.bfloat16())
    assert rounded.dtype == torch.float32
    assert abs(float(exact - rounded)) < 5e-3


# -- cross-entropy ---------------------------------------------------------------------------------------------------


def test_published_class_weights() -> None:
    weights = class_weights([0] * 848 + [1] * 1415, classes=2, rule="published")
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([0.6252761820592134, 0.3747238179407866], abs=6e-8)


def test_class_weight_rules() -> None:
    labels = [0] * 6 + [1] * 3 + [2] * 1
    published = class_weights(labels, classes=3, rule="published")
    assert float(published.sum()) == pytest.approx(1.0)
    assert (published / published[0]).tolist() == pytest.approx([1.0, 2.0, 6.0])
    balanced = class_weights(labels, classes=3, rule="balanced")
    assert float(balanced[labels].mean()) == pytest.approx(1.0)
    assert (balanced / balanced[0]).tolist() == pytest.approx([1.0, 2.0, 6.0])
    assert class_weights([], classes=3, rule="none").tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("labels", "rule", "message"),
    [
        ([0, 0, 2], "published", "class 1 of 3 has no training picture"),
        ([0, 1, 3], "balanced", r"labels 0 to 2, got \[3\]"),
        ([0, 1, 2], "inverse", "published, balanced, none, got 'inverse'"),
    ],
)
def test_class_weights_refuse(labels: list[int], rule: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        class_weights(labels, classes=3, rule=rule)


def test_cross_entropy_divides_by_the_pictures_and_does_not_clip() -> None:
    logits = torch.tensor([[50.0, -50.0], [0.0, 0.0]])
    weight = torch.tensor([0.375, 0.625])
    loss = weighted_cross_entropy(logits, torch.tensor([1, 0]), weight, batch=2)
    assert float(loss) == pytest.approx((0.375 * 100 + 0.625 * np.log(2)) / 2)


def test_cross_entropy_over_shares_of_a_batch() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 3, generator=generator)
    label, weight = torch.tensor([0, 1, 2, 1, 0]), torch.rand(5, generator=generator)
    whole = weighted_cross_entropy(logits, label, weight, batch=5)
    shares = [
        weighted_cross_entropy(logits[s], label[s], weight[s], batch=5) for s in (slice(2), slice(2, 5))
    ]
    assert float(sum(shares)) == pytest.approx(float(whole))
    soft = weighted_cross_entropy(logits, F.one_hot(label, 3).double(), weight, batch=5)
    assert float(soft) == pytest.approx(float(whole))


def scores(seed: int = 0, count: int = 24) -> tuple[Tensor, Tensor]:
    """Logits ``[N, 2]`` that follow the class a little, and the classes one-hot."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 2
    return torch.randn(count, 2, generator=generator) + F.one_hot(label, 2), F.one_hot(label, 2).float()


def test_silence_is_a_correlation_without_scale_and_a_size() -> None:
    logits, target = scores()
    whole = silence_penalty(logits, target, across=lambda sums: sums)
    score, positive = (logits[:, 0] - logits[:, 1]).numpy(), target[:, 0].numpy()
    size = float(np.square(score / 2).mean())
    assert float(whole) == pytest.approx(np.corrcoef(score, positive)[0, 1] ** 2 + SIZE * size, rel=1e-4)
    small = silence_penalty(logits * 0.1, target, across=lambda sums: sums)
    assert float(small) == pytest.approx(
        np.corrcoef(score, positive)[0, 1] ** 2 + SIZE * size / 100, rel=1e-2
    )
    nothing = silence_penalty(torch.full((24, 2), 3.0), target, across=lambda sums: sums)
    assert float(nothing) == 0.0


def test_silence_of_two_processes_is_that_of_the_whole_batch() -> None:
    logits, target = scores()
    twice = silence_penalty(torch.cat([logits, logits]), target.repeat(2, 1), across=lambda sums: sums)
    assert float(silence_penalty(logits, target, across=lambda sums: 2 * sums)) == pytest.approx(
        float(twice), rel=1e-6
    )
