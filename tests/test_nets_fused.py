"""The compiled form of both modules: the same function, the same bits everywhere, and torch without it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pytest
import torch

from cxr_ray.nets.ensemble import Ensemble
from cxr_ray.nets.fused import library
from cxr_ray.nets.fused.ensemble import FusedEnsemble
from cxr_ray.nets.fused.library import MODULES, Library, built, find_library, open_library
from cxr_ray.nets.fused.scattering import FusedScattering, able, factors, stage_tables
from cxr_ray.nets.fused.segmenter import FusedSegmenter
from cxr_ray.nets.path import IN_CHANNELS, Variant
from cxr_ray.nets.scattering import Scattering
from cxr_ray.nets.segmenter import Segmenter
from cxr_ray.preprocess import COLUMNS, ROWS
from cxr_ray.scorer import Scorer
from cxr_ray.weights import load_bundle

needs_builds = pytest.mark.skipif(
    find_library() is None, reason="no compiled kernels for this processor: install with a C++ compiler"
)
Network = TypeVar("Network", bound=torch.nn.Module)
FRAME = (160, 172)
"""Of Module 2 in these tests: more pixels than the compiled code takes at a time, no whole number of vectors."""
PROBABILITY = 5e-6
"""Between two orders of summation with trained weights; 1.2e-6 was seen."""


def trained(network: Network) -> Network:
    """In eval mode, with norms and biases as training leaves them."""
    generator = torch.Generator().manual_seed(4)
    for name, values in network.named_buffers():
        if name.endswith("running_mean"):
            values.copy_(0.2 * torch.randn(values.shape, generator=generator))
        elif name.endswith("running_var"):
            values.copy_(0.5 + torch.rand(values.shape, generator=generator))
    for module in network.modules():
        if isinstance(getattr(module, "bias", None), torch.nn.Parameter):
            torch.nn.init.normal_(module.bias, 0.0, 0.1, generator=generator)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return trained(Segmenter().initialise(3))


def ensemble(*, classes: int, lung_gate: bool) -> Ensemble:
    made = Ensemble(rows=FRAME[0], columns=FRAME[1], paths=2, classes=classes, lung_gate=lung_gate)
    for seed, path in enumerate(made.paths):
        path.initialise(seed)
    return trained(made)


def usable() -> list[Library]:
    """Every build that this processor can run."""
    best = find_library()
    names = [] if best is None else list(MODULES)[list(MODULES).index(best.instructions) :]
    return [found for found in map(open_library, names) if found is not None]


def frames(count: int, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    levels = np.random.default_rng(5).integers(0, 256, (count, rows, columns))
    return torch.from_numpy(levels.astype(np.float32) / 255)


@needs_builds
@pytest.mark.parametrize(("rows", "columns"), [(1, 40), (9, 20), (31, 40), (47, 60), (ROWS, COLUMNS)])
def test_it_is_the_segmenter(segmenter: Segmenter, rows: int, columns: int) -> None:
    x = frames(2, rows, columns)
    expected = segmenter(x)
    for build in usable():
        fused = FusedSegmenter(segmenter, build)
        for _ in range(2):  # the workspace of an earlier call leaves no trace
            assert_rounding_apart(fused(x), expected)


@needs_builds
@pytest.mark.parametrize(
    ("classes", "lung_gate", "variant"),
    [(2, False, None), (2, True, "multiply"), (3, True, "threshold"), (5, False, None), (17, False, None)],
)
def test_it_is_the_ensemble(classes: int, lung_gate: bool, variant: Variant | None) -> None:
    plain, inputs = ensemble(classes=classes, lung_gate=lung_gate), path_inputs(2)
    expected = plain(inputs, variant)
    for build in usable():
        fused = FusedEnsemble(plain, build)
        for _ in range(2):
            assert_rounding_apart(fused(inputs, variant), expected)


@needs_builds
@pytest.mark.parametrize(("rows", "columns"), [(ROWS, COLUMNS), (20, 24), (8, 12), (44, 56)])
def test_it_is_the_scattering(rows: int, columns: int) -> None:
    plain, x = Scattering(rows, columns), 4 * frames(2, rows, columns) - 2
    expected = plain(x)
    for build in usable():
        fused = FusedScattering(plain, build)
        for _ in range(2):
            assert (fused(x) - expected).abs().max() < 2e-6


@needs_builds
def test_a_frame_without_a_compiled_transform_is_left_to_torch() -> None:
    plain = Ensemble(rows=60, columns=60, paths=1)  # 68 is 4 * 17
    plain.eval()
    for build in usable():
        assert not able(plain.scattering, build)
        assert FusedEnsemble(plain, build).scattering is plain.scattering
        with pytest.raises(ValueError, match="no compiled transform"):
            FusedScattering(plain.scattering, build)


@pytest.mark.parametrize("length", [1, 2, 12, 77, 87, 154, 174, 308, 348, 1024])
def test_stages_and_tables_belong_together(length: int) -> None:
    plan = factors(length)
    assert np.prod(plan, dtype=int) == length
    sizes = [len(table) for table in stage_tables(length, plan)]
    lefts = length // np.cumprod([1, *plan])[1:]
    assert sizes == [2 * p + 2 * (p - 1) * left for p, left in zip(plan, lefts, strict=True)]


def assert_rounding_apart(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Two orders of summation in float32: 1e-6 of the largest value was seen."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 5e-6 * expected.abs().max()


def path_inputs(count: int) -> torch.Tensor:
    """Noise, and a pooled mask with a frame of nothing around it; the second image's fills every place."""
    generator = torch.Generator().manual_seed(8)
    inputs = torch.randn(count, IN_CHANNELS, FRAME[0] // 4, FRAME[1] // 4, generator=generator)
    inputs[:, -1] = torch.rand(inputs[:, -1].shape, generator=generator)
    inputs[0, -1, :7], inputs[0, -1, :, 20:], inputs[-1, -1] = 0, 0, 0.9
    return inputs


@needs_builds
def test_every_instruction_set_gives_the_same_bits(segmenter: Segmenter) -> None:
    builds = usable()
    if len(builds) < 2:
        pytest.skip("one build only")
    x, inputs, plain = frames(1), path_inputs(2), ensemble(classes=2, lung_gate=True)
    first, *others = [FusedSegmenter(segmenter, build)(x) for build in builds]
    assert all(torch.equal(first, other) for other in others)
    first, *others = [FusedEnsemble(plain, build)(inputs) for build in builds]
    assert all(torch.equal(first, other) for other in others)
    scattering = Scattering(ROWS, COLUMNS)
    first, *others = [FusedScattering(scattering, build)(x) for build in builds]
    assert all(torch.equal(first, other) for other in others)


@needs_builds
def test_neither_neighbours_nor_frame_sizes_before_change_a_bit(segmenter: Segmenter) -> None:
    build = find_library()
    assert build is not None
    fused, x = FusedSegmenter(segmenter, build), frames(3)
    together = fused(x)
    fused(frames(1, 40, 60))
    assert all(torch.equal(together[i], fused(x[i : i + 1])[0]) for i in (2, 0, 1))
    paths, inputs = FusedEnsemble(ensemble(classes=2, lung_gate=False), build), path_inputs(3)
    together = paths(inputs)
    assert all(torch.equal(together[i], paths(inputs[i : i + 1])[0]) for i in (2, 0, 1))
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
