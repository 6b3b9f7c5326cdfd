"""Keyed hashes: the only form in which identifiers leave the pipeline (DESIGN promise 8).

``patient_key``, ``study_key`` and ``instance_key`` are the first 32 hex digits of
HMAC-SHA-256(key, field name | issuer | trimmed value). Without a key they are null.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path

from cxr_ray.errors import UsageError

MINIMUM_KEY_BYTES = 32

RAW = "raw"
PSEUDONYMS = "pseudonyms"
MANIFEST_IDS = (RAW, PSEUDONYMS)


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """What may leave, and the key. Safe to print: the key never shows."""

    key: bytes | None = field(default=None, repr=False)
    keep_uri: bool = True
    keep_year: bool = False
    manifest_ids: str = RAW

    @property
    def fingerprint(self) -> str | None:
        """16 hex digits that tell keys apart without telling the key."""
        if self.key is None:
            return None
        return hmac.new(self.key, b"cxr_ray key fingerprint", hashlib.sha256).hexdigest()[:16]

    @property
    def image_key(self) -> bytes | None:
        """Key of ``image_id``: only where URIs must not be guessable from the table."""
        return None if self.keep_uri else self.key

    def hashed(self, name: str, value: str | None, issuer: str | None = None) -> str | None:
        """Keyed hash of one DICOM identifier; null without a key or a value.

        Args:
            name: ``patient``, ``study`` or ``instance``.
            value: the identifier as the header or the manifest gives it.
            issuer: IssuerOfPatientID, where known.
        """
        text = (value or "").strip()
        if self.key is None or not text:
            return None
        message = "|".join((name, (issuer or "").strip(), text)).encode()
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:32]

    def manifest_key(self, name: str, value: str | None) -> str | None:
        """Key of a manifest value: itself where the user says that it is a pseudonym, else hashed."""
        if self.manifest_ids == PSEUDONYMS:
            return (value or "").strip() or None
        return self.hashed(name, value)

    def document(self) -> dict[str, object]:
        """The part of the identity that privacy decides."""
        return {
            "keep_uri": self.keep_uri,
            "keep_year": self.keep_year,
            "manifest_ids": self.manifest_ids,
            "key_fingerprint": self.fingerprint,
        }


def read_key(key_env: str | None, key_file: str | None) -> bytes | None:
    """The secret from an environment variable or a file, or None where neither is given.

    Raises:
        UsageError: a named source that is absent, or fewer than 32 bytes.
    """
    if key_file:
        try:
            key = Path(key_file).read_bytes().strip()
        except OSError as error:
            raise UsageError(
                f"the key file cannot be read ({error.strerror}); give key_file=PATH of a readable file"
            ) from error
        source = "the key file"
    elif key_env and os.environ.get(key_env):
        key = os.environ[key_env].strip().encode()
        source = f"the environment variable {key_env}"
    else:
        return None
    if len(key) < MINIMUM_KEY_BYTES:
        raise UsageError(
            f"{source} holds {len(key)} bytes, but a key of at least {MINIMUM_KEY_BYTES} is needed; "
            "make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return key


def resolve_privacy(
    *, key_env: str | None, key_file: str | None, keep_uri: bool, keep_year: bool, manifest_ids: str
) -> Privacy:
    """Privacy options checked against each other.

    Raises:
        UsageError: ``keep_uri=false`` without a key, or an unknown ``manifest_ids``.
    """
    if manifest_ids not in MANIFEST_IDS:
        raise UsageError(f"manifest_ids must be one of {', '.join(MANIFEST_IDS)}, not {manifest_ids!r}")
    key = read_key(key_env, key_file)
    if not keep_uri and key is None:
        raise UsageError(
            f"keep_uri=false needs a key, so that image_id cannot be guessed from a path; "
            f"set {key_env or 'key_env'} or key_file"
        )
    return Privacy(key=key, keep_uri=keep_uri, keep_year=keep_year, manifest_ids=manifest_ids)
