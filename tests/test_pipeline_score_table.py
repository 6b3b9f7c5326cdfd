"""From scores to rows: status, flags, nulls, order and the part file's bytes."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from encoded_maps import bits_of, levels_of
from made_calibration import MADE

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import PublishConflict
from cxr_ray.pipeline.identity import KIND_SCORES
from cxr_ray.pipeline.parts import PartFooter, encode_part, finished_table, publish_part
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.score_table import (
    NUMBER_FIELDS,
    PICTURE_FIELDS,
    RANGE_FIELDS,
    SCORE_SCHEMA,
    score_values,
)
from cxr_ray.pipeline.score_unit import score_unit
from cxr_ray.shards import QUARANTINED, READY, table_of


def footer(**changes: Any) -> PartFooter:
    values: dict[str, Any] = {
        "identity": "i" * 64, "unit_id": "g00000-u000000", "generation": 0, "attempt": "a", "code_version": "c",
        "device": "cpu", "compute_batch": 1, "threads": 1, "dtype": "float32", "weights": "w",
        "decode_policy": "corrected", "calibration_id": None, "fencing": "create_only",
    }  # fmt: skip
    return PartFooter(**values | changes)


class FixedScorer:
    """Scores by the first pixel of each frame, so that a mix-up of rows would show."""

    compute_batch = 2

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def score(self, pixels_BHW: np.ndarray) -> Any:
        batch = len(pixels_BHW)
        first = pixels_BHW[:, 0, 0].astype(np.float32) / 255
        values = {
            "p_covid": first,
            "logit": first - 0.5,
            "path_logits": np.repeat(first[:, None], 6, axis=1),
            "class_probs": np.stack([first, 1 - first], axis=1),
            "p_std": np.zeros(batch, np.float32),
            "lung_fraction": np.full(batch, 0.3, np.float32),
            **levels_of(np.linspace(0, 1, 75 * 85).reshape(1, 75, 85).repeat(batch, 0)),
            "lung_bits": bits_of(np.ones((batch, 300, 340), bool)),
            "has_lungs": np.ones(batch, bool),
        }
        return SimpleNamespace(
            **values | {name: np.array(value)[:batch] for name, value in self.changes.items()}
        )


def unit(count: int = 5) -> Any:
    rows = []
    for number in range(count):
        pixels = np.full((300, 340), number, np.uint8).tobytes()
        rows.append(
            {"image_id": f"{99 - number:032x}", "status": READY, "flags": ["colour"], "pixels": pixels}
        )
    rows.insert(
        2, {"image_id": "f" * 32, "status": QUARANTINED, "reason": "truncated", "detail": "cut", "flags": []}
    )
    return table_of(rows)


def test_every_row_comes_out_with_its_own_score() -> None:
    scored = score_unit(unit(20), FixedScorer(), min_lung_fraction=0.08)
    rows = finished_table(scored, KIND_SCORES, footer()).to_pylist()
    assert [row["image_id"] for row in rows] == sorted(row["image_id"] for row in rows)
    for row in rows:
        if row["status"] == QUARANTINED:
            assert all(row[field.name] is None for field in (*NUMBER_FIELDS, *RANGE_FIELDS, *PICTURE_FIELDS))
        else:
            assert row["p_covid"] == pytest.approx((99 - int(row["image_id"], 16)) / 255)
            assert row["flags"] == ["colour"]
            assert row["class_probs"] is None


def test_a_calibration_fills_three_columns_and_changes_nothing_else() -> None:
    derived = ["p_calibrated", "decision", "threshold_name"]
    plain = score_unit(unit(), FixedScorer(), min_lung_fraction=0.08)
    readout = MADE.readout(threshold=2.5 / 255)
    scored = score_unit(unit(), FixedScorer(), min_lung_fraction=0.08, readout=readout)
    assert scored.drop_columns(derived).equals(plain.drop_columns(derived))
    rows = finished_table(scored, KIND_SCORES, footer()).to_pylist()
    quarantined = [row for row in rows if row["status"] == QUARANTINED]
    assert [[row[name] for name in derived] for row in quarantined] == [[None, None, None]]
    for row in rows:
        if row not in quarantined:
            by_hand = 1 / (1 + np.exp(1 - 0.5 * row["logit"]))
            assert row["p_calibrated"] == pytest.approx(by_hand, rel=1e-6)
            assert row["decision"] == ("positive" if 99 - int(row["image_id"], 16) >= 3 else "negative")
            assert row["threshold_name"] == repr(2.5 / 255)
    assert {row["decision"] for row in rows} == {"positive", "negative", None}


def test_little_lung_keeps_its_probability_but_gets_no_decision() -> None:
    scores = FixedScorer(lung_fraction=[0.05]).score(np.full((1, 300, 340), 200, np.uint8))
    values = score_values(scores, 0, min_lung_fraction=0.08, readout=MADE.readout())
    assert values["p_calibrated"] is not None
    assert (values["decision"], values["threshold_name"]) == (None, None)


def test_no_lungs_is_quarantined_and_keeps_its_lung_fraction() -> None:
    scorer = FixedScorer(has_lungs=[False], lung_fraction=[0.001], p_covid=[np.nan])
    values = score_values(scorer.score(np.zeros((1, 300, 340), np.uint8)), 0, min_lung_fraction=0.08)
    assert (values["status"], values["reason"]) == (QUARANTINED, "no_lungs")
    assert values["lung_fraction"] == pytest.approx(0.001)
    assert "p_covid" not in values


@pytest.mark.parametrize("name", ["p_covid", "logit", "p_std", "heat_lo", "heat_hi"])
def test_a_score_that_is_no_number_is_quarantined(name: str) -> None:
    scorer = FixedScorer(**{name: [np.nan]})
    values = score_values(scorer.score(np.zeros((1, 300, 340), np.uint8)), 0, min_lung_fraction=0.08)
    assert values["reason"] == "nonfinite_score"


def test_small_lungs_and_constant_maps_are_flags() -> None:
    scorer = FixedScorer(lung_fraction=[0.05], **levels_of(np.zeros((1, 75, 85))))
    values = score_values(scorer.score(np.zeros((1, 300, 340), np.uint8)), 0, min_lung_fraction=0.08)
    assert values["status"] == "scored"
    assert values["add_flags"] == ["lungs_small", "map_constant"]


def test_three_classes_keep_their_probabilities() -> None:
    scorer = FixedScorer(class_probs=[[0.2, 0.3, 0.5]])
    values = score_values(scorer.score(np.zeros((1, 300, 340), np.uint8)), 0, min_lung_fraction=0.08)
    assert values["class_probs"] == pytest.approx([0.2, 0.3, 0.5])


def test_the_part_file_keeps_the_contract() -> None:
    table = finished_table(score_unit(unit(), FixedScorer(), min_lung_fraction=0.08), KIND_SCORES, footer())
    data = encode_part(table)
    assert data == encode_part(table)
    part = pq.ParquetFile(io.BytesIO(data))
    assert part.num_row_groups == 1
    assert part.schema_arrow.remove_metadata().equals(SCORE_SCHEMA)
    assert json.loads(part.metadata.metadata[b"cxr_ray"])["unit_id"] == "g00000-u000000"
    compressions = {
        part.metadata.row_group(0).column(i).compression for i in range(part.metadata.num_columns)
    }
    assert compressions == {"ZSTD"}


def test_publishing_twice_is_success_for_one_identity_only(tmp_path: Any) -> None:
    publisher = Publisher(open_storage(str(tmp_path / "out")))
    scored = score_unit(unit(), FixedScorer(), min_lung_fraction=0.08)
    first = publish_part(publisher, scored, KIND_SCORES, footer())
    assert (first.images, first.kept, first.quarantined, first.won) == (6, 5, 1, True)
    assert first.reasons == {"truncated": 1}
    assert not publish_part(publisher, scored, KIND_SCORES, footer(attempt="b")).won
    with pytest.raises(PublishConflict):
        publish_part(publisher, scored, KIND_SCORES, footer(identity="j" * 64))
