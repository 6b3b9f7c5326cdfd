"""What was run: settings, packages, data, licences."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Final

from training.report.blocks import Block, Details, Note, Section, Table, count, number
from training.report.reading import TrainingOutput
from training.report.run import Run

_SECRET: Final = re.compile(r"(options|secret|token|password|credential)$|^key(_file|_env)?$")
_HIDDEN: Final = "(not shown)"


def provenance(run: Run) -> Section:
    """Resolved settings of each task, package versions, licences of the pictures, and the bundle's own words."""
    outputs = {"classification": run.classification}
    if run.segmentation.url != run.classification.url:
        outputs["segmentation"] = run.segmentation
    blocks: list[Block] = []
    missing = []
    for name, output in outputs.items():
        task = output.task or name
        if output.config is None:
            missing.append(f"The settings of the {task} are not shown: config.json is not in {output.url}.")
        else:
            blocks.append(_packages(task, output.config))
        if output.split is not None and output.split.num_rows:
            blocks.append(_licences(task, output))
    bundle = run.classification.bundle
    if bundle is None:
        missing.append(f"The bundle is not described: bundle/bundle.json is not in {run.classification.url}.")
    else:
        blocks += _bundle(bundle)
    blocks += [
        Details(title=f"Resolved settings: {output.task or name}", text=shown(output.settings))
        for name, output in outputs.items()
        if output.settings
    ]
    return Section(name="provenance", title="What was run", blocks=tuple(blocks), missing=tuple(missing))


def shown(settings: Any) -> str:
    """Settings as indented JSON, without storage options, keys and credentials inside addresses."""
    return json.dumps(_clean(settings), indent=2, ensure_ascii=False)


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(name): _HIDDEN if _SECRET.search(str(name)) and inner else _clean(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, str):
        return re.sub(r"(\w+://)[^/\s]*@", r"\1", value)
    return value


def _packages(task: str, config: dict[str, Any]) -> Table:
    settings = config.get("settings", config)
    recipe = settings.get("recipe", {})
    facts = {
        "task": task,
        "recipe": recipe.get("name"),
        "seed": recipe.get("loop", {}).get("seed", settings.get("seed")),
        "Python": config.get("python"),
        **(config.get("packages") or {}),
    }
    return Table(
        title=f"The {task} run",
        columns=("what", "value"),
        rows=tuple((name, str(value)) for name, value in facts.items() if value is not None),
        how="config.json of the output.",
        words=frozenset({1}),
    )


def _licences(task: str, output: TrainingOutput) -> Table:
    assert output.split is not None
    rows = output.split.to_pylist()
    tally: Counter[tuple[str, str]] = Counter()
    left: Counter[tuple[str, str]] = Counter()
    for row in rows:
        cell = (str(row.get("source") or "unknown"), str(row.get("licence") or "none stated"))
        tally[cell] += row["split"] in ("train", "calibration", "val")
        left[cell] += row["split"] == "left_out"
    return Table(
        title=f"Licences as stated, {task}",
        columns=("source", "licence", "used pictures", "left out"),
        rows=tuple(
            (source, licence, count(tally[source, licence]), count(left[source, licence]))
            for source, licence in sorted(tally)
        ),
        how="Rows of split.parquet. Used: training, calibration and validation; a test split is in neither column.",
        words=frozenset({1}),
    )


def _bundle(bundle: dict[str, Any]) -> list[Block]:
    platt = bundle.get("calibration") or {}
    facts = {
        "name": bundle.get("name"),
        "trained on": bundle.get("trained_on"),
        "paths": bundle.get("paths"),
        "classes": ", ".join(bundle.get("classes", [])),
        "lung gate": {True: "on", False: "off"}.get(bundle.get("lung_gate", "")),
        "mask style": bundle.get("mask_style"),
        "calibration": f"Platt, slope {number(platt['slope'], 4)}, intercept {number(platt['intercept'], 4)}, "
        f"prevalence {platt['prevalence']:.3f}, {platt['n']} pictures ({platt['n_positive']} positive)"
        if platt
        else None,
        "training data": bundle.get("training_data_fingerprint"),
    }
    table = Table(
        title="The bundle",
        columns=("what", "value"),
        rows=tuple((name, str(value)) for name, value in facts.items() if value not in (None, "")),
        how="bundle/bundle.json.",
        words=frozenset({1}),
    )
    basis = bundle.get("licence_basis")
    return [table, *([Note(text=f"Licence basis: {basis}")] if basis else [])]
