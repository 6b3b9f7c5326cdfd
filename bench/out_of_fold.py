"""Out-of-fold scores of a training beside another bundle's, on the same pictures:

    python jobs/audit.py weights=OTHER split=train hide_and_seek=false output=other ...
    python bench/out_of_fold.py --training assembled/out_of_fold.parquet --other other/audit/train/predictions.parquet

ROC AUC over pairs of pictures of one fold (each fold was scored by another network), for both, with 95 % intervals over
groups and the paired difference; of all pictures, and of those of sources that hold both classes.
"""

from __future__ import annotations

import argparse

import numpy as np
import pyarrow.parquet as pq

from training.metrics.bootstrap import Indices, group_bootstrap_many
from training.metrics.classification import mixed_sources, within_source_auc


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", required=True, help="out_of_fold.parquet of task=assemble")
    parser.add_argument("--other", required=True, help="predictions.parquet of an audit of the same split")
    parser.add_argument("--positive", default="Covid+")
    parser.add_argument("--draws", type=int, default=2000)
    arguments = parser.parse_args()
    other = {row["image_id"]: row["logit"] for row in pq.read_table(arguments.other).to_pylist()}
    rows = pq.read_table(arguments.training).to_pylist()
    kept = [row for row in rows if row["logit"] is not None and other.get(row["image_id"]) is not None]
    print(f"{len(kept)} of {len(rows)} pictures have a score by both")
    label = np.array([row["label"] == arguments.positive for row in kept])
    source = np.array([row["source"] or "unknown" for row in kept])
    fold = np.array([row["fold"] for row in kept])
    group = np.array([row["group"] for row in kept])
    ours = np.array([row["logit"] for row in kept])
    theirs = np.array([other[row["image_id"]] for row in kept])
    mixed = np.flatnonzero(np.isin(source, mixed_sources(label, source)))
    print("| pictures | positive | other | out of fold | other bundle | difference |")
    print("| --- | ---: | ---: | --- | --- | --- |")
    for name, chosen in (("mixed sources", mixed), ("all", np.arange(len(kept)))):

        def areas(i: Indices, chosen: np.ndarray = chosen) -> dict[str, float]:  # type: ignore[type-arg]
            here = chosen[i]
            first = within_source_auc(label[here], ours[here], fold[here])
            second = within_source_auc(label[here], theirs[here], fold[here])
            return {"ours": first, "theirs": second, "difference": first - second}

        found = group_bootstrap_many(areas, group[chosen], draws=arguments.draws, seed=0)
        cells = " | ".join(f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" for one in found.values())
        print(f"| {name} | {label[chosen].sum()} | {(~label[chosen]).sum()} | {cells} |")


if __name__ == "__main__":
    main()
