"""The command ``cxr-ray``: what can be done with weights and finished tables on one machine.

Arguments are taken apart here; the work is in ``cxr_ray.results``, ``cxr_ray.weights`` and
``cxr_ray.phantoms``, which are imported by the command that needs them, so that ``info`` answers at once.
Exit codes: 0 done (``verify``: complete), 1 ``verify`` found the table incomplete or wrong, 2 the command
cannot be carried out as asked (one sentence on stderr).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from cxr_ray.errors import CxrRayError, UsageError

DONE, INCOMPLETE, UNUSABLE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. ``arguments`` default to the command line's."""
    options = build_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except CxrRayError as error:
        print(f"cxr-ray: {error}", file=sys.stderr)
        return UNUSABLE
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python would complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        from cxr_ray.archives.storage import explain

        print(f"cxr-ray: the storage failed ({explain(error)}); try again", file=sys.stderr)
        return UNUSABLE


def build_parser() -> argparse.ArgumentParser:
    """All commands and options; frozen by a test."""
    parser = argparse.ArgumentParser(
        prog="cxr-ray",
        description="Read, check and draw score tables (research software, not a medical device).",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    info = _command(commands, "info", _info, "versions, devices, bundled weights, readable formats")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.add_argument("--measure", action="store_true", help="also how fast this machine scores (10 to 30 s)")
    info.add_argument(
        "--weights", default="default", metavar="W", help="bundle to measure (default: the shipped)"
    )

    query = _command(commands, "query", _query, "SQL over the table (scores, duplicates, scores_unique)")
    query.add_argument("output", metavar="OUTPUT", help="output of jobs/score.py: folder or URL")
    query.add_argument("sql", metavar="SQL", help='for example "SELECT image_id, p_covid FROM scores"')
    query.add_argument("--format", choices=("table", "csv", "json"), default="table")
    query.add_argument("--max-rows", type=int, metavar="N", help="print at most N rows (table: 40, else all)")
    query.add_argument(
        "--prevalence", type=float, metavar="P", help="share of positives that p_calibrated shall be valid at"
    )
    query.add_argument(
        "--threshold", metavar="NAME|P", help="threshold of decision: youden, sens95, spec95, or a p_covid"
    )
    query.add_argument(
        "--weights", metavar="BUNDLE", help="bundle of the same networks whose calibration is used instead"
    )
    _storage_options(query, "output")
    _storage_options(query, "weights")

    render = _command(
        commands, "render", _render, "four panels per image: image, positive, negative, difference"
    )
    render.add_argument("output", metavar="OUTPUT", help="output of jobs/score.py: folder or URL")
    render.add_argument("image_id", metavar="IMAGE_ID", nargs="*", help="32 hex digits, as in the table")
    render.add_argument(
        "--top", type=int, metavar="N", help="instead of ids: the N images of highest p_covid"
    )
    render.add_argument(
        "--out", required=True, metavar="FILE.png|DIR", help="a file for one image, or a folder"
    )
    render.add_argument("--no-image", action="store_true", help="draw the maps on the lung outline only")
    _storage_options(render, "output")
    _storage_options(render, "archive")
    _plan_options(render)

    verify = _command(commands, "verify", _verify, "prove the table complete, or say what is not")
    verify.add_argument("output", metavar="OUTPUT", help="output of a job: folder or URL")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.add_argument("--source", action="store_true", help="also list originals that changed or are gone")
    _storage_options(verify, "output")
    _storage_options(verify, "archive")
    _plan_options(verify)

    compact = _command(
        commands, "compact", _compact, "write OUTPUT/light: the table without pictures, for quick queries"
    )
    compact.add_argument("output", metavar="OUTPUT", help="output of jobs/score.py: folder or URL")
    compact.add_argument(
        "--rows-per-file", type=int, metavar="N", help="fewest rows of one file (default 1,000,000)"
    )
    _storage_options(compact, "output")

    weights = commands.add_parser("weights", help="weights bundles")
    actions = weights.add_subparsers(title="commands", metavar="COMMAND", required=True)
    bring = _command(actions, "import", _import_weights, "turn the published CXR-Net files into a bundle")
    bring.add_argument("keras_dir", metavar="KERAS_DIR", help="folder with the published .h5 files")
    bring.add_argument("bundle_dir", metavar="BUNDLE_DIR", help="folder or URL of the new bundle")
    _storage_options(bring, "bundle")

    sample = _command(
        commands, "sample", _sample, "write a small archive of SYNTHETIC phantoms to try things out"
    )
    sample.add_argument("directory", metavar="DIR", help="a new or empty folder")
    sample.add_argument("--count", type=int, default=12, metavar="N", help="number of files (default 12)")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="other drawings (default 0)")
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _storage_options(parser: argparse.ArgumentParser, place: str) -> None:
    parser.add_argument(
        f"--{place}-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"fsspec option of the {place} (repeatable), for example endpoint_url=http://host:9000",
    )


def _plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan-dir", metavar="URL", help="the run's plan_dir, if it had one")
    _storage_options(parser, "plan")


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["anon=true", "key=abc"]`` to ``{"anon": True, "key": "abc"}``.

    Values are read as JSON where they look like true, false, null, an object or a list; all else is text,
    numbers included, since a key may be all digits.

    Raises:
        UsageError: a pair without ``=``.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UsageError("a storage option is written KEY=VALUE; one has no '=' or no key")
        plain = value in ("true", "false", "null") or value[:1] in ("{", "[")
        try:
            options[name] = json.loads(value) if plain else value
        except ValueError as error:
            raise UsageError(f"the value of storage option {name} begins like JSON but is none") from error
    return options


# -- commands --------------------------------------------------------------------------------------


def _info(options: argparse.Namespace) -> int:
    from cxr_ray.results.information import information, information_lines

    facts = information()
    lines = information_lines(facts)
    if options.measure:
        from cxr_ray.phantoms import five_megapixel_jpeg
        from cxr_ray.results.measurement import measured, measured_lines

        facts["measured"] = measured(options.weights, five_megapixel_jpeg(), facts["devices"]["cpus"])
        lines[-1:-1] = measured_lines(facts["measured"])
    print(json.dumps(facts, indent=2) if options.json else "\n".join(lines))
    return DONE


def _query(options: argparse.Namespace) -> int:
    from cxr_ray.results.formatting import format_result
    from cxr_ray.results.query import run_query

    if options.max_rows is not None and options.max_rows < 0:
        raise UsageError(f"--max-rows takes a number of at least 0, got {options.max_rows}")
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        result = run_query(
            options.output,
            options.sql,
            storage_options=parse_options(options.output_option),
            prevalence=options.prevalence,
            threshold=options.threshold,
            calibration=options.weights,
            calibration_options=parse_options(options.weights_option),
        )
    for note in notes:
        print(f"cxr-ray: note: {note.message}", file=sys.stderr)
    for line in format_result(result, options.format, options.max_rows):
        print(line)
    return DONE


def _render(options: argparse.Namespace) -> int:
    from cxr_ray.results.render import render_images, render_top

    if bool(options.image_id) == (options.top is not None):
        raise UsageError("give one or more IMAGE_IDs, or --top N")
    settings = {
        "with_image": not options.no_image,
        "storage_options": parse_options(options.output_option),
        "archive_options": parse_options(options.archive_option),
        "plan": options.plan_dir,
        "plan_options": parse_options(options.plan_option),
    }
    if options.top is not None:
        files = render_top(options.output, options.top, options.out, **settings)
    else:
        files = render_images(options.output, options.image_id, options.out, **settings)
    for file in files:
        print(file)
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from cxr_ray.results.verify import proof_json, proof_lines, verify_output

    found = verify_output(
        options.output,
        storage_options=parse_options(options.output_option),
        plan=options.plan_dir,
        plan_options=parse_options(options.plan_option),
        source=options.source,
        archive_options=parse_options(options.archive_option),
    )
    print(json.dumps(proof_json(found)) if options.json else "\n".join(proof_lines(found)))
    return DONE if found.complete else INCOMPLETE


def _compact(options: argparse.Namespace) -> int:
    from cxr_ray.results.compact import ROWS_PER_FILE, compact_output

    made = compact_output(
        options.output,
        rows_per_file=ROWS_PER_FILE if options.rows_per_file is None else options.rows_per_file,
        storage_options=parse_options(options.output_option),
    )
    marker = made.marker
    generations = ", ".join(str(number) for number in marker.generations)
    print(
        f"{made.folder}: {marker.rows:,} rows of {marker.parts:,} parts (generations {generations}) in "
        f"{len(marker.files)} files, {made.bytes / 1e6:,.1f} MB; queries without pictures read them from now on"
    )
    return DONE


def _import_weights(options: argparse.Namespace) -> int:
    from cxr_ray.weights import import_keras

    bundle = import_keras(options.keras_dir, options.bundle_dir, **parse_options(options.bundle_option))
    print(f"{options.bundle_dir}: {bundle.meta.name}; use it with weights={options.bundle_dir}")
    return DONE


def _sample(options: argparse.Namespace) -> int:
    from cxr_ray.phantoms import write_sample_archive

    files = write_sample_archive(options.directory, count=options.count, seed=options.seed)
    print(
        f"{options.directory}: {len(files)} SYNTHETIC files, the last one broken on purpose; no patient data"
    )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
