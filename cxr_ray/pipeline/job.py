"""What both jobs do first and last: open the places, refuse what cannot work, report the end."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.decode import DECODE_POLICIES, DECODE_VERSION
from cxr_ray.errors import UsageError
from cxr_ray.pipeline.binding import check_binding
from cxr_ray.pipeline.decode_unit import InputSettings
from cxr_ray.pipeline.decoding.child_process import ProcessLimits
from cxr_ray.pipeline.identity import Identity, check_identity, read_identity
from cxr_ray.pipeline.options import JobOptions
from cxr_ray.pipeline.plan import open_plan
from cxr_ray.pipeline.prediction import foretell
from cxr_ray.pipeline.privacy import resolve_privacy
from cxr_ray.pipeline.publish import Publisher
from cxr_ray.pipeline.screening import Say, Screening
from cxr_ray.pipeline.shard_source import shards_identity
from cxr_ray.preprocess import PREPROCESSING_VERSION

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_QUARANTINED = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """The places of a job, opened and checked.

    Attributes:
        existing: identity that OUTPUT was begun with, None for a new one.
        shards: identity of the archive where it is an ingest OUTPUT.
    """

    archive: Storage
    output: Publisher
    plan_store: Publisher
    existing: Identity | None
    shards: Identity | None
    settings: InputSettings
    say: Say


def preprocessing_id(decode_policy: str) -> str:
    """Names everything between encoded bytes and the 300 x 340 frame."""
    return f"cxr_ray/preprocess-{PREPROCESSING_VERSION}/decode-{DECODE_VERSION}/{decode_policy}"


def open_job(options: JobOptions, kind: str) -> Job:
    """Open archive, OUTPUT and plan folder, touching nothing.

    Raises:
        UsageError: options that contradict each other, or places that cannot serve.
    """
    if options.decode_policy not in DECODE_POLICIES:
        raise UsageError(
            f"decode_policy must be one of {', '.join(DECODE_POLICIES)}, not {options.decode_policy!r}"
        )
    privacy = resolve_privacy(
        key_env=options.key_env,
        key_file=options.key_file,
        keep_uri=options.keep_uri,
        keep_year=options.keep_year,
        manifest_ids=options.manifest_ids,
    )
    if not options.keep_uri and not options.plan_dir:
        raise UsageError(
            "keep_uri=false needs plan_dir=URL, a private folder outside OUTPUT for the plan, which holds paths"
        )
    archive = open_storage(options.archive, options.archive_options)
    output = Publisher(open_storage(options.output, options.output_options), options.fencing)
    _keep_apart(archive, output.storage, "OUTPUT")
    plan_store = output
    if options.plan_dir:
        plan_store = Publisher(open_storage(options.plan_dir, options.plan_options), options.fencing)
        if not options.keep_uri:
            _keep_apart(output.storage, plan_store.storage, "plan_dir")
    existing = _reachable("OUTPUT", read_identity, output)
    if plan_store is not output:
        _keep_apart(archive, plan_store.storage, "plan_dir")
        planned = _reachable("plan_dir", read_identity, plan_store)
        if planned is not None and existing is not None:
            check_identity(planned, existing, plan_store.storage.url)
    _reachable("the plan", lambda place: check_binding(output, place), plan_store)
    shards = _reachable("the archive", shards_identity, archive)
    if shards is not None:
        _agree_with_shards(options, shards)
    elif privacy.key is None:
        _say(
            f"note: no key ({options.key_env or 'key_env'} is not set), so patient_key, study_key and "
            "instance_key stay empty and grouping by patient is off"
        )
    return Job(
        archive=archive,
        output=output,
        plan_store=plan_store,
        existing=existing,
        shards=shards,
        settings=InputSettings(
            archive_url=archive.url,
            archive_options=options.archive_options,
            decode_policy=options.decode_policy,
            max_bytes=options.max_bytes,
            max_pixels=options.max_pixels,
            privacy=privacy,
            process_limits=ProcessLimits.of(options.decode_seconds, options.decode_memory),
        ),
        say=_say,
    )


def report_end(screening: Screening, job: Job) -> int:
    """Run, print the one-line JSON summary last, and return the exit code."""
    options = screening.options
    start = time.monotonic()
    if options.dry_run:
        return _dry_run(screening)
    counts = screening.run()
    kind = screening.work.identity.kind
    share = counts.quarantined / counts.planned if counts.planned else 0.0
    code = EXIT_QUARANTINED if share > options.max_quarantined else EXIT_OK
    if code == EXIT_QUARANTINED:
        job.say(
            f"{share:.1%} of the images are quarantined, more than max_quarantined={options.max_quarantined}"
        )
    url = screening.output.storage.url
    print(
        json.dumps(
            {
                "output": url,
                "table": f"{url}/{kind}/",
                "summary": f"{url}/run.json",
                "planned": counts.planned,
                screening.work.identity.kind_verb: counts.kept,
                "quarantined": counts.quarantined,
                "reasons": counts.reasons,
                "seconds": round(time.monotonic() - start, 1),
                "exit_code": code,
            }
        ),
        flush=True,
    )
    return code


def _dry_run(screening: Screening) -> int:
    """List, sample and foretell; writes nothing."""
    plan = open_plan(screening.plan_store)
    screening.check_archive()
    listing = screening.list_new(plan)
    try:
        prediction = foretell(plan, listing, screening.output, screening.work, screening.options.unit_size)
        record = {
            "dry_run": True,
            "output": screening.output.storage.url,
            "planned_already": plan.images,
            "new_images": listing.images,
            "listed_bytes": listing.bytes,
            "repeated_rows": listing.repeated,
            "left_out": listing.report,
            **prediction.record(),
        }
    finally:
        listing.close()
    for line in prediction.lines(screening.work.resources):
        screening.say(line)
    print(json.dumps(record), flush=True)
    return EXIT_OK


def _reachable(name: str, read: Any, place: Any) -> Any:
    """Call ``read(place)``; a storage that does not answer is the user's to mend."""
    from cxr_ray.archives.storage import explain
    from cxr_ray.errors import CxrRayError

    try:
        (place if isinstance(place, Storage) else place.storage).quick_probe()
        return read(place)
    except CxrRayError:
        raise
    except Exception as error:
        url = place.url if isinstance(place, Storage) else place.storage.url
        raise UsageError(
            f"{name} {url} cannot be reached ({explain(error)}); check the address and its options"
        ) from error


def _agree_with_shards(options: JobOptions, shards: Identity) -> None:
    """Shards were decoded and made private when they were made; an option that says otherwise is refused."""
    privacy = shards.document["privacy"]
    made_with = {
        "decode_policy": shards.document["preprocessing"].rsplit("/", 1)[-1],
        **{name: privacy[name] for name in ("keep_uri", "keep_year", "manifest_ids")},
    }
    for name, value in made_with.items():
        wanted = getattr(options, name)
        if wanted not in (value, JobOptions.__dataclass_fields__[name].default):
            raise UsageError(f"the shards were made with {name}={value}; ingest again for {name}={wanted}")
    for name in ("carry", "exclude"):
        if getattr(options, name):
            raise UsageError(f"{name}= belongs to jobs/ingest.py; these shards are made already")


def _keep_apart(outer: Storage, inner: Storage, name: str) -> None:
    """OUTPUT inside the archive would list itself at the next run; a private plan inside OUTPUT would leak."""
    # The archive may be a single file, and a local path may go through links.
    outer_url, inner_url = (_resolved(storage) + "/" for storage in (outer, inner))
    if inner_url.startswith(outer_url):
        raise UsageError(f"{name} {inner.url} lies inside {outer.url}; choose a place outside it")


def _resolved(storage: Storage) -> str:
    return os.path.realpath(storage.path) if storage.is_local else storage.url.rstrip("/")


def _say(line: str) -> None:
    print(line, flush=True)
