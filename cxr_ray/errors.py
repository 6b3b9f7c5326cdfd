"""Coded exceptions: one place for everything that can be wrong with an input or a command.

Two families share the base class:

* ``InputError``: one image (or container) is bad. It never ends a run: the pipeline turns it into a
  row with ``status = quarantined``, ``reason = code`` and ``detail = str(error)``.
* ``UsageError``: the command cannot be carried out as asked. A job ends with exit code 2 and prints
  the message, which says what was expected, what came and what to do.

Messages never carry DICOM attribute values, patient identifiers or credentials. Messages of
``InputError`` never carry a path either, because they become a column of the table.
"""

from __future__ import annotations


class CxrRayError(Exception):
    """Base of all errors raised on purpose. ``code`` is stable and machine-readable."""

    code: str = "internal"


class InputError(CxrRayError):
    """One input cannot be scored; becomes a quarantined row with ``reason = code``."""

    code = "input_error"


# -- reading bytes ---------------------------------------------------------------------------------


class MissingInput(InputError):
    """Planned, but no longer there when it was read."""

    code = "missing"


class ChangedInput(InputError):
    """Size, etag or modification time differ from what was planned."""

    code = "changed"


class AccessDenied(InputError):
    """This one file may not be read (its own mode, or cold storage), while the archive around it may."""

    code = "access_denied"


class EmptyInput(InputError):
    """Zero bytes."""

    code = "empty_file"


class OversizedInput(InputError):
    """More encoded bytes or more pixels than the limits allow."""

    code = "oversized"


class ContainerTruncated(InputError):
    """A tar, tar.gz or zip breaks off; members seen before the break are normal rows."""

    code = "container_truncated"


class ContainerUnreadable(InputError):
    """A tar, tar.gz or zip that cannot be opened at all."""

    code = "container_unreadable"


class MemberUnreadable(InputError):
    """A member of a readable container cannot be extracted (bad checksum, encrypted, ...)."""

    code = "member_unreadable"


# -- decoding --------------------------------------------------------------------------------------


class UnknownFormat(InputError):
    """The bytes are no supported image format, whatever the name says."""

    code = "unknown_format"


class TruncatedImage(InputError):
    """The image breaks off before its end."""

    code = "truncated"


class UndecodableImage(InputError):
    """The decoder refused the data."""

    code = "undecodable"


class UnsupportedEncoding(InputError):
    """A valid file in an encoding that no installed decoder reads."""

    code = "unsupported_encoding"


class MultiFrame(InputError):
    """More than one frame or page; a radiograph has one."""

    code = "multi_frame"


class NoPixels(InputError):
    """A DICOM object without pixel data (report, directory, presentation state)."""

    code = "no_pixels"


class NotRadiograph(InputError):
    """The header states a modality that is no projection radiograph (CT, MR, SEG, ...)."""

    code = "not_radiograph"


class ConstantPixels(InputError):
    """Every pixel has the same value, so there is nothing to normalise."""

    code = "constant_pixels"


class NonfinitePixels(InputError):
    """NaN or infinite pixel values."""

    code = "nonfinite_pixels"


class PixelShape(InputError):
    """Pixels that are not one 2-D frame of at least 2 x 2."""

    code = "pixel_shape"


class DecoderCrashed(InputError):
    """The decoder ended its process on this image, three times in a fresh process that did nothing else."""

    code = "decoder_crashed"


class MemoryLimit(InputError):
    """Decoding needs more memory than it is allowed (``decode_memory``)."""

    code = "memory_limit"


class TimeLimit(InputError):
    """Decoding takes more processor time than it is allowed (``decode_seconds``), or never ends."""

    code = "time_limit"


# -- scoring ---------------------------------------------------------------------------------------


class NoLungs(InputError):
    """Module 1 found no lung in the frame, so a score would say nothing (it would be exactly 0.5)."""

    code = "no_lungs"


class NonfiniteScore(InputError):
    """The network returned NaN or infinity for this image."""

    code = "nonfinite_score"


# -- commands --------------------------------------------------------------------------------------


class UsageError(CxrRayError):
    """The command cannot be carried out as asked; exit code 2."""

    code = "usage"


class ArchiveError(UsageError):
    """The archive cannot be listed: not there, empty, or no access."""

    code = "archive"


class OutputError(UsageError):
    """OUTPUT cannot be used: not writable, not ours, or without create-only publishing."""

    code = "output"


class IdentityMismatch(UsageError):
    """OUTPUT was begun with another identity (weights, preprocessing, options, key)."""

    code = "identity"


class BundleError(UsageError):
    """A weights bundle is missing, damaged or does not fit."""

    code = "bundle"


class MissingExtra(UsageError):
    """An optional dependency is needed and not installed."""

    code = "missing_extra"


class TrainingDataError(UsageError):
    """The training manifest, its shards or its masks cannot be used as asked."""

    code = "training_data"


class LeakError(UsageError):
    """The same patient, group or file stands on two sides of a split."""

    code = "leak"


class PublishConflict(CxrRayError):
    """A part of this name exists already and carries another identity."""

    code = "publish_conflict"


class StorageReadError(CxrRayError):
    """The archive's storage failed (network, server error, access denied), after retries.

    Not the fault of one input, so it never becomes a row: the work is tried again later.
    """

    code = "storage"


class WorkerKilled(CxrRayError):
    """The decode process was killed from outside again and again, or cannot start.

    Not the fault of one input, so it never becomes a row: the unit stays open for the next run.
    """

    code = "worker_killed"


class StorageWriteError(CxrRayError):
    """OUTPUT's storage refused a part, after retries; the unit stays open for the next run."""

    code = "storage_write"


class RunFailed(CxrRayError):
    """A run ended before every unit was published; nothing is lost, the same command resumes it."""

    code = "run_failed"


class MeasurementFailed(CxrRayError):
    """The speed of this machine could not be measured."""

    code = "measurement_failed"


class NonfiniteLoss(CxrRayError):
    """A training step gave NaN or infinity; the member stops and its last good checkpoint stays."""

    code = "nonfinite_loss"
