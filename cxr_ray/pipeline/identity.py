"""Identity: everything that decides the bytes of a row, and nothing else (DESIGN promise 7).

Two runs of one identity may share an OUTPUT; two identities never do. The identity document is
published once as ``OUTPUT/identity.json``; its hash stands in every plan, row and part footer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cxr_ray.errors import IdentityMismatch, OutputError
from cxr_ray.pipeline.publish import Publisher

IDENTITY_FILE = "identity.json"

KIND_SCORES = "scores"
KIND_SHARDS = "shards"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Kind of OUTPUT and the document behind the hash.

    Attributes:
        kind: ``scores`` or ``shards``.
        document: nested dict of plain values.
    """

    kind: str
    document: dict[str, Any]

    @property
    def hash(self) -> str:
        """64 hex digits of the canonical JSON of kind and document."""
        text = json.dumps(
            {"kind": self.kind, "document": self.document}, sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def kind_verb(self) -> str:
        """What a row that is not quarantined is called in summaries: ``scored`` or ``ready``."""
        return "scored" if self.kind == KIND_SCORES else "ready"

    def to_json(self) -> bytes:
        record = {"identity": self.hash, "kind": self.kind, "document": self.document}
        return json.dumps(record, indent=2, sort_keys=True).encode() + b"\n"


def read_identity(publisher: Publisher) -> Identity | None:
    """The identity that OUTPUT was begun with, or None for an unused OUTPUT.

    Raises:
        OutputError: the folder holds files but no identity of ours, or a damaged one.
    """
    raw = publisher.read(IDENTITY_FILE)
    url = publisher.storage.url
    if raw is None:
        if publisher.is_empty():
            return None
        raw = publisher.read(IDENTITY_FILE)  # another driver may have begun OUTPUT between the two looks
    if raw is None:
        raise OutputError(
            f"OUTPUT {url} holds files that are not of a cxr_ray run (no {IDENTITY_FILE}); "
            "give the OUTPUT of a job, or an empty or new place for a new one"
        )
    try:
        record = json.loads(raw)
        identity = Identity(kind=record["kind"], document=record["document"])
        intact = identity.hash == record["identity"]
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise OutputError(
            f"{url}/{IDENTITY_FILE} is damaged; restore it from a backup or choose another OUTPUT"
        )
    return identity


def check_identity(existing: Identity | None, wanted: Identity, url: str) -> None:
    """Refuse an OUTPUT of another identity, naming every difference.

    Raises:
        IdentityMismatch: with one sentence.
    """
    if existing is None or existing.hash == wanted.hash:
        return
    if existing.kind != wanted.kind:
        raise IdentityMismatch(
            f"OUTPUT {url} holds {existing.kind}, and this job writes {wanted.kind}; choose another OUTPUT"
        )
    found = differences(existing.document, wanted.document)
    raise IdentityMismatch(
        f"OUTPUT {url} was begun with other settings: {'; '.join(found)}; "
        "use the same settings to continue it, or another OUTPUT for these"
    )


def claim_identity(publisher: Publisher, wanted: Identity) -> None:
    """Publish ``identity.json``, or accept the one that another driver published meanwhile."""
    if not publisher.publish(IDENTITY_FILE, wanted.to_json()):
        check_identity(read_identity(publisher), wanted, publisher.storage.url)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """``name is OLD there and NEW here`` for every leaf that differs, in name order."""
    found: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += differences(before, now, f"{prefix}{name}.")
        elif before != now:
            found.append(f"{prefix}{name} is {_short(before)} there and {_short(now)} here")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:20]}...{text[-8:]}"
