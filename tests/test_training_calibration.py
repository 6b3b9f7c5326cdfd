"""Platt scaling, prevalence and operating thresholds: what goes in comes out, and bundles take what they give."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.special import expit, logit

from cxr_ray.calibration import Calibration
from cxr_ray.errors import UsageError
from training.metrics.calibration import Platt, apply, calibrated_log_odds, fit_platt, shift_prevalence
from training.metrics.classification import calibration_error
from training.metrics.operating_points import NAMES, achieved, operating_points


def test_platt_finds_the_line_that_made_the_labels() -> None:
    generator = np.random.default_rng(0)
    score = generator.normal(3, 40, size=20_000)  # log-odds of a loud ensemble
    label = generator.random(20_000) < expit(0.03 * score - 0.4)
    platt = fit_platt(score, label)
    assert platt.slope == pytest.approx(0.03, rel=0.04)
    assert platt.intercept == pytest.approx(-0.4, abs=0.05)
    assert platt.prevalence == pytest.approx(label.mean())
    assert (platt.n, platt.n_positive) == (20_000, int(label.sum()))
    assert calibration_error(label, apply(platt, score)) < 0.01 < calibration_error(label, expit(score))
    assert apply(platt, score).mean() == pytest.approx(label.mean(), abs=1e-3)


def test_weights_count_as_copies() -> None:
    generator = np.random.default_rng(1)
    score, label = generator.normal(size=200), generator.random(200) < 0.3
    weights = generator.integers(1, 4, size=200)
    weighted, copied = (
        fit_platt(score, label, weights * 1.0),
        fit_platt(score.repeat(weights), label.repeat(weights)),
    )
    assert weighted.slope == pytest.approx(copied.slope, rel=1e-5)
    assert weighted.intercept == pytest.approx(copied.intercept, rel=1e-5)
    assert weighted.prevalence == pytest.approx(copied.prevalence)


def test_classes_that_do_not_overlap_still_give_finite_numbers() -> None:
    score = np.concatenate((np.linspace(-9, -5, 20), np.linspace(5, 9, 30)))
    platt = fit_platt(score, score > 0)
    assert np.isfinite([platt.slope, platt.intercept]).all()
    # Platt's targets: 1/22 and 31/32 are the most that 20 and 30 pictures can speak for.
    assert apply(platt, score).min() == pytest.approx(1 / 22, abs=0.03)
    assert apply(platt, score).max() == pytest.approx(31 / 32, abs=0.03)


@pytest.mark.parametrize(
    ("score", "label", "words"),
    [([1.0, 2.0], [True, True], "both classes"), ([1.0, np.nan], [True, False], "finite")],
)
def test_unusable_calibration_pictures_are_refused(score: list[float], label: list[bool], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fit_platt(np.array(score), np.array(label))


def test_prevalence_moves_the_odds_and_nothing_else() -> None:
    before = np.array([-2.0, 0.0, 3.0])
    after = shift_prevalence(before, 0.4, 0.05)
    ratio = np.exp(after) / np.exp(before)
    assert ratio == pytest.approx(np.full(3, (0.05 / 0.95) / (0.4 / 0.6)))
    assert shift_prevalence(after, 0.05, 0.4) == pytest.approx(before)
    assert expit(shift_prevalence(logit(0.4), 0.4, 0.05)) == pytest.approx(0.05)
    with pytest.raises(UsageError, match="between 0 and 1"):
        shift_prevalence(before, 0.4, 1.0)


def test_scoring_computes_the_same_probability() -> None:
    platt = Platt(slope=0.05, intercept=-0.3, prevalence=0.38, n=200, n_positive=76)
    readout = Calibration(calibration=platt.as_json()).readout(prevalence=0.1)
    score = np.array([-60.0, 0.0, 25.0])
    mine = expit(shift_prevalence(calibrated_log_odds(platt, score), platt.prevalence, 0.1))
    assert readout.probability(score) == pytest.approx(mine, abs=1e-12)


def test_three_thresholds_by_exhaustion() -> None:
    generator = np.random.default_rng(2)
    label = generator.random(200) < 0.4
    p = np.round(expit(generator.normal(size=200) + 1.5 * label), 2).astype(np.float32)
    points = operating_points(p, label, np.arange(200) // 2, draws=200, seed=0)
    assert tuple(points) == NAMES

    def reached(cut: float) -> tuple[float, float]:
        called = p >= cut
        return float(called[label].mean()), float((~called)[~label].mean())

    every = [reached(cut) for cut in np.unique(p)]
    for point in points.values():
        assert (point.sensitivity.value, point.specificity.value) == pytest.approx(reached(point.p_covid))
        assert point.sensitivity.low < point.sensitivity.value < point.sensitivity.high
        assert np.float32(point.p_covid) == point.p_covid
    best = {name: (point.sensitivity.value, point.specificity.value) for name, point in points.items()}
    assert sum(best["youden"]) == pytest.approx(max(sum(one) for one in every))
    assert best["sens95"][1] == pytest.approx(max(one[1] for one in every if one[0] >= 0.95))
    assert best["spec95"][0] == pytest.approx(max(one[0] for one in every if one[1] >= 0.95))
    # No picture lies on a threshold above the lowest, so that > and >= decide alike.
    assert not np.isin([point.p_covid for point in points.values()], p).any()


def test_neighbouring_float32_probabilities_are_told_apart() -> None:
    low = np.float32(0.7)
    high = np.nextafter(low, np.float32(1))
    p, label = np.array([low, high], np.float32), np.array([False, True])
    point = operating_points(p, label, ["a", "b"], draws=10, seed=0)["youden"]
    assert point.p_covid == high
    assert (point.sensitivity.value, point.specificity.value) == (1, 1)


def test_saturated_negatives_leave_a_shortfall_that_shows() -> None:
    p = np.array([0.1, 0.2, 1.0, 1.0, 1.0, 1.0], np.float32)
    label = np.array([False, False, False, True, True, True])
    point = operating_points(p, label, list("abcdef"), draws=50, seed=0)["spec95"]
    assert 0 < point.p_covid <= 1
    assert point.specificity.value == pytest.approx(2 / 3)
    with pytest.raises(UsageError, match="both classes"):
        operating_points(p, np.ones(6, dtype=bool), list("abcdef"), draws=50, seed=0)


def test_a_bundle_takes_both_as_they_are() -> None:
    generator = np.random.default_rng(3)
    label = generator.random(150) < 0.4
    score = generator.normal(0, 8, size=150) + 6 * label
    points = operating_points(expit(score), label, np.arange(150), draws=200, seed=0)
    record = {
        "calibration": fit_platt(score, label).as_json(),
        "thresholds": {name: point.as_json() for name, point in points.items()},
    }
    readout = Calibration.from_record(record).readout(threshold="sens95")
    assert readout.cut == points["sens95"].p_covid
    called = [
        readout.values(logit=float(s), p_covid=float(np.float32(expit(s))), lungs_small=False)["decision"]
        for s in score
    ]
    sensitivity = np.mean([one == "positive" for one, truth in zip(called, label, strict=True) if truth])
    assert sensitivity == pytest.approx(points["sens95"].sensitivity.value)


def test_a_threshold_on_pictures_of_one_class_has_no_specificity() -> None:
    point = achieved(0.5, np.array([0.4, 0.9]), np.array([True, True]), ["a", "b"], draws=20, seed=0)
    assert point.sensitivity.value == 0.5
    assert point.as_json()["specificity"] == [None, None, None]
    assert dataclasses.is_dataclass(point)
