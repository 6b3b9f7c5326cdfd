"""Whether a probability means what it says, and how the scores are spread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.calibration import calibration_curve

from training.report.blocks import Block, Figure, Section, Table, number
from training.report.drawing import FAINT, NEGATIVE, POSITIVE, Drawing
from training.report.run import Run
from training.report.scored import Scored
from training.report.sections.sources import interval_words

_BINS = 10


def reliability(run: Run) -> Section:
    """Reliability curves before and after calibration, the thresholds, and what they reach."""
    bundle = run.classification.bundle or {}
    platt = bundle.get("calibration")
    blocks: list[Block] = [_curve(split, pictures, platt) for split, pictures in run.ensemble.items()]
    if bundle.get("thresholds"):
        blocks.append(_thresholds(run, bundle))
    figures = [table for split in run.classification.audits if (table := _errors(run, split)) is not None]
    missing = []
    if not run.ensemble:
        missing.append(
            "Calibration plots are not shown: neither calibration.parquet nor audit/*/predictions.parquet is in "
            f"{run.classification.url}."
        )
    if not bundle:
        missing.append(
            f"Operating thresholds are not shown: bundle/bundle.json is not in {run.classification.url}."
        )
    return Section(
        name="calibration",
        title="Calibration and thresholds",
        blocks=(*blocks, *figures),
        missing=tuple(missing),
    )


def histograms(run: Run) -> Section:
    """Scores of both classes, one figure for each set of pictures."""
    sets = dict(run.ensemble)
    names = {split: f"Ensemble on {split}" for split in sets}
    if run.out_of_fold is not None:
        sets["oof"] = run.out_of_fold
        names["oof"] = "Out of fold, single paths"
    blocks = tuple(_histogram(names[key], pictures, run.positive) for key, pictures in sets.items())
    missing = (
        "Histograms are not shown: neither members/*/out_of_fold.parquet, calibration.parquet nor "
        f"audit/*/predictions.parquet is in {run.classification.url}.",
    )
    return Section(
        name="histograms", title="How the scores are spread", blocks=blocks, missing=() if blocks else missing
    )


def _curve(split: str, pictures: Scored, platt: dict[str, Any] | None) -> Figure:
    lines = {"uncalibrated": (pictures.probability, FAINT, "s", "--")}
    if platt:
        calibrated = expit(platt["slope"] * pictures.logit + platt["intercept"])
        lines["calibrated (Platt)"] = (calibrated, POSITIVE, "o", "-")
    said = []
    with (drawing := Drawing((5.2, 5.0))) as axes:
        axes.plot([0, 1], [0, 1], color=FAINT, lw=0.8, ls=":")
        for name, (probability, face, marker, dash) in lines.items():
            share, mean = calibration_curve(pictures.positive, probability, n_bins=_BINS, strategy="quantile")
            axes.plot(mean, share, color=face, marker=marker, ls=dash, ms=5, label=name)
            said.append(
                f"{name}: " + ", ".join(f"{x:.2f} → {y:.2f}" for x, y in zip(mean, share, strict=True))
            )
        axes.set(
            xlabel="mean probability", ylabel="share of positives", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
        )
        axes.legend(loc="upper left")
    own = (
        " The calibration was fitted on these very pictures, so they only show the fit."
        if split == "calibration"
        else ""
    )
    prevalence = (
        f" Valid at a prevalence of {platt['prevalence']:.3f}; here {pictures.positive.mean():.3f}."
        if platt
        else ""
    )
    return Figure(
        title=f"Reliability on {split}",
        image=drawing.uri,
        alt=f"Share of positives over mean probability. {'; '.join(said)}. On the diagonal a probability means what it "
        "says.",
        how=f"{_BINS} bins of equal size (scikit-learn's calibration_curve).{prevalence}{own}",
    )


def _thresholds(run: Run, bundle: dict[str, Any]) -> Table:
    audited = {
        split: audit.facts["operating_points"]
        for split, audit in run.classification.audits.items()
        if audit.facts.get("operating_points")
    }
    sets = {"calibration": bundle["thresholds"], **audited}
    rows = tuple(
        (
            name + (" (default)" if name == bundle.get("default_threshold") else ""),
            number(point["p_covid"], 4),
            *(
                interval_words(points.get(name, {}).get(key))
                for points in sets.values()
                for key in ("sensitivity", "specificity")
            ),
        )
        for name, point in bundle["thresholds"].items()
    )
    return Table(
        title="Operating thresholds and what they reach",
        columns=(
            "threshold",
            "uncalibrated p",
            *(f"{key}, {s}" for s in sets for key in ("sensitivity", "specificity")),
        ),
        rows=rows,
        how="Chosen on the calibration split, so those figures flatter; the others are reached elsewhere. 95 % "
        "intervals over whole groups. youden: largest sum of both; sens95 and spec95: at least 0.95 of one.",
    )


def _errors(run: Run, split: str) -> Table | None:
    found = run.classification.audits[split].facts.get("calibration")
    if not found:
        return None
    rows = tuple(
        (words, *(interval_words(found.get(kind, {}).get(key)) for key in ("brier", "calibration_error")))
        for kind, words in (("raw", "uncalibrated"), ("calibrated", "calibrated"))
    )
    return Table(
        title=f"Error of the probability on {split}",
        columns=("probability", "Brier score", "calibration error"),
        rows=rows,
        how=f"Lower is better; {_BINS} bins of equal size. Fitted at a prevalence of "
        f"{number(found.get('prevalence'))}, judged at {number(found.get('prevalence_here'))}: the "
        "further apart, the less the second row can be right.",
    )


def _histogram(title: str, pictures: Scored, positive: str) -> Figure:
    edges: NDArray[np.float64] = np.linspace(0, 1, 21)
    yes, no = pictures.probability[pictures.positive], pictures.probability[~pictures.positive]
    with (drawing := Drawing()) as axes:
        for values, face, name, dash in ((no, NEGATIVE, "other", "-"), (yes, POSITIVE, positive, "--")):
            axes.hist(values, edges, color=face, alpha=0.28)
            axes.hist(
                values, edges, color=face, histtype="step", lw=1.5, ls=dash, label=f"{name} ({len(values):,})"
            )
        axes.set(xlabel="uncalibrated probability", ylabel="pictures", xlim=(0, 1))
        axes.legend(loc="upper center")
    medians = "; ".join(
        f"{name}: median {np.median(values):.2f}"
        for name, values in ((positive, yes), ("other", no))
        if len(values)
    )
    return Figure(
        title=title,
        image=drawing.uri,
        alt=f"Histogram of the probability by true class. {medians}.",
        how=f"Number of pictures in 20 bins of equal width. {medians}.",
    )
