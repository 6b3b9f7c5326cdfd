"""Platt scaling, prevalence shift and thresholds: by hand, at the ends of the range, and refused where wrong."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from made_calibration import MADE, PLATT, THRESHOLDS

from cxr_ray.calibration import Calibration, Readout
from cxr_ray.errors import BundleError, UsageError


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_platt_by_hand_and_at_the_ends() -> None:
    readout = MADE.readout()
    assert readout.prevalence == 0.25
    assert readout.probability([-2.0, 0.0, 3.0]) == pytest.approx([sigmoid(-2), sigmoid(-1), sigmoid(0.5)])
    ends = readout.probability([-1e5, 1e5])
    assert ends[0] < 1e-300
    assert ends[1] == 1


def test_a_prevalence_shifts_the_log_odds_by_bayes() -> None:
    """Odds at another prevalence = likelihood ratio times the other prior odds."""
    fitted, shifted = MADE.readout().probability(1.7), MADE.readout(prevalence=0.02).probability(1.7)
    likelihood_ratio = (fitted / (1 - fitted)) / (0.25 / 0.75)
    assert shifted / (1 - shifted) == pytest.approx(likelihood_ratio * 0.02 / 0.98)
    assert MADE.readout(prevalence=0.25).probability(1.7) == pytest.approx(fitted)
    assert MADE.readout(prevalence=0.02).cut == MADE.readout().cut == 0.5


def test_values_of_a_row() -> None:
    row = MADE.readout().values(logit=0.0, p_covid=0.5, lungs_small=False)
    assert row == {
        "p_calibrated": pytest.approx(sigmoid(-1)),
        "decision": "positive",  # from the threshold on
        "threshold_name": "youden",
    }
    below = MADE.readout().values(logit=0.0, p_covid=np.nextafter(0.5, 0), lungs_small=False)
    assert below["decision"] == "negative"
    small = MADE.readout().values(logit=0.0, p_covid=0.5, lungs_small=True)
    assert small == row | {"decision": None, "threshold_name": None}
    assert set(Readout().values(logit=0.0, p_covid=0.5, lungs_small=False).values()) == {None}


@pytest.mark.parametrize(
    ("threshold", "cut", "name"),
    [(None, 0.5, "youden"), ("sens95", 0.2, "sens95"), ("0.4", 0.4, "0.4"), (0.4, 0.4, "0.4"), (1, 1, "1.0")],
)
def test_thresholds_by_name_and_by_number(threshold: Any, cut: float, name: str) -> None:
    readout = MADE.readout(threshold=threshold)
    assert (readout.cut, readout.threshold_name) == (cut, name)


def test_no_default_no_decision_and_a_number_needs_no_calibration() -> None:
    assert Calibration(thresholds=THRESHOLDS, default_threshold=None).readout().cut is None
    assert Calibration().readout() == Readout()
    assert Calibration().readout(threshold=0.3) == Readout(cut=0.3, threshold_name="0.3")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": "spec95"}, "one of sens95, youden"),
        ({"threshold": "1.5"}, "from 0 to 1"),
        ({"threshold": "nan"}, "from 0 to 1"),
        ({"prevalence": 0.0}, "between 0 and 1"),
        ({"prevalence": 1.0}, "between 0 and 1"),
        ({"prevalence": math.nan}, "between 0 and 1"),
    ],
)
def test_unusable_readouts_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        MADE.readout(**options)


def test_a_prevalence_without_calibration_is_refused() -> None:
    with pytest.raises(UsageError, match="no calibration"):
        Calibration(thresholds=THRESHOLDS).readout(prevalence=0.1)


def test_the_id_names_all_three_and_survives_json() -> None:
    assert Calibration().id is None
    assert Calibration(default_threshold=None).id is None
    again = Calibration.from_record(json.loads(json.dumps(MADE.record())))
    assert again.id == MADE.id
    assert len(str(MADE.id)) == 32
    others = [
        Calibration(calibration=PLATT | {"slope": 0.6}, thresholds=THRESHOLDS),
        Calibration(calibration=PLATT, thresholds={"youden": THRESHOLDS["youden"]}),
        Calibration(calibration=PLATT, thresholds=THRESHOLDS, default_threshold="sens95"),
        Calibration(calibration=PLATT),
    ]
    assert len({MADE.id, *(other.id for other in others)}) == 5


BAD: list[tuple[list[str], Any, str]] = [
    (["calibration", "method"], "isotonic", 'method "platt"'),
    (["calibration"], [1], 'method "platt"'),
    (["calibration", "slope"], "steep", r"calibration\.slope should be a number"),
    (["calibration", "slope"], -0.5, "above 0"),
    (["calibration", "intercept"], math.inf, r"calibration\.intercept should be a number"),
    (["calibration", "prevalence"], 1.0, r"calibration\.prevalence"),
    (["calibration", "n_positive"], 80, "both classes"),
    (["calibration", "n"], None, r"calibration\.n should"),
    (["thresholds"], [0.5], "object of names"),
    (["thresholds", "0.4"], THRESHOLDS["youden"], "named by a word"),
    (["thresholds", "youden"], 0.5, r"thresholds\.youden should be an object"),
    (["thresholds", "youden", "p_covid"], 1.5, r"thresholds\.youden\.p_covid"),
    (["thresholds", "youden", "sensitivity"], 0.9, "value, low, high"),
    (["thresholds", "youden", "specificity"], [0.7, 0.9, 0.8], "value, low, high"),
    (["default_threshold"], "spec95", "none of the thresholds"),
]


@pytest.mark.parametrize(("place", "value", "words"), BAD, ids=lambda part: str(part)[:40])
def test_wrong_shapes_are_named(place: list[str], value: Any, words: str) -> None:
    record: Any = copy.deepcopy(MADE.record())
    inner = record
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(BundleError, match=words):
        Calibration.from_record(record)
