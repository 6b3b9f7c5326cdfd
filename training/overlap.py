"""Leaks between the modules: what Module 1 was trained on must not be what Module 2 is judged on."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import LeakError
from cxr_ray.pipeline.privacy import PSEUDONYMS
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.weights.storage import public_url
from training.binding import CONFIG, read_config
from training.data.example import names
from training.material import Material
from training.options import TrainOptions
from training.sides import LEFT_OUT
from training.split_table import SPLIT_FILE, read_split

_OWN = ("train", "calibration", LEFT_OUT)
_ROW = "row "  # a group without key is called after a row, which means nothing in another manifest


def seen_by_segmenter(options: TrainOptions, material: Material) -> dict[str, int]:
    """Side (train, calibration) -> pictures that share file, patient or group with training pictures of Module 1.

    Module 1 sees no label, so these are stated, not refused. Patients and groups can be compared where both manifests
    have pseudonyms, or were read with the same key.

    Args:
        options: of the classification; ``segmentation`` is a training output or a bundle (nothing to compare: {}).

    Raises:
        LeakError: pictures of another side, such as ``test``, are among them.
    """
    place = open_storage(str(options.segmentation), options.output_options)
    if not (place.fs.exists(f"{place.path}/{CONFIG}") and place.fs.exists(f"{place.path}/{SPLIT_FILE}")):
        return {}
    manifest = read_config(Publisher(place))["settings"]["manifest"]
    kinds = ["image_id", "content_sha256"]
    if manifest["manifest_ids"] == options.manifest.manifest_ids:
        kinds += ["patient", "group"]
    same = (
        open_storage(public_url(manifest["path"])).url == open_storage(public_url(options.manifest.path)).url
    )
    rows_too = same or manifest["manifest_ids"] == PSEUDONYMS
    seen = {
        (kind, value)
        for row in read_split(place)
        if row["split"] == "train"
        for kind, value in _values(row).items()
        if kind in kinds and value and (rows_too or kind != "group" or not value.startswith(_ROW))
    }
    frames, found = material.frames, []
    for i, example in enumerate(frames.examples):
        row = {
            "image_id": frames.image_id[i],
            "content_sha256": frames.content_sha256[i],
            "patient_key": example.patient_key,
            "group": example.group_key,
        }
        if seen & set(_values(row).items()):
            found.append(i)
    others = [i for i in found if material.split[i] not in _OWN]
    if others:
        sides = ", ".join(sorted({material.split[i] for i in others}))
        raise LeakError(
            f"{len(others):,} pictures of side {sides} share file, patient or group with pictures that Module 1 at "
            f"segmentation= was trained on ({names([frames.examples[i] for i in others])}); train Module 1 without "
            "them, or drop the rows"
        )
    counts = Counter(material.split[i] for i in found)
    return {side: counts[side] for side in ("train", "calibration") if counts[side]}


def _values(row: dict[str, Any]) -> dict[str, str | None]:
    return {
        "image_id": row["image_id"],
        "content_sha256": row.get("content_sha256"),
        "patient": row["patient_key"],
        "group": row.get("manifest_group") or row["group"],
    }
