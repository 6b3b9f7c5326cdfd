"""The sections of the page, in their order; each is a function of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from training.report.blocks import Section
from training.report.run import Run
from training.report.sections.confusions import confusions
from training.report.sections.curves import classification_curves, segmentation_curves
from training.report.sections.ensemble import ensemble_table
from training.report.sections.hide_and_seek import hide_and_seek
from training.report.sections.lungs import lungs
from training.report.sections.provenance import provenance
from training.report.sections.receiver import receiver
from training.report.sections.reliability import histograms, reliability
from training.report.sections.sources import sources
from training.report.sections.split import split
from training.report.sections.summary import summary

SECTIONS: Final[tuple[Callable[[Run], Section], ...]] = (
    summary,
    split,
    segmentation_curves,
    lungs,
    classification_curves,
    receiver,
    confusions,
    ensemble_table,
    sources,
    hide_and_seek,
    reliability,
    histograms,
    provenance,
)
