"""The score table: its Arrow schema (DESIGN section 4) and the step from scores to rows.

The columns are a contract. Light columns come first and the two PNG columns last, so that a query
over scores never touches the pictures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ray.calibration import Readout
from cxr_ray.errors import NoLungs, NonfiniteScore
from cxr_ray.pipeline.map_encoding import EVIDENCE_SHAPE, MASK_SHAPE, encode_heat_map, encode_lung_mask
from cxr_ray.shards import FACT_FIELDS, PROVENANCE_FIELDS, QUARANTINED, STATUS_FIELDS

SCORE_SCHEMA_VERSION = 1
SCORE_FOLDER = "scores"

SCORED = "scored"

LUNGS_SMALL = "lungs_small"
MAP_CONSTANT = "map_constant"

#: What the network adds, minus the pictures.
NUMBER_FIELDS: tuple[pa.Field, ...] = (
    pa.field("p_covid", pa.float32()),
    pa.field("logit", pa.float32()),
    pa.field("p_calibrated", pa.float32()),
    pa.field("decision", pa.string()),
    pa.field("threshold_name", pa.string()),
    pa.field("path_logits", pa.list_(pa.field("element", pa.float32()))),
    pa.field("class_probs", pa.list_(pa.field("element", pa.float32()))),
    pa.field("p_std", pa.float32()),
    pa.field("lung_fraction", pa.float32()),
)

#: The values of grey levels 0 and 255 of heat_map.
RANGE_FIELDS: tuple[pa.Field, ...] = (pa.field("heat_lo", pa.float32()), pa.field("heat_hi", pa.float32()))

PICTURE_FIELDS: tuple[pa.Field, ...] = (
    pa.field("heat_map", pa.binary()),
    pa.field("lung_mask", pa.binary()),
)

SCORE_SCHEMA = pa.schema(
    [*FACT_FIELDS, *STATUS_FIELDS, *NUMBER_FIELDS, *PROVENANCE_FIELDS, *RANGE_FIELDS, *PICTURE_FIELDS]
)

#: Between the scorer and publication: raw maps, so that PNG encoding stays off the scoring actor.
#: ``heat_levels`` is uint8 [75, 85]; ``lung_bits`` is the boolean mask [300, 340] packed by ``np.packbits``.
RAW_FIELDS: tuple[pa.Field, ...] = (
    pa.field("heat_levels", pa.binary()),
    pa.field("lung_bits", pa.binary()),
)

SCORED_UNIT_SCHEMA = pa.schema([*FACT_FIELDS, *STATUS_FIELDS, *NUMBER_FIELDS, *RANGE_FIELDS, *RAW_FIELDS])

#: Reads nothing out of a score: of a bundle without calibration and thresholds.
UNCALIBRATED = Readout()


def score_values(
    scores: Any, index: int, *, min_lung_fraction: float, readout: Readout = UNCALIBRATED
) -> dict[str, Any]:
    """Column values of image ``index`` of a ``Scores`` batch, including status, reason and new flags.

    ``readout`` decides p_calibrated, decision and threshold_name, and nothing else.

    An image without lungs, or with a score that is no number, is quarantined: all score columns null,
    ``lung_fraction`` kept for the former. Flags are returned under ``add_flags``.
    """
    lung_fraction = float(scores.lung_fraction[index])
    if not bool(scores.has_lungs[index]):
        detail = f"no lung found above the mask threshold (lung fraction {lung_fraction:.4f})"
        return {
            "status": QUARANTINED,
            "reason": NoLungs.code,
            "detail": detail,
            "lung_fraction": lung_fraction,
            "add_flags": [],
        }
    path_logits = np.asarray(scores.path_logits[index], np.float32)
    heat_lo, heat_hi = float(scores.heat_lo[index]), float(scores.heat_hi[index])
    numbers = np.array([scores.p_covid[index], scores.logit[index], scores.p_std[index], heat_lo, heat_hi])
    if not (np.isfinite(numbers).all() and np.isfinite(path_logits).all()):
        detail = "the network returned a value that is not finite"
        return {"status": QUARANTINED, "reason": NonfiniteScore.code, "detail": detail, "add_flags": []}
    flags = [LUNGS_SMALL] if lung_fraction < min_lung_fraction else []
    if heat_lo == heat_hi:
        flags.append(MAP_CONSTANT)
    class_probs = np.asarray(scores.class_probs[index], np.float32)
    return {
        "status": SCORED,
        "p_covid": float(scores.p_covid[index]),
        "logit": float(scores.logit[index]),
        **readout.values(
            logit=float(scores.logit[index]),
            p_covid=float(scores.p_covid[index]),
            lungs_small=LUNGS_SMALL in flags,
        ),
        "path_logits": path_logits.tolist(),
        "class_probs": class_probs.tolist() if class_probs.size > 2 else None,
        "p_std": float(scores.p_std[index]),
        "lung_fraction": lung_fraction,
        "heat_lo": heat_lo,
        "heat_hi": heat_hi,
        "heat_levels": np.asarray(scores.heat_map[index], np.uint8).tobytes(),
        "lung_bits": np.asarray(scores.lung_bits[index], np.uint8).tobytes(),
        "add_flags": flags,
    }


def picture_columns(unit: pa.Table) -> dict[str, list[bytes | None]]:
    """Encode the raw maps of a scored unit: lists for heat_map and lung_mask, None for a row without a score."""
    columns: dict[str, list[bytes | None]] = {"heat_map": [], "lung_mask": []}
    for levels, bits in zip(unit.column("heat_levels"), unit.column("lung_bits"), strict=True):
        if not levels.is_valid:
            heat_map, lung_mask = None, None
        else:
            levels_HW = np.frombuffer(levels.as_buffer(), np.uint8).reshape(EVIDENCE_SHAPE)
            mask = np.unpackbits(
                np.frombuffer(bits.as_buffer(), np.uint8), count=MASK_SHAPE[0] * MASK_SHAPE[1]
            )
            heat_map = encode_heat_map(levels_HW)
            lung_mask = encode_lung_mask(mask.reshape(MASK_SHAPE).astype(bool))
        columns["heat_map"].append(heat_map)
        columns["lung_mask"].append(lung_mask)
    return columns


def add_provenance(
    unit: pa.Table, schema: pa.Schema, *, unit_id: str, identity: str, schema_version: int, generation: int
) -> pa.Table:
    """Complete a unit to ``schema``: provenance columns added, columns in order, rows by image_id."""
    constants = {
        "unit_id": unit_id,
        "identity": identity,
        "schema_version": schema_version,
        "generation": generation,
    }
    arrays = []
    for field in schema:
        if field.name in constants:
            arrays.append(pa.array([constants[field.name]] * unit.num_rows, field.type))
        else:
            arrays.append(unit.column(field.name).cast(field.type))
    table = pa.Table.from_arrays(arrays, schema=schema)
    return table.take(pc.sort_indices(table, sort_keys=[("image_id", "ascending")]))


def score_table(unit: pa.Table, *, unit_id: str, identity: str, generation: int) -> pa.Table:
    """The finished part of one unit: pictures encoded, provenance added, sorted by image_id."""
    pictures = picture_columns(unit)
    for field in PICTURE_FIELDS:
        unit = unit.append_column(field, pa.array(pictures[field.name], field.type))
    return add_provenance(
        unit,
        SCORE_SCHEMA,
        unit_id=unit_id,
        identity=identity,
        schema_version=SCORE_SCHEMA_VERSION,
        generation=generation,
    )
