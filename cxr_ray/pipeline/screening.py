"""One run over an archive: finish what is planned, plan what is new, publish it, count.

Ingest and score share this; they differ in the ``Work`` they pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cxr_ray.archives.batches import FileBatch
from cxr_ray.archives.inputs import image_id_of
from cxr_ray.archives.listing import MANIFEST_SUFFIXES, ListingReport, check_access, list_batches
from cxr_ray.archives.manifest import ManifestOptions
from cxr_ray.archives.storage import Storage, is_storage_error
from cxr_ray.calibration import Calibration
from cxr_ray.errors import ArchiveError, CxrRayError, RunFailed, UsageError
from cxr_ray.pipeline import summary
from cxr_ray.pipeline.binding import bind
from cxr_ray.pipeline.calibrations import record_calibration
from cxr_ray.pipeline.decode_unit import InputSettings
from cxr_ray.pipeline.failures import UnitFailure, reason_of
from cxr_ray.pipeline.identity import Identity, claim_identity
from cxr_ray.pipeline.options import JobOptions, ManifestConfig
from cxr_ray.pipeline.parts import PartFooter, published_units
from cxr_ray.pipeline.plan import Plan, Unit, counted_units, open_plan
from cxr_ray.pipeline.planner import Listing, PlannedSource, commit_generation, select_new, spool_listing
from cxr_ray.pipeline.publish import SINGLE_WRITER, Publisher
from cxr_ray.pipeline.publishing.lease import WriterLease, stop_this_driver
from cxr_ray.pipeline.resources import Resources, bytes_in_flight
from cxr_ray.pipeline.shard_source import list_shards
from cxr_ray.pipeline.summary import Counts
from cxr_ray.pipeline.timings import Timings

Say = Callable[[str], None]


_LEFT_OUT = {
    "excluded": "left out by name (exclude=)",
    "not_regular": "links or special entries left out",
    "rows_without_uri": "manifest rows without a uri left out",
    "loose_versions": "inventory rows say no version that can be compared in full",
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a job does with its inputs.

    Attributes:
        identity: of OUTPUT; decides its kind.
        settings: how to read and decode.
        footer: of every part, unit and generation filled in later.
        resources: share of the machines.
        scorer: picklable factory of a scorer; None for ingest.
        bundle: bytes that nodes check on arrival; None for ingest.
        calibration: how scores are calibrated and decided; None for ingest.
    """

    identity: Identity
    settings: InputSettings
    footer: PartFooter
    resources: Resources
    scorer: Callable[[], Any] | None = None
    bundle: bytes | None = None
    min_lung_fraction: float = 0.0
    calibration: Calibration | None = None


@dataclass
class Screening:
    """One run of one job.

    Attributes:
        from_shards: the archive is an ingest OUTPUT.
        ray_ready: Ray is running already (the job joined a cluster to learn its size).
    """

    options: JobOptions
    archive: Storage
    output: Publisher
    plan_store: Publisher
    work: Work
    from_shards: bool
    say: Say
    ray_ready: bool = False
    attempt: str = field(default_factory=summary.new_attempt)
    seconds: dict[str, float] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)
    failures: list[UnitFailure] = field(default_factory=list)
    _checked: bool = False
    _claimed: bool = False

    def run(self) -> Counts:
        """Carry the run to its end.

        Raises:
            UsageError: archive, OUTPUT, nodes or identity do not serve.
            RunFailed: units remained unpublished.
        """
        with contextlib.ExitStack() as stack:
            if self.options.fencing == SINGLE_WRITER:
                lease = WriterLease(self.output, self.attempt, lost=stop_this_driver, say=self.say)
                stack.enter_context(lease)
            plan = open_plan(self.plan_store)
            if self._open_units(plan):
                self._make_ready(stack)
                self._publish(plan)
            if self.options.extend or not plan.generations:
                if not plan.generations:
                    self.check_archive()
                    self._make_ready(stack)
                try:
                    plan = self._extend(plan, stack)
                except UsageError:
                    if plan.generations:  # the archive is gone, but what was planned is done: say so first
                        self._finish(plan)
                    raise
        counts = self._finish(plan)
        if not counts.complete:
            raise RunFailed(
                f"{counts.planned} images are planned, but {counts.kept + counts.quarantined} rows are published; "
                "run `cxr-ray verify` on OUTPUT to see which are missing"
            )
        return counts

    def check_archive(self) -> None:
        """Refuse an archive that is not there, before anything else is started."""
        options = self.options
        if (options.manifest != ManifestConfig() or options.carry) and not (
            self.archive.url.endswith(MANIFEST_SUFFIXES)
        ):
            raise ArchiveError(
                "manifest= and carry= are for an archive that is a .csv or .parquet manifest; "
                f"{self.archive.url} is none"
            )
        check_access(self.archive)

    def list_new(self, plan: Plan) -> Listing:
        """List the archive and select what no generation holds yet.

        Raises:
            ArchiveError: nothing in it is an image.
        """
        with self._timed("list"):
            report = ListingReport()
            listing = spool_listing(self._inputs(report), self.work.settings.privacy)
            listing.report = {
                name: count
                for name, count in asdict(report).items()
                if count and name not in ("listed", "containers")
            }
            if not listing.rows:
                listing.close()
                left_out = listing.report.get("excluded", 0)
                also = f" ({left_out} files were left out by name, see exclude=)" if left_out else ""
                raise ArchiveError(f"the archive {self.archive.url} holds no images{also}; check archive=")
            select_new(listing, plan.id_chunks(), self.options.limit)
        return listing

    # -- steps ----------------------------------------------------------------------------------------

    def _inputs(self, report: ListingReport) -> Iterator[PlannedSource | FileBatch]:
        if self.from_shards:
            yield from list_shards(self.archive)
            return
        options = self.options
        manifest = None
        if options.manifest != ManifestConfig() or options.carry:
            manifest = ManifestOptions(**vars(options.manifest), carry=tuple(options.carry))
        extra = {} if options.exclude is None else {"exclude": tuple(options.exclude)}
        key = self.work.settings.privacy.image_key
        for found in list_batches(self.archive, manifest=manifest, report=report, **extra):
            if isinstance(found, FileBatch):
                yield found
                continue
            yield PlannedSource(
                source=found, image_id=image_id_of(found, key), uri=found.uri, member=found.member
            )

    def _make_ready(self, stack: contextlib.ExitStack) -> None:
        """Probe OUTPUT, start Ray, check the nodes; once per run."""
        from cxr_ray.pipeline import cluster

        if self._checked:
            return
        self._checked = True

        with self._timed("start"):
            self.output.probe(sweep=True)
            if self.plan_store.storage.url != self.output.storage.url:
                self.plan_store.probe(sweep=True)
            if not self.ray_ready:
                resources = self.work.resources
                in_flight = bytes_in_flight(self.options.unit_size, resources)
                stack.enter_context(
                    cluster.ray_session(self.options.ray_address, resources.local_cpus, in_flight)
                )
                self.ray_ready = True
            new_folders = self.output.new_folders()
            token = cluster.publish_token(self.output)
            try:
                bundle = self.work.bundle
                expected = cluster.NodeExpectation(
                    code=self.work.footer.code_version,
                    archive=self.archive,
                    output=self.output,
                    bundle_sha256=hashlib.sha256(bundle).hexdigest() if bundle is not None else None,
                    token_name=token,
                )
                checked = cluster.check_nodes(expected, bundle)
            finally:
                self.output.forget(token, new_folders)
        self.say(
            f"checked {checked} node type{'s' if checked != 1 else ''}: code, archive and OUTPUT are in order"
        )

    def _extend(self, plan: Plan, stack: contextlib.ExitStack) -> Plan:
        """Commit a generation of what is new, and publish it."""
        listing = self.list_new(plan)
        try:
            if not listing.images:
                return plan
            self._make_ready(stack)
            self._claim()
            with self._timed("plan"):
                won = commit_generation(
                    self.plan_store,
                    plan,
                    listing,
                    attempt=self.attempt,
                    identity=self.work.identity.hash,
                    largest=self.options.unit_size,
                )
            plan = open_plan(self.plan_store)
            self._say_planned(plan, listing, won)
        finally:
            listing.close()
        self._publish(plan)
        return plan

    def _claim(self) -> None:
        """Put our identity and the plan's id in OUTPUT (and ``plan_dir``), the calibration, and the start of this
        attempt."""
        if self._claimed:
            return
        self._claimed = True
        claim_identity(self.output, self.work.identity)
        if self.plan_store.storage.url != self.output.storage.url:
            claim_identity(self.plan_store, self.work.identity)
        bind(self.output, self.plan_store)
        self._record_calibration()
        summary.write_attempt(self.output, self.attempt, self._provenance(), started=True)

    def _record_calibration(self) -> None:
        calibration = self.work.calibration
        if calibration is None:
            return
        weights = self.work.footer.weights
        if record_calibration(self.output, calibration, weights=weights, attempt=self.attempt) > 1:
            self.say(
                "note: earlier rows of OUTPUT were calibrated in another way; queries calibrate all rows alike, "
                "as recorded last"
            )

    def _provenance(self) -> dict[str, Any]:
        """What this attempt runs with."""
        keep_uri = self.work.settings.privacy.keep_uri
        return {
            "attempt": self.attempt,
            "identity": self.work.identity.hash,
            "kind": self.work.identity.kind,
            "calibration_id": self.work.footer.calibration_id,
            "fencing": self.options.fencing,
            "options": summary.recordable(self.options, keep_uri=keep_uri),
            "versions": summary.versions(),
            "code_version": self.work.footer.code_version,
            "resources": vars(self.work.resources),
        }

    def _say_planned(self, plan: Plan, listing: Listing, won: bool) -> None:
        last = plan.generations[-1]
        notes = []
        if not won:
            notes.append("planned by another driver")
        repeated = listing.repeated + listing.report.get("repeated_rows", 0)
        if repeated:
            notes.append(f"{repeated:,} repeated rows are planned once")
        for name, meaning in _LEFT_OUT.items():
            if listing.report.get(name):
                notes.append(f"{listing.report[name]:,} {meaning}")
        tail = f"; {'; '.join(notes)}" if notes else ""
        self.say(f"planned {last['images']:,} images in {counted_units(last['units'])}{tail}")

    def _open_units(self, plan: Plan) -> list[Unit]:
        done = published_units(self.output, self.work.identity.kind)
        return [unit for unit in plan.units() if unit.unit_id not in done]

    def _publish(self, plan: Plan) -> None:
        """Run the graph over the open units until every one has its part.

        Raises:
            RunFailed: some have none; which and why is recorded.
        """
        from cxr_ray.pipeline.board import RunBoard
        from cxr_ray.pipeline.progress import ProgressPrinter
        from cxr_ray.pipeline.rounds import Patience, publish_units
        from cxr_ray.pipeline.stages import Stages

        open_units = self._open_units(plan)
        if not open_units:
            return
        self._claim()
        waiting = sum(unit.images for unit in open_units)
        stages = Stages(
            plan=self.plan_store,
            output=self.output,
            settings=self.work.settings,
            kind=self.work.identity.kind,
            footer=replace(self.work.footer, attempt=self.attempt),
            device=self.work.resources.device,
            scorer=self.work.scorer,
            min_lung_fraction=self.work.min_lung_fraction,
            readout=(self.work.calibration or Calibration()).readout(),
            unit_retries=self.options.unit_retries,
        )
        patience = Patience(rounds=self.options.rounds, no_progress_seconds=self.options.no_progress_seconds)
        board = RunBoard.remote()  # type: ignore[attr-defined]  # made by ray.remote
        with (
            self._timed("run"),
            ProgressPrinter(
                board,
                total=plan.images,
                before=plan.images - waiting,
                scoring=self.work.scorer is not None,
                every=self.options.progress_seconds,
            ),
        ):
            try:
                self.failures = publish_units(
                    open_units,
                    stages,
                    self.work.resources,
                    patience,
                    say=self.say,
                    timings=self.timings,
                    board=board,
                )
            except CxrRayError as error:
                self._record_failure(plan, str(error))
                raise
        if self.failures:
            sentence = summary.failure_sentence(self.failures, self.attempt)
            self._record_failure(plan, sentence)
            raise RunFailed(sentence)

    def _record_failure(self, plan: Plan, sentence: str) -> None:
        """Write down what a run that ends unfinished has done; OUTPUT itself may be what failed."""
        try:
            self._finish(plan, sentence)
        except Exception as error:
            if not (is_storage_error(error) or isinstance(error, CxrRayError)):
                raise
            self.say(f"note: runs/{self.attempt}.json could not be written ({reason_of(error)})")

    def _finish(self, plan: Plan, error: str | None = None) -> Counts:
        with self._timed("count"):
            counts = summary.count_rows(self.output, plan, self.work.identity.kind)
        record = {
            "attempt": self.attempt,
            "identity": self.work.identity.hash,
            "kind": self.work.identity.kind,
            "complete": counts.complete,
            "planned": counts.planned,
            self.work.identity.kind_verb: counts.kept,
            "quarantined": counts.quarantined,
            "reasons": counts.reasons,
            "generations": len(plan.generations),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "timings": self.timings.summary(),
            "failed_units": len(self.failures),
            "error": error,
        }
        failures = {"failures": [asdict(failure) for failure in self.failures]} if self.failures else {}
        self.output.probe(sweep=True)
        summary.write_attempt(self.output, self.attempt, record | failures | self._provenance())
        summary.write_run(self.output, record)
        return counts

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
