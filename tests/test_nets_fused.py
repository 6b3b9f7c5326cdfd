"""The compiled form of Module 1: the same function, the same bits on every instruction set, and torch without it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from cxr_ray.nets.fused import library
from cxr_ray.nets.fused.library import MODULES, Library, built, find_library, open_library
from cxr_ray.nets.fused.segmenter import FusedSegmenter
from cxr_ray.nets.segmenter import Segmenter
from cxr_ray.preprocess import COLUMNS, ROWS
from cxr_ray.scorer import Scorer
from cxr_ray.weights import load_bundle

needs_builds = pytest.mark.skipif(
    find_library() is None, reason="no compiled kernels for this processor: install with a C++ compiler"
)
PROBABILITY = 5e-6
"""Between two orders of summation with trained weights; 1.2e-6 was seen."""


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """Random weights, and norms as training leaves them."""
    made = Segmenter().initialise(3)
    generator = torch.Generator().manual_seed(4)
    for name, values in made.named_buffers():
        if name.endswith("running_mean"):
            values.copy_(0.2 * torch.randn(values.shape, generator=generator))
        elif name.endswith("running_var"):
            values.copy_(0.5 + torch.rand(values.shape, generator=generator))
    for module in made.modules():
        if isinstance(getattr(module, "bias", None), torch.nn.Parameter):
            torch.nn.init.normal_(module.bias, 0.0, 0.1, generator=generator)
    return made.eval().requires_grad_(False)


def usable() -> list[Library]:
    """Every build that this processor can run."""
    best = find_library()
    names = [] if best is None else list(MODULES)[list(MODULES).index(best.instructions) :]
    return [found for found in map(open_library, names) if found is not None]


def frames(count: int, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    levels = np.random.default_rng(5).integers(0, 256, (count, rows, columns))
    return torch.from_numpy(levels.astype(np.float32) / 255)


@needs_builds
@pytest.mark.parametrize(("rows", "columns"), [(ROWS, COLUMNS), (1, 40), (9, 20), (31, 40), (47, 60)])
def test_it_is_the_segmenter(segmenter: Segmenter, rows: int, columns: int) -> None:
    x = frames(2, rows, columns)
    exact = copy.deepcopy(segmenter).double()(x.double()).softmax(1)
    rounding = (segmenter(x).softmax(1) - exact).abs().max()
    for build in usable():
        fused = FusedSegmenter(segmenter, build)
        for _ in range(2):  # the workspace of an earlier call leaves no trace
            found = fused(x)
            assert found.shape == exact.shape
            # No further from the exact values than torch's own float32 is, or hardly.
            assert (found.softmax(1) - exact).abs().max() < 2 * rounding + 1e-6


@needs_builds
def test_every_instruction_set_gives_the_same_bits(segmenter: Segmenter) -> None:
    builds = usable()
    if len(builds) < 2:
        pytest.skip("one build only")
    x = frames(1)
    first, *others = [FusedSegmenter(segmenter, build)(x) for build in builds]
    assert all(torch.equal(first, other) for other in others)


@needs_builds
def test_neither_neighbours_nor_frame_sizes_before_change_a_bit(segmenter: Segmenter) -> None:
    build = find_library()
    assert build is not None
    fused, x = FusedSegmenter(segmenter, build), frames(3)
    together = fused(x)
    fused(frames(1, 40, 60))
    assert all(torch.equal(together[i], fused(x[i : i + 1])[0]) for i in (2, 0, 1))
    with pytest.raises(ValueError, match="no multiple of"):
        fused(frames(1, 40, build.pixels + 1))


@needs_builds
def test_the_scorer_takes_it_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle("default")
    pixels = np.random.default_rng(6).integers(0, 256, (1, ROWS, COLUMNS), dtype=np.uint8)
    fast, plain = Scorer(bundle), Scorer(bundle, fused=False)
    assert (fast.engine, plain.engine) == ("fused", "torch")
    a, b = fast.score(pixels), plain.score(pixels)
    np.testing.assert_allclose(a.lung_probability, b.lung_probability, atol=PROBABILITY)
    np.testing.assert_allclose(a.p_covid, b.p_covid, atol=1e-5)


def test_without_a_usable_build_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "MODULES", {"AVX512": "_cxr_ray_nowhere", "AVX2": "_cxr_ray_nowhere"})
    find_library.cache_clear()
    try:
        assert built() == []
        assert Scorer(load_bundle("default")).engine == "torch"
    finally:
        find_library.cache_clear()


@needs_builds
def test_a_build_of_another_version_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "VERSION", library.VERSION + 1)
    assert [open_library(name) for name in MODULES] == [None, None]
