"""Create-only publication on object stores: one conditional request.

======  ================================  ====================================================================
store   precondition                      request
======  ================================  ====================================================================
S3      ``If-None-Match: *``              one PUT up to 256 MiB; above, a multipart upload whose completion
                                          carries the precondition
GCS     ``ifGenerationMatch=0``           one multipart/related upload of any size. Never a resumable one, whose
                                          precondition a server may look at when it begins only
Azure   ``If-None-Match: *``              one Put Blob up to 64 MiB; above, blocks whose commit carries it
======  ================================  ====================================================================

The parts that the jobs write are far below the limits, so the request that the probe has tested is the one that
publishes them. S3 is tested with moto, GCS with fake-gcs-server and Azure with Azurite: servers that say that they
do as the real ones do. Against the real services none of it has been run; the probe tests them at every start.
A client may repeat a request whose answer was lost, and is then told that the name is taken, by itself: whoever is
not the winner has to look at what is there.
"""

from __future__ import annotations

import time
from typing import Any, Final

from cxr_ray.archives.storage import Storage

#: Stores whose create-only write is one step. Others may offer one that looks first and writes then.
CONDITIONAL: Final = ("s3", "gs", "az")

#: s3fs sends bytes of less than twice this as one PUT.
S3_CHUNK: Final = 128 * 2**20

#: What S3 servers answer when the name exists; s3fs knows only AWS's wording of it.
_EXISTS_CODES: Final = {"PreconditionFailed", "412"}
_CONFLICT_CODES: Final = {"ConditionalRequestConflict", "409"}
_CONFLICT_PAUSES: Final = (0.2, 0.5, 1.0, 2.0)


def create_object(storage: Storage, path: str, data: bytes) -> bool:
    """Create ``path`` with ``data``. True: created by us. False: the name was taken, and is unchanged."""
    for pause in (*_CONFLICT_PAUSES, None):
        try:
            storage.fs.pipe_file(path, data, mode="create", **_one_request(storage.protocol, len(data)))
            return True
        except FileExistsError:
            return False
        except OSError as error:
            code = server_code(error)
            if code in _EXISTS_CODES:
                return False
            if code not in _CONFLICT_CODES or pause is None:
                raise
            time.sleep(pause)  # two conditional writes met; S3 asks to try again
    raise AssertionError("the last try returns or raises")


def _one_request(protocol: str, size: int) -> dict[str, Any]:
    if protocol == "s3":
        return {"chunksize": S3_CHUNK}
    return {"chunksize": size + 1} if protocol == "gs" else {}


def server_code(error: BaseException) -> str | None:
    """The error code of an S3 server behind an exception of s3fs, None where there is none."""
    cause = error.__cause__ or error
    code = getattr(cause, "response", {}).get("Error", {}).get("Code")
    return None if code is None else str(code)
