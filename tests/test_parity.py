"""Parity with the published network: every golden film, the published weights, each stage on the way.

The float16 goldens carry their own rounding, which is added to the limit (half a step, relative 2**-11).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_ray.nets.heat_maps import rebuild
from cxr_ray.nets.network import Activations
from cxr_ray.scorer import Scorer, Scores
from cxr_ray.weights import Bundle, load_bundle

SCORE = 2e-5
SCATTERING = 2e-6
PROBABILITY = 5e-6
MAP_RELATIVE = 2e-5
HEAT = 0.01
HALF_STEP = 2.0**-11

Golden = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def goldens(shared_dir: Path) -> dict[str, Golden]:
    folder = shared_dir / "reference" / "golden"
    names = json.loads((folder / "manifest.json").read_text())
    return {name: dict(np.load(folder / f"{name}.npz")) for name in names}


@pytest.fixture(scope="module")
def bundle(published_bundle_dir: Path) -> Bundle:
    return load_bundle(published_bundle_dir)


@pytest.fixture(scope="module")
def pixels(goldens: dict[str, Golden]) -> np.ndarray:
    assert len(goldens) == 13
    return np.stack([golden["eq_u8"] for golden in goldens.values()])


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> Scorer:
    return Scorer(bundle)


@pytest.fixture(scope="module")
def scores(scorer: Scorer, pixels: np.ndarray) -> Scores:
    return scorer.score(pixels)


@pytest.fixture(scope="module")
def inner(scorer: Scorer, pixels: np.ndarray) -> Activations:
    return scorer.forward(pixels)


def far(got: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(got, dtype=np.float64) - expected).max())


def rounding_of(golden: np.ndarray) -> float:
    """What a float16 golden of values up to 1 is off by itself."""
    return HALF_STEP if golden.dtype == np.float16 else 0.0


def assert_map_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert far(got, expected) < MAP_RELATIVE * np.abs(expected).max()


def test_scores(scores: Scores, goldens: dict[str, Golden]) -> None:
    for index, golden in enumerate(goldens.values()):
        assert far(scores.class_probs[index], golden["ens_score"]) < SCORE
        assert scores.p_covid[index] == scores.class_probs[index, 0]


def test_path_softmax(scores: Scores, goldens: dict[str, Golden]) -> None:
    for index, golden in enumerate(goldens.values()):
        p = 1 / (1 + np.exp(-scores.path_logits[index].astype(np.float64)))
        assert far(p, golden["path_softmax"][:, 0]) < SCORE
        assert far(scores.p_std[index], golden["path_softmax"][:, 0].std()) < SCORE


def test_lung_probability_and_masks(scores: Scores, goldens: dict[str, Golden]) -> None:
    for index, golden in enumerate(goldens.values()):
        got = scores.lung_probability[index]
        assert far(got, golden["mask_v7"]) < PROBABILITY + rounding_of(golden["mask_v7"])
        levels = np.rint(got.astype(np.float64) * 255)
        assert far(levels, golden["mask_v7_u8"]) <= 1
        assert (levels != golden["mask_v7_u8"]).mean() < 1e-4
        assert np.array_equal(scores.lung_mask[index], golden["heat_mask"].astype(bool))


def test_jms_masks(bundle: Bundle, goldens: dict[str, Golden], pixels: np.ndarray) -> None:
    got = Scorer(bundle, mask_style="jms").score(pixels[:3]).lung_probability
    for index, golden in enumerate(list(goldens.values())[:3]):
        assert far(np.rint(got[index].astype(np.float64) * 255), golden["mask_jms_u8"]) <= 1
        assert far(got[index], golden["mask_jms"]) < PROBABILITY + rounding_of(golden["mask_jms"])


def test_scattering_and_pooled_mask(inner: Activations, goldens: dict[str, Golden]) -> None:
    checked = 0
    for index, golden in enumerate(goldens.values()):
        if "wst50" in golden:
            got = inner.path_inputs[index].permute(1, 2, 0).numpy()
            assert far(got[..., :49], golden["wst50"][..., :49]) < SCATTERING
            assert np.array_equal(got[..., 49] > np.float32(0.3), golden["bin_mask"].astype(bool))
            assert far(got[..., 49], golden["wst50"][..., 49]) < 2 / 255 / 16  # one mask level in a cell
            checked += 1
    assert checked == 2


def test_path_and_ensemble_maps(inner: Activations, goldens: dict[str, Golden]) -> None:
    checked = 0
    for index, golden in enumerate(goldens.values()):
        assert_map_close(inner.ensemble_map[index].permute(1, 2, 0).numpy(), golden["ens_map"])
        if "path_maps" in golden:
            assert_map_close(inner.path_maps[index].permute(0, 2, 3, 1).numpy(), golden["path_maps"])
            checked += 1
    assert checked == 2


@pytest.mark.parametrize(("variant", "suffix"), [("threshold", "thr"), ("multiply", "mul")])
def test_optional_variants(
    bundle: Bundle, goldens: dict[str, Golden], pixels: np.ndarray, variant: Any, suffix: str
) -> None:
    got = Scorer(bundle, variant=variant).score(pixels)
    for index, golden in enumerate(goldens.values()):
        assert far(got.class_probs[index], golden[f"ens_score_{suffix}"]) < SCORE
        map_hwC = golden[f"ens_map_{suffix}"]
        assert far(got.evidence_map[index], map_hwC[..., 0] - map_hwC[..., 1]) < MAP_RELATIVE * np.ptp(
            map_hwC
        )


def test_unquantised_mask(bundle: Bundle, goldens: dict[str, Golden], pixels: np.ndarray) -> None:
    got = Scorer(bundle, quantise_mask=False).score(pixels[:4])
    for index, golden in enumerate(list(goldens.values())[:4]):
        assert far(got.class_probs[index], golden["ens_score_floatmask"]) < SCORE


def test_heat_maps(scores: Scores, goldens: dict[str, Golden]) -> None:
    for index, golden in enumerate(goldens.values()):
        maps = rebuild(scores.evidence_map[index], scores.lung_mask[index])
        inside = scores.lung_mask[index]
        assert np.array_equal(np.isnan(maps.positive), np.isnan(golden["heat_pos"]))
        assert far(maps.positive[inside], golden["heat_pos"][inside]) < 2e-5 + rounding_of(golden["heat_pos"])


def test_heat_maps_from_eight_bits(scores: Scores, goldens: dict[str, Golden]) -> None:
    for index, golden in enumerate(goldens.values()):
        evidence = scores.evidence_map[index].astype(np.float64)
        low, high = evidence.min(), evidence.max()
        levels = np.rint((evidence - low) / (high - low) * 255)
        maps = rebuild(low + levels * (high - low) / 255, scores.lung_mask[index])
        inside = scores.lung_mask[index]
        named = {"heat_pos": maps.positive, "heat_neg": maps.negative, "heat_diff": maps.difference}
        for name, got in named.items():
            if name in golden:
                assert np.array_equal(np.isnan(got), np.isnan(golden[name]))
                assert far(got[inside], golden[name][inside]) < HEAT
