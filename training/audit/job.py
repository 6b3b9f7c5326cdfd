"""``jobs/audit.py`` behind its options: read, log the use of the test split, score, count, write."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from typing import Any

import pyarrow.parquet as pq
import torch

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import OutputError, TrainingDataError
from cxr_ray.weights.bundle import Bundle
from cxr_ray.weights.storage import load_bundle
from training.audit.chunks import Progress
from training.audit.classification import AuditResult, audit
from training.audit.options import AuditOptions
from training.audit.scoring import score_frames
from training.audit.segmentation import audit_segmentation
from training.audit.test_uses import TestUse, log_place, log_test_use, refuse_second_use
from training.data.frames import Frames, load_frames
from training.data.labels import check_classes
from training.data.manifest import manifest_key, manifest_root, read_manifest
from training.data.masks import load_masks

FILES = {
    "classification": ("audit.json", "predictions.parquet"),
    "segmentation": ("segmentation.json", "segmentation.parquet"),
}
MOST_PROCESSES = 8


def run_audit(options: AuditOptions) -> int:
    """Carry out one audit; returns the exit code.

    Raises:
        UsageError: options, weights or data that cannot serve; an audit of this split that is there already; weights
            that the log of test uses knows (without ``again``).
    """
    started = time.monotonic()
    output = open_storage(options.output, options.output_options)
    folder = f"{output.path.rstrip('/')}/audit/{options.split}"
    summary_name, table_name = FILES[options.task]
    if output.fs.exists(f"{folder}/{summary_name}"):
        raise OutputError(
            f"this output holds audit/{options.split}/{summary_name} already; give another output, since a split is "
            "to be audited once per bundle"
        )
    bundle = load_bundle(options.weights, **options.weights_options)
    compare = None if options.compare is None else load_bundle(options.compare, **options.weights_options)
    frames = gather(options, bundle)
    if options.split == options.test_split:
        log, use = log_place(options.test_log, output), TestUse.of(options.task, frames)
        if not options.again:
            refuse_second_use(log, bundle, use)
        # The other bundle may have been scored before: a comparison in pairs needs its scores again.
        log_test_use(log, [bundle] if compare is None else [bundle, compare], use, sys.argv[1:])
    result = _audit(options, bundle, compare, frames)
    result.summary["dropped"] = frames.dropped
    if options.mask_style is not None:
        result.summary["bundle"]["mask_style"] = options.mask_style
    _write(output, f"{folder}/{table_name}", _parquet(result))
    # Last, so that a summary never stands without its table.
    _write(output, f"{folder}/{summary_name}", json.dumps(result.summary, indent=1).encode())
    print(json.dumps({**headline(result.summary), "output": f"{output.url}/audit/{options.split}",
                      "seconds": round(time.monotonic() - started, 1)}), flush=True)  # fmt: skip
    return 0


def gather(options: AuditOptions, bundle: Bundle) -> Frames:
    """The pictures of the split, joined with the shards. Raises TrainingDataError for what does not fit."""
    needed = "label" if options.task == "classification" else "mask"
    examples = [example for example in read_manifest(options.manifest) if example.split == options.split]
    if not examples:
        raise TrainingDataError(f"no row of the manifest has split {options.split!r}; see its column split")
    examples = [example for example in examples if getattr(example, needed) is not None]
    if not examples:
        raise TrainingDataError(f"no row of split {options.split!r} has a {needed}, which this audit needs")
    if options.task == "classification":
        # A class may be absent from a split; a label that the bundle does not know is a mistake.
        labels = {example.label for example in examples}
        check_classes(
            examples,
            [name for name in bundle.meta.classes if name in labels] or bundle.meta.classes,
            where=f"split {options.split!r}",
        )
    frames = load_frames(
        options.shards,
        examples,
        options=options.shards_options,
        root=manifest_root(options.manifest),
        key=manifest_key(options.manifest),
    )
    return once_each(frames) if options.task == "classification" else frames


def once_each(frames: Frames) -> Frames:
    """One row of each picture (a film with two masks stands twice). Raises TrainingDataError where labels differ."""
    first: dict[str, int] = {}
    for i, image_id in enumerate(frames.image_id):
        one, other = frames.examples[first.setdefault(image_id, i)], frames.examples[i]
        if one.label != other.label:
            raise TrainingDataError(
                f"{one.called} and {other.called} are one picture with two labels; mend the manifest"
            )
    return frames.take(list(first.values()))


def headline(summary: dict[str, Any]) -> dict[str, Any]:
    """The few figures of the job's last line."""
    facts = {"task": summary["task"], "split": summary["split"], "bundle": summary["bundle"]["name"]}
    if summary["task"] == "segmentation":
        dice = {
            f"{row['source'] or 'all'} {row['mask_style'] or ''}".strip(): round(row["dice"]["value"], 4)
            for row in summary["tables"]
        }
        return {**facts, "pairs": summary["counts"]["pairs"], "dice": dice}
    hidden = summary["hide_and_seek"] or {}
    return {
        **facts,
        "pictures": summary["counts"]["pictures"],
        "unscored": summary["counts"]["unscored"],
        "auc": _values(summary["auc"]),
        **{name: _values(hidden[name]) for name in ("lungs_removed", "lungs_only") if name in hidden},
    }


def _audit(options: AuditOptions, bundle: Bundle, compare: Bundle | None, frames: Frames) -> AuditResult:
    run: dict[str, Any] = {
        "device": _device(options.device),
        "processes": options.processes or min(MOST_PROCESSES, os.cpu_count() or 1),
        "progress": _progress(options.progress_seconds),
    }
    if options.task == "segmentation":
        masks = load_masks(frames, root=manifest_root(options.manifest), options=options.manifest.options)
        return audit_segmentation(
            bundle, frames, masks, settings=options.settings, split=options.split, compare=compare, **run
        )
    predictions, compared = (
        None
        if one is None
        else score_frames(
            one, frames.pixels_NHW, hide_and_seek=options.hide_and_seek, mask_style=style, **run
        )
        for one, style in ((bundle, options.mask_style), (compare, None))
    )
    assert predictions is not None
    return audit(
        bundle,
        frames,
        predictions,
        settings=options.settings,
        split=options.split,
        compare=compare,
        compared=compared,
    )


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _progress(seconds: float) -> Progress:
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds or done == total:
            last = time.monotonic()
            print(f"scored {done:,} of {total:,} pictures", file=sys.stderr, flush=True)

    return report


def _values(intervals: dict[str, Any]) -> dict[str, float | None]:
    return {name: None if one["value"] is None else round(one["value"], 4) for name, one in intervals.items()}


def _parquet(result: AuditResult) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(result.table, buffer)
    return buffer.getvalue()


def _write(output: Storage, path: str, data: bytes) -> None:
    output.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    output.fs.pipe_file(path, data)
