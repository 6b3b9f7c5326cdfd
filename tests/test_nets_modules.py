"""Segmenter, path, ensemble and their inference form: sizes, train mode, options, and equal results when folded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cxr_ray.nets.ensemble import Ensemble, class_logits, ensemble_map, log_odds
from cxr_ray.nets.folding import STRIP_ROWS, fold_blocks
from cxr_ray.nets.layers import BatchNorm, SeparableConv
from cxr_ray.nets.path import VARIANTS, Path, variant_weight
from cxr_ray.nets.segmenter import Segmenter, lung_probability


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def path_input(seed: int = 0) -> Tensor:
    x = noise(2, 50, 15, 17, seed=seed)
    x[:, 49] = x[:, 49].sigmoid()
    return x


def with_used_norms(module: nn.Module) -> nn.Module:
    """Batch norms as training leaves them, so that folding has something to fold."""
    generator = torch.Generator().manual_seed(9)
    for child in module.modules():
        if isinstance(child, BatchNorm):
            with torch.no_grad():
                for tensor in (child.weight, child.running_var):
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
                for tensor in (child.bias, child.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return module


def test_published_sizes() -> None:
    assert sum(p.numel() for p in Segmenter().parameters()) == 58_309
    assert sum(t.numel() for t in Segmenter().state_dict().values()) == 59_941
    assert sum(p.numel() for p in Path().parameters()) == 19_737
    assert sum(t.numel() for t in Path().state_dict().values()) == 20_467


@pytest.mark.parametrize("size", [(33, 47), (64, 40)])
def test_segmenter_takes_any_frame(size: tuple[int, int]) -> None:
    probability = lung_probability(Segmenter().initialise().eval()(noise(2, *size)))
    assert probability.shape == (2, *size)
    assert ((probability >= 0) & (probability <= 1)).all()


@pytest.mark.parametrize("module", [Segmenter, Path])
def test_initialisation_follows_its_seed(module: type[Segmenter] | type[Path]) -> None:
    first, again, other = (module().initialise(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_he_normal_has_its_spread() -> None:
    head = Segmenter().initialise().state_dict()["blocks.3.shortcut.weight"]  # 48 -> 48: many numbers
    expected = (2 / 48) ** 0.5
    assert head.std().item() == pytest.approx(expected, rel=0.05)
    assert head.abs().max().item() <= 2 * expected / 0.8796 + 1e-6


def test_batch_norm_is_keras() -> None:
    norm, torch_norm = BatchNorm(5), nn.BatchNorm2d(5, eps=1e-3, momentum=0.01)
    x = noise(3, 5, 7, 6) * 3 + 1
    assert torch.allclose(norm(x), torch_norm(x), atol=1e-6)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(norm.get_buffer(name), torch_norm.get_buffer(name))
    assert torch.allclose(norm.eval()(x), torch_norm.eval()(x))


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 3), (7, 5), (3, 3)])
def test_explicit_padding_is_same_padding(kernel: int, dilation: int) -> None:
    conv = SeparableConv(4, 6, kernel=kernel, dilation=dilation)
    x = noise(1, 4, 40, 37)
    same = nn.functional.conv2d(x, conv.depthwise.weight, padding="same", dilation=dilation, groups=4)
    assert torch.allclose(conv(x), conv.pointwise(same), atol=1e-6)


@pytest.mark.parametrize("module", [Segmenter, Path])
def test_training_mode_drops_whole_channels_and_learns(module: type[Segmenter] | type[Path]) -> None:
    net = module().initialise().train()
    x = noise(2, 24, 28) if module is Segmenter else path_input()
    torch.manual_seed(0)
    first, second = net(x), net(x)
    assert not torch.equal(first, second)  # dropout
    second.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    assert not any(torch.equal(b, torch.zeros_like(b)) for n, b in net.named_buffers() if "running_mean" in n)


@pytest.mark.parametrize("classes", [2, 3])
def test_folding_changes_nothing_but_rounding(classes: int) -> None:
    pairs: list[tuple[nn.Module, Tensor]] = [
        (with_used_norms(Path(classes=classes).initialise()), path_input())
    ]
    if classes == 2:
        pairs.append((with_used_norms(Segmenter().initialise()), noise(2, 40, 36)))
        # One image taller than a strip, and no multiple of it.
        pairs.append((with_used_norms(Segmenter().initialise()), noise(1, 2 * STRIP_ROWS + 13, 36)))
    for module, x in pairs:
        module.eval().requires_grad_(False)
        folded = nn.ModuleList([copy.deepcopy(module)]).eval()
        fold_blocks(folded)
        expected = module(x)
        for _ in range(2):  # the second call meets used scratch memory
            assert torch.allclose(folded[0](x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_folding_needs_eval_mode() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        fold_blocks(Segmenter())


def test_path_map_is_zero_outside_the_lungs() -> None:
    x = path_input()
    class_map = Path().initialise().eval()(x)
    outside = (x[:, 49] <= 0.3).unsqueeze(1).expand_as(class_map)
    assert outside.any()
    assert (class_map[outside] == 0).all()
    assert class_map[~outside].abs().min() > 0


def test_lung_gate_hides_everything_outside_the_lungs() -> None:
    x = path_input()
    changed = x.clone()
    outside = (x[:, 49] <= 0.3).unsqueeze(1).expand(-1, 49, -1, -1)
    changed[:, :49][outside] += 5.0
    for gated in (True, False):
        path = Path(lung_gate=gated).initialise().eval()
        assert torch.equal(path(x), path(changed)) is gated


def test_variants_are_per_image() -> None:
    a0 = noise(3, 15, 17)
    a0[1] *= 7
    for variant in VARIANTS:
        together = variant_weight(a0, variant)
        assert torch.equal(together[:1], variant_weight(a0[:1], variant))
        assert together.min() == 0
        assert together.max() == 1
    assert torch.isfinite(variant_weight(torch.ones(1, 4, 4), "multiply")).all()


def test_ensemble_takes_any_number_of_paths_and_classes() -> None:
    ensemble = Ensemble(rows=32, columns=40, paths=3, classes=4).eval()
    maps = ensemble(ensemble.inputs(noise(2, 32, 40), torch.rand(2, 32, 40)))
    assert maps.shape == (2, 3, 4, 8, 10)
    assert class_logits(ensemble_map(maps)).shape == (2, 4)


def test_log_odds_is_stable_and_right() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [90.0, -90.0, 0.0]])
    p = logits.double().softmax(-1)[:, 0]
    assert log_odds(logits, 0)[0].item() == pytest.approx(torch.logit(p)[0].item(), abs=1e-5)
    assert log_odds(logits, 0)[1].item() == pytest.approx(90.0)
