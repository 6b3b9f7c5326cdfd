"""Real films at volume: every column equal, bit for bit, whatever the container, scorers and read batches.

    python bench/real_volume.py --data ../shared/data --weights BUNDLE [--keep DIR]

One run over all images of DATA (``cls/images`` and ``seg/images``), then a fixed 200 of them as directory, zip,
tar, tar.gz and manifest with other numbers of scorers, read tasks and unit sizes, each compared with the large
run; then other compute shapes, compared in p_covid. Prints bytes per row of the large run. Exits with 1 if any
comparison fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

ROOT = Path(__file__).parents[1]
SAMPLE = 200
TOLERANCE = 1e-5

#: Columns that say where a row came from, not what it holds.
PROVENANCE = {"uri", "member", "image_id", "unit_id", "generation", "identity", "label", "carry"}

#: Container and options of the runs that must give the same columns.
SAME = [
    ("directory", ["actors=1", "decode_tasks=1", "unit_size=7"]),
    ("zip", ["actors=2", "decode_tasks=3", "unit_size=64"]),
    ("tar", ["actors=1", "decode_tasks=2", "unit_size=1000"]),
    ("tar.gz", ["actors=2", "decode_tasks=1", "unit_size=33"]),
    ("manifest", ["actors=2", "decode_tasks=2", "unit_size=100"]),
]

#: Compute shapes whose p_covid must agree within ``TOLERANCE``.
OTHER_SHAPES = [["compute_batch=4", "threads=1"], ["compute_batch=3", "threads=2"]]


def score(archive: Path, output: Path, weights: str, *options: str) -> float:
    """Run the job; returns its seconds."""
    start = time.monotonic()
    command = [
        sys.executable,
        "jobs/score.py",
        f"archive={archive}",
        f"output={output}",
        f"weights={weights}",
    ]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    print(done.stdout.strip().splitlines()[-1], flush=True)
    return time.monotonic() - start


def pack(kind: str, films: list[Path], folder: Path) -> Path:
    """``films`` as one archive."""
    if kind == "directory":
        target = folder / "films"
        target.mkdir()
        for film in films:
            (target / film.name).symlink_to(film)
    elif kind == "zip":
        target = folder / "films.zip"
        with zipfile.ZipFile(target, "w") as archive:
            for film in films:
                archive.write(film, film.name)
    elif kind == "manifest":
        target = folder / "films.csv"
        target.write_text("uri\n" + "".join(f"{film}\n" for film in films))
    else:
        target = folder / f"films.{kind}"
        with tarfile.open(target, "w:gz" if kind == "tar.gz" else "w") as archive:
            for film in films:
                archive.add(film, film.name)
    return target


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    """Content hash -> columns without provenance."""
    table = pads.dataset(output / "scores", format="parquet").to_table()
    kept = [name for name in table.column_names if name not in PROVENANCE]
    return {row["content_sha256"]: row for row in table.select(kept).to_pylist()}


def row_bytes(output: Path) -> np.ndarray:
    """Bytes of every row: its pictures, and its part's other bytes shared equally."""
    sizes = []
    for part in (output / "scores").iterdir():
        table: pa.Table = pads.dataset(part, format="parquet").to_table(columns=["heat_map", "lung_mask"])
        pictures = [len(h or b"") + len(m or b"") for h, m in zip(*table.to_pydict().values(), strict=True)]
        rest = (part.stat().st_size - sum(pictures)) / len(pictures)
        sizes += [picture + rest for picture in pictures]
    return np.array(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--keep", type=Path, help="folder for the outputs; default: a temporary one")
    arguments = parser.parse_args()
    films = sorted(
        path.resolve() for folder in ("cls", "seg") for path in (arguments.data / folder / "images").iterdir()
    )
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "all").mkdir()
        seconds = score(pack("manifest", films, folder / "all"), folder / "out-all", arguments.weights)
        everything = rows_of(folder / "out-all")
        sizes = row_bytes(folder / "out-all")
        counts = json.loads((folder / "out-all" / "run.json").read_text())
        print(
            f"{len(films)} images in {seconds:.0f} s, {counts['quarantined']} quarantined {counts['reasons']}"
        )
        print(
            f"bytes a row: median {np.median(sizes):.0f}, 99th percentile {np.percentile(sizes, 99):.0f}",
            flush=True,
        )

        chosen = [films[int(number)] for number in np.linspace(0, len(films) - 1, SAMPLE)]
        for kind, options in SAME:
            (folder / kind).mkdir()
            output = folder / f"out-{kind}"
            score(pack(kind, chosen, folder / kind), output, arguments.weights, *options)
            rows = rows_of(output)
            equal = len(rows) >= SAMPLE - 2 and all(everything[key] == row for key, row in rows.items())
            failed |= not equal
            print(f"{kind:10} {' '.join(options):45} {len(rows)} rows equal bit for bit: {equal}", flush=True)
        for number, options in enumerate(OTHER_SHAPES):
            output = folder / f"out-shape-{number}"
            score(folder / "manifest" / "films.csv", output, arguments.weights, *options)
            gaps = [
                abs(row["p_covid"] - everything[key]["p_covid"])
                for key, row in rows_of(output).items()
                if row["p_covid"] is not None
            ]
            failed |= max(gaps) > TOLERANCE
            print(f"{' '.join(options):56} largest difference in p_covid {max(gaps):.1e}", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
