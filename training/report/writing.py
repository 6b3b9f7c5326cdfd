"""``jobs/report.py`` behind its options: read, build, write, one JSON line."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import OutputError
from training.report.options import ReportOptions
from training.report.page import build_page
from training.report.run import gather

EXIT_OK = 0


def run_report(options: ReportOptions) -> int:
    """Write the report of a training output; returns the exit code.

    Raises:
        UsageError: nothing to report on, a damaged file, or a place that cannot be written.
    """
    target = open_storage(options.output, options.output_options)
    page = build_page(gather(options), options.title).encode("utf-8")
    _write(target, page)
    print(json.dumps({"output": target.url, "bytes": len(page)}), flush=True)
    return EXIT_OK


def _write(target: Storage, data: bytes) -> None:
    """Replace the file as a whole; a reader never sees half a page."""
    if not target.is_local:
        target.fs.pipe_file(target.path, data)
        return
    path = Path(target.path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file, output={path}/report.html")
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.write_bytes(data)
        os.replace(staged, path)
    except OSError as error:
        raise OutputError(f"the report cannot be written to {path} ({error.strerror})") from error
    finally:
        staged.unlink(missing_ok=True)
