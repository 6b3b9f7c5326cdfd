"""A calibration with round numbers, as a bundle would carry it; fitted on nothing."""

from __future__ import annotations

from cxr_ray.calibration import Calibration

PLATT = {"method": "platt", "slope": 0.5, "intercept": -1.0, "prevalence": 0.25, "n": 80, "n_positive": 20}
THRESHOLDS = {
    "youden": {"p_covid": 0.5, "sensitivity": [0.8, 0.7, 0.9], "specificity": [0.75, 0.65, 0.85]},
    "sens95": {"p_covid": 0.2, "sensitivity": [0.95, 0.9, 0.99], "specificity": [0.4, 0.3, 0.5]},
}
MADE = Calibration(calibration=PLATT, thresholds=THRESHOLDS)
