"""The page: sections in a Jinja2 template, nothing outside it."""

from __future__ import annotations

from typing import Final

from cxr_ray import __version__
from cxr_ray.errors import MissingExtra
from training.report.blocks import Details, Figure, Note, Table
from training.report.run import Run
from training.report.sections import SECTIONS

NOTICE: Final = (
    "Research software, not a medical device. Nothing on this page supports a clinical claim, and nothing here may "
    "guide the care of a patient."
)


def build_page(run: Run, title: str | None = None) -> str:
    """HTML of the whole report; the same run always gives the same text.

    Raises:
        MissingExtra: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtra(
            "the report needs Jinja2; install it with: pip install 'cxr_ray[train]'"
        ) from error
    environment = Environment(
        loader=PackageLoader("training.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )
    kinds = {Figure: "figure", Table: "table", Note: "note", Details: "details"}
    environment.tests["kind"] = lambda block, name: kinds[type(block)] == name
    sections = [make(run) for make in SECTIONS]
    name = (run.classification.bundle or {}).get("name")
    return environment.get_template("report.html.j2").render(
        title=title or (f"How “{name}” was trained" if name else "Training report"),
        notice=NOTICE,
        sections=[section for section in sections if section.blocks],
        missing=[sentence for section in sections for sentence in section.missing],
        version=__version__,
        places=run.places,
    )


def _unbroken(value: object) -> object:
    """No line break between a number and its per cent sign."""
    return value.replace(" %", "\u00a0%") if isinstance(value, str) else value
