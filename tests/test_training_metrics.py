"""Figures and their intervals: equal to scikit-learn, to the goldens, and to what can be counted by hand."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from training.metrics.bootstrap import (
    Interval,
    group_bootstrap,
    group_bootstrap_many,
    paired_difference,
    resamples,
)
from training.metrics.classification import (
    average_precision,
    binary_metrics,
    calibration_error,
    mixed_source_auc,
    mixed_sources,
    multiclass_metrics,
    roc_auc,
    with_intervals,
    within_source_auc,
)
from training.metrics.segmentation import PAPER_POOLED, lung_metrics, pooled_accuracy


def sample(count: int, seed: int, *, ties: bool = False) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels and probabilities that know something of each other."""
    generator = np.random.default_rng(seed)
    label = generator.random(count) < 0.4
    p = 1 / (1 + np.exp(-(generator.normal(size=count) + label)))
    return label, np.round(p, 1) if ties else p


@pytest.mark.parametrize("ties", [False, True])
def test_binary_figures_equal_scikit_learn(ties: bool) -> None:
    label, p = sample(300, 1, ties=ties)
    found = binary_metrics(label, p, 0.5)
    called = p >= 0.5
    expected = {
        "accuracy": reference.accuracy_score(label, called),
        "precision": reference.precision_score(label, called),
        "recall": reference.recall_score(label, called),
        "f1": reference.f1_score(label, called),
        "specificity": reference.recall_score(~label, ~called),
        "roc_auc": reference.roc_auc_score(label, p),
        "pr_auc": reference.average_precision_score(label, p),
        "brier": reference.brier_score_loss(label, p),
    }
    assert found == pytest.approx({**expected, "calibration_error": found["calibration_error"]}, abs=1e-12)


def test_calibration_error_is_that_of_scikit_learns_quantile_bins() -> None:
    label, p = sample(1000, 2)
    share, mean = calibration_curve(label, p, n_bins=10, strategy="quantile")
    assert calibration_error(label, p) == pytest.approx(np.abs(share - mean).mean(), abs=1e-12)
    # By hand: everybody is told 0.8 and half are positive; one bin, whatever the order of the ties.
    half = np.arange(40) % 2 == 0
    assert calibration_error(half, np.full(40, 0.8)) == pytest.approx(0.3)


def test_what_is_undefined_is_nan_and_never_a_number() -> None:
    label = np.ones(4, dtype=bool)
    found = binary_metrics(label, np.full(4, 0.2), 0.5)
    assert {name for name, value in found.items() if math.isnan(value)} == {
        "precision",
        "specificity",
        "roc_auc",
    }
    assert math.isnan(average_precision(~label, np.zeros(4)))
    assert found["recall"] == found["f1"] == 0


def test_log_odds_rank_where_probabilities_saturate() -> None:
    label = np.array([False, True, True])
    logit = np.array([50.0, 60.0, 70.0])
    p = 1 / (1 + np.exp(-logit))
    assert roc_auc(label, p) == 0.5
    assert binary_metrics(label, p, 0.5, score=logit)["roc_auc"] == 1


def test_mixed_and_within_source_areas_against_counted_pairs() -> None:
    generator = np.random.default_rng(3)
    source = generator.choice(["a", "b", "one"], 120)
    label = np.where(source == "one", True, generator.random(120) < 0.5)
    score = np.round(generator.normal(size=120) + label + (source == "b"), 1)

    def counted(same_source: bool) -> float:
        wins = [
            (score[i] > score[j]) + 0.5 * (score[i] == score[j])
            for i in np.flatnonzero(label)
            for j in np.flatnonzero(~label)
            if source[i] != "one" and (source[i] == source[j] or not same_source)
        ]
        return float(np.mean(wins))

    assert mixed_sources(label, source) == ["a", "b"]
    assert mixed_source_auc(label, score, source) == pytest.approx(counted(False), abs=1e-12)
    assert within_source_auc(label, score, source) == pytest.approx(counted(True), abs=1e-12)
    assert counted(True) != counted(False)
    assert math.isnan(within_source_auc(label, score, np.arange(120)))


def test_several_classes_are_macro_one_against_the_rest() -> None:
    generator = np.random.default_rng(4)
    label = generator.integers(3, size=200)
    p = generator.dirichlet(np.ones(3), size=200) + 0.5 * np.eye(3)[label]
    p /= p.sum(axis=1, keepdims=True)
    found = multiclass_metrics(label, p)
    assert found["roc_auc_macro"] == pytest.approx(
        reference.roc_auc_score(label, p, multi_class="ovr", average="macro")
    )
    assert found["pr_auc_macro"] == pytest.approx(reference.average_precision_score(np.eye(3)[label], p))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(label, p.argmax(axis=1)))
    assert found["brier"] == pytest.approx(((p - np.eye(3)[label]) ** 2).sum(axis=1).mean())


def test_groups_are_drawn_whole() -> None:
    groups = np.array(["a", "b", "a", "c", "b", "a"])
    drawn = list(resamples(groups, draws=200, seed=0))
    for indices in drawn:
        counts = np.bincount(indices, minlength=6)
        for name in "abc":
            assert len(set(counts[groups == name])) == 1
        assert sum(counts[np.flatnonzero(groups == name)[0]] for name in "abc") == 3
    assert {len(indices) for indices in drawn} > {6}
    again = list(resamples(groups, draws=200, seed=0))
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_the_interval_of_a_mean_is_the_textbook_one_and_groups_widen_it() -> None:
    values = np.random.default_rng(5).normal(size=400)
    single = group_bootstrap(lambda i: float(values[i].mean()), np.arange(400), seed=1)
    error = values.std() / np.sqrt(400)
    assert single.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert single.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    copies = np.repeat(values, 4)
    grouped = group_bootstrap(lambda i: float(copies[i].mean()), np.repeat(np.arange(400), 4), seed=1)
    apart = group_bootstrap(lambda i: float(copies[i].mean()), np.arange(1600), seed=1)
    assert grouped.high - grouped.low == pytest.approx(single.high - single.low, rel=0.1)
    assert apart.high - apart.low < 0.6 * (grouped.high - grouped.low)


def test_draws_without_a_value_are_left_out_and_counted() -> None:
    label = np.array([True, False, False])
    interval = group_bootstrap(
        lambda i: roc_auc(label[i], np.array([3.0, 1.0, 2.0])[i]), list("abc"), draws=500, seed=0
    )
    # A draw lacks the positive with (2/3)^3 and all negatives with (1/3)^3.
    assert interval.left_out == pytest.approx(500 * 9 / 27, abs=40)
    assert interval.draws + interval.left_out == 500
    assert (interval.value, interval.low, interval.high) == (1, 1, 1)
    nothing = group_bootstrap(lambda i: roc_auc(label[i] | True, label[i] * 1.0), list("abc"), seed=0)
    assert nothing.as_dict() == {"value": None, "low": None, "high": None, "draws": 0, "left_out": 2000}
    assert Interval(0.5, 0.4, 0.6).as_list() == [0.5, 0.4, 0.6]
    assert group_bootstrap_many(lambda i: {"x": 1.0}, [], seed=0) == {}


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    label, p = sample(300, 6)
    score, slightly = p, p + 0.02 * np.random.default_rng(7).normal(size=300)
    groups = np.arange(300)
    difference = paired_difference(
        lambda i: roc_auc(label[i], score[i]),
        lambda i: roc_auc(label[i], slightly[i]),
        groups,
        draws=400,
        seed=0,
    )
    alone = group_bootstrap(lambda i: roc_auc(label[i], score[i]), groups, draws=400, seed=0)
    assert difference.value == pytest.approx(roc_auc(label, score) - roc_auc(label, slightly))
    assert difference.high - difference.low < 0.3 * (alone.high - alone.low)


def test_thousands_of_draws_of_all_figures_take_seconds() -> None:
    label, p = sample(500, 8)
    began = time.process_time()
    found = with_intervals(label, p, 0.5, groups=np.arange(500) // 2, draws=500, seed=0)
    assert time.process_time() - began < 4
    assert all(one.low <= one.value <= one.high for name, one in found.items() if name != "calibration_error")


def test_lung_metrics_equal_the_goldens(shared_dir: Path) -> None:
    golden = np.load(shared_dir / "reference" / "golden" / "_loss_cases.npz")
    pred, true = golden["p"][..., 0] > 0.5, golden["y_lung"] > 0
    assert lung_metrics(pred, true)["dice"] == pytest.approx(golden["lung_only_dice"], abs=1e-8)
    dice, jaccard, precision, recall, f1 = golden["other_metrics_dice_jac_prec_rec_f1"]
    assert pooled_accuracy(pred, true)[PAPER_POOLED] == pytest.approx(dice, abs=2e-5)
    assert dice == precision == recall == f1
    assert jaccard == pytest.approx(dice / (2 - dice), abs=1e-6)


def test_lung_metrics_by_hand() -> None:
    true = np.zeros((4, 4, 5), dtype=bool)
    pred = np.zeros((4, 4, 5), dtype=bool)
    true[0, :2], pred[0, 1:] = True, True  # 10 true, 15 predicted, 5 shared
    true[1] = True  # all missed
    pred[2, 0] = True  # nothing there
    found = {name: values.tolist() for name, values in lung_metrics(pred, true).items()}
    assert found == {
        "dice": [pytest.approx(10 / 25), 0, 0, 1],
        "jaccard": [pytest.approx(5 / 20), 0, 0, 1],
        "precision": [pytest.approx(5 / 15), 0, 0, 1],
        "recall": [pytest.approx(5 / 10), 0, 0, 1],
    }
    assert pooled_accuracy(pred, true) == {PAPER_POOLED: pytest.approx((5 + 0 + 15 + 20) / 80)}
    with pytest.raises(ValueError, match="bool"):
        lung_metrics(pred.astype(np.float32), true)
