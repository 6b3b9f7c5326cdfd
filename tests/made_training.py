"""A small made training output, file by file as ``jobs/train.py`` and ``jobs/audit.py`` write them; no real figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

POSITIVE, NEGATIVE = "Covid+", "Covid-"
PATHS = 6
SECRET = "do-not-print-this"
# Source -> (share of the positive class, pictures): two of them hold both classes.
SOURCES = {"north": (0.6, 96), "east": (0.4, 48), "south": (1.0, 72), "west": (0.0, 144)}


def write_training(root: Path) -> dict[str, str]:
    """Write segmentation, classification and assembled output below ``root``; returns their places by task."""
    places = {task: str(root / task) for task in ("segmentation", "classification", "assemble")}
    _segmentation(Path(places["segmentation"]))
    rows = _classification(Path(places["classification"]), places)
    _assembled(Path(places["assemble"]), rows, places)
    return places


def config(task: str, **settings: Any) -> dict[str, Any]:
    """``config.json`` of one task."""
    recipe = {"name": "default", "loop": {"seed": 1}, "classification": {"positive_class": POSITIVE}}
    manifest = {"path": f"s3://reader:{SECRET}@bucket/manifest.csv", "options": {"secret": SECRET}}
    return {
        "settings": {"task": task, "recipe": recipe, "manifest": manifest, **settings},
        "packages": {"cxr_ray": "0.1.0", "torch": "2.13.0"},
        "python": "3.11.9",
    }


def put_json(path: Path, content: Any) -> None:
    """Write JSON, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def put_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write Parquet, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def _history(
    epochs: int, random: np.random.Generator, names: dict[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    """Metrics move from the first to the second number, with noise; the first epoch was not validated."""
    rows = []
    for epoch in range(1, epochs + 1):
        done = 1 - np.exp(-3 * epoch / epochs)
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": 20 * epoch,
            "learning_rate": 0.01 * (1 - epoch / epochs),
        }
        row |= {"seconds": 31.5, "images_per_second": 38.0}
        for name, (first, last) in names.items():
            value = first + (last - first) * done + random.normal(0, 0.01)
            row[name] = None if epoch == 1 and name.startswith("val_") else float(value)
        rows.append(row)
    return rows


def _segmentation(place: Path) -> None:
    random = np.random.default_rng(3)
    put_json(place / "config.json", config("segmentation"))
    split = []
    for style, sources in {"v7": ("north", "west"), "jms": ("east",)}.items():
        curve = {"train_loss": (0.6, 0.12), "val_dice": (0.7, 0.93), "val_tanimoto": (0.8, 0.96)}
        put_rows(place / "members" / style / "history.parquet", _history(20, random, curve))
        rows = []
        for number in range(30):
            dice = float(np.clip(random.normal(0.93, 0.02), 0, 1))
            name, source = f"{style}{number:03}", sources[number % len(sources)]
            rows.append(
                {
                    "image_id": name,
                    "dice": dice,
                    "jaccard": dice / (2 - dice),
                    "precision": 0.94,
                    "recall": dice,
                }
            )
            split.append(
                {"image_id": name, "patient_key": name, "group": name, "source": source, "label": None, "split": "val",
                 "fold": None, "licence": "CC BY 4.0", "reason": None}
            )  # fmt: skip
        # As the job writes it: without the source, which split.parquet knows.
        put_rows(place / "members" / style / "validation.parquet", rows)
    put_rows(place / "split.parquet", split)


def _pictures(random: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for source, (share, pictures) in SOURCES.items():
        for number in range(pictures):
            side = ("train", "train", "train", "train", "calibration", "test")[number % 6]
            reason = "licence" if side == "train" and source == "west" and number % 24 == 0 else None
            positive = number < share * pictures if share in (0, 1) else random.random() < share
            group = f"{source}{number // 12 * 6 + number % 6}"
            rows.append(
                {"image_id": f"{source}-{number:03}", "patient_key": f"key-{group}", "group": group, "source": source,
                 "label": POSITIVE if positive else NEGATIVE, "view": "AP" if number % 3 else "PA", "pediatric": None,
                 "licence": "CC BY-NC 4.0" if reason else None, "split": "left_out" if reason else side,
                 "fold": int(len(rows) // 6 % PATHS) if side == "train" and not reason else None, "reason": reason}
            )  # fmt: skip
    return rows


def _score(row: dict[str, Any], random: np.random.Generator) -> float:
    return float((1.4 if row["label"] == POSITIVE else -1.4) + random.normal(0, 1.6))


def _classification(place: Path, places: dict[str, str]) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    rows = _pictures(random)
    put_json(place / "config.json", config("classification", segmentation=places["segmentation"]))
    put_rows(place / "split.parquet", rows)
    curve = {"train_loss": (0.5, 0.2), "val_loss": (0.5, 0.27), "val_auc": (0.6, 0.92), "val_mixed_auc": (0.5, 0.72),
             "val_accuracy": (0.6, 0.86)}  # fmt: skip
    for fold in range(PATHS):
        put_rows(place / "members" / f"fold{fold}" / "history.parquet", _history(8, random, curve))
        scores = []
        for row in rows:
            if row["fold"] == fold:
                logit = _score(row, random)
                scores.append({**row, "logit": logit, "p": 1 / (1 + np.exp(-logit))})
        put_rows(place / "members" / f"fold{fold}" / "out_of_fold.parquet", scores)
    return rows


def _assembled(place: Path, rows: list[dict[str, Any]], places: dict[str, str]) -> None:
    random = np.random.default_rng(2)
    put_json(
        place / "config.json",
        config("assemble", **{k: places[k] for k in ("segmentation", "classification")}),
    )
    bundle = {
        "name": "made", "positive_class": POSITIVE, "classes": [POSITIVE, NEGATIVE], "paths": PATHS, "lung_gate": True,
        "mask_style": "v7", "trained_on": "made pictures", "licence_basis": "Made pictures, free to use.",
        "calibration": {"method": "platt", "slope": 0.9, "intercept": -0.2, "prevalence": 0.4,
                        "n": 60, "n_positive": 24},
        "thresholds": {
            "youden": {"p_covid": 0.41, "sensitivity": [0.85, 0.7, 0.95], "specificity": [0.82, 0.7, 0.9]},
            "sens95": {"p_covid": 0.12, "sensitivity": [0.95, 0.9, 1.0], "specificity": [0.5, 0.4, 0.6]},
        },
        "default_threshold": "youden", "tensors": {"big": "table"},
    }  # fmt: skip
    put_json(place / "bundle" / "bundle.json", bundle)
    for split in ("calibration", "test"):
        scores = []
        for row in rows:
            if row["split"] == split:
                middle = _score(row, random)
                paths = [middle + float(random.normal(0, 0.8)) for _ in range(PATHS)]
                scores.append({**row, "logit": float(np.mean(paths)), "path_logits": paths})
        table = place / (
            "calibration.parquet" if split == "calibration" else "audit/test/predictions.parquet"
        )
        put_rows(table, scores)
    put_json(place / "audit" / "test" / "audit.json", _audit())
    put_json(
        place / "audit" / "test" / "segmentation.json", {"bundle": {"name": "made"}, "tables": _lung_tables()}
    )


def interval(value: float) -> dict[str, Any]:
    """As in ``audit.json``."""
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "draws": 2000, "left_out": 0}


def _audit() -> dict[str, Any]:
    def areas(*values: float) -> dict[str, Any]:
        return {name: interval(v) for name, v in zip(("mixed", "within", "pooled"), values, strict=True)}

    hidden = {
        "untouched": areas(0.72, 0.71, 0.93), "lungs_removed": areas(0.55, 0.54, 0.62),
        "lungs_only": areas(0.71, 0.7, 0.92), "lungs_only_minus_untouched": areas(-0.01, -0.01, -0.01),
    }  # fmt: skip
    nothing = {"value": None, "low": None, "high": None, "draws": 0, "left_out": 0}
    row = {
        "pictures": 20,
        "positive": 12,
        "groups": 9,
        "sensitivity": interval(0.8),
        "specificity": interval(0.7),
    }
    return {
        "split": "test", "bundle": {"name": "made", "lung_gate": True}, "auc": areas(0.72, 0.71, 0.93),
        "calibration": {"prevalence": 0.4, "prevalence_here": 0.45,
                        "raw": {"brier": interval(0.2), "calibration_error": interval(0.15)},
                        "calibrated": {"brier": interval(0.18), "calibration_error": interval(0.12)}},
        "operating_points": {
            "youden": {"p_covid": 0.41, "sensitivity": [0.8, 0.6, 0.9], "specificity": [0.7, 0.6, 0.8]}
        },
        "counts": {"pictures": 62, "groups": 30, "unscored": 2}, "dropped": {"truncated": 1},
        "tables_threshold": 0.41,
        "tables": {"source": [{"name": "north", **row, "roc_auc": interval(0.75)},
                              {"name": "south", **row, "specificity": nothing, "roc_auc": nothing}],
                   "view": [{"name": "AP", **row, "roc_auc": interval(0.8)}],
                   "age_group": [{"name": "unknown", **row, "roc_auc": interval(0.8)}]},
        "hide_and_seek": hidden,
        "compared": {"bundle": {"name": "published", "lung_gate": False}, "pictures": 60, "auc": areas(0.7, 0.69, 0.81),
                     "hide_and_seek": None, "difference": areas(0.02, 0.02, 0.12)},
    }  # fmt: skip


def _lung_tables() -> list[dict[str, Any]]:
    figures = {name: interval(0.9) for name in ("dice", "jaccard", "precision", "recall")}
    both = {"compared": {"dice": interval(0.91)}, "difference": {"dice": interval(-0.01)}}
    return [
        {
            "source": "north",
            "mask_style": "v7",
            "pairs": 15,
            "paper_pooled_two_channel": 0.96,
            **figures,
            **both,
        },
        {
            "source": None,
            "mask_style": "v7",
            "pairs": 30,
            "paper_pooled_two_channel": 0.955,
            **figures,
            **both,
        },
    ]
