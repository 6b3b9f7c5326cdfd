"""The depthwise convolution of training against torch's own, forward and both gradients."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from cxr_ray.nets.depthwise import DepthwiseConv, join, split


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 2), (5, 3), (7, 5), (3, 1)])
@pytest.mark.parametrize("frame", [(17, 23), (30, 35), (4, 5)])
def test_equals_a_dilated_convolution(kernel: int, dilation: int, frame: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv(4, kernel=kernel, dilation=dilation).double()
    x_BCHW = torch.randn(2, 4, *frame, dtype=torch.float64, requires_grad=True)
    ours = conv(x_BCHW)
    literal = F.conv2d(x_BCHW, conv.weight, padding=conv.pad, dilation=dilation, groups=4)
    assert torch.allclose(ours, literal, atol=1e-12)

    gradient = torch.randn_like(literal)
    for found, expected in zip(
        torch.autograd.grad(ours, (x_BCHW, conv.weight), gradient),
        torch.autograd.grad(literal, (x_BCHW, conv.weight), gradient),
        strict=True,
    ):
        assert torch.allclose(found, expected, atol=1e-11)


def test_inference_and_training_agree() -> None:
    torch.manual_seed(1)
    conv = DepthwiseConv(3, kernel=7, dilation=5)
    x_BCHW = torch.randn(1, 3, 20, 31)
    with torch.inference_mode():
        inference = conv(x_BCHW)
    assert torch.allclose(conv(x_BCHW), inference, atol=1e-5)


def test_split_takes_every_dth_pixel_and_join_undoes_it() -> None:
    x_BCHW = torch.arange(2 * 1 * 5 * 7, dtype=torch.float32).reshape(2, 1, 5, 7)
    parts = split(x_BCHW, 3)
    assert parts.shape == (2 * 9, 1, 2, 3)
    assert torch.equal(parts[4, 0], torch.tensor([[8.0, 11.0, 0.0], [29.0, 32.0, 0.0]]))
    assert torch.equal(join(parts, 3, (2, 5, 7)), x_BCHW)


def test_state_is_that_of_a_convolution() -> None:
    assert list(DepthwiseConv(3, kernel=3, dilation=1).state_dict()) == ["weight"]
