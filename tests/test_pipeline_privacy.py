"""Keyed hashes: equal for equal values, useless without the key, absent without one."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from cxr_ray.errors import UsageError
from cxr_ray.pipeline.privacy import Privacy, read_key, resolve_privacy

KEY = b"k" * 32


def test_hash_is_the_documented_one() -> None:
    expected = hmac.new(KEY, b"patient|HOSPITAL|12345", hashlib.sha256).hexdigest()[:32]
    assert Privacy(key=KEY).hashed("patient", " 12345 ", "HOSPITAL") == expected


def test_fields_and_issuers_are_kept_apart() -> None:
    privacy = Privacy(key=KEY)
    values = {
        privacy.hashed("patient", "1"),
        privacy.hashed("study", "1"),
        privacy.hashed("patient", "1", "A"),
        Privacy(key=b"x" * 32).hashed("patient", "1"),
    }
    assert len(values) == 4


def test_no_key_no_columns() -> None:
    assert Privacy().hashed("patient", "1") is None
    assert Privacy(key=KEY).hashed("patient", "  ") is None
    assert Privacy().fingerprint is None


def test_pseudonyms_pass_and_raw_values_are_hashed() -> None:
    assert Privacy(key=KEY, manifest_ids="pseudonyms").manifest_key("patient", "p-7") == "p-7"
    assert Privacy(key=KEY).manifest_key("patient", "p-7") == Privacy(key=KEY).hashed("patient", "p-7")
    assert Privacy().manifest_key("patient", "p-7") is None


def test_the_key_never_shows() -> None:
    assert "kkkk" not in repr(Privacy(key=KEY))
    assert "kkkk" not in str(Privacy(key=KEY).document())


def test_key_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    assert read_key("SOME_KEY", None) is None
    monkeypatch.setenv("SOME_KEY", "e" * 40)
    assert read_key("SOME_KEY", None) == b"e" * 40
    secret = tmp_path / "key"
    secret.write_bytes(b"f" * 32 + b"\n")
    assert read_key("SOME_KEY", str(secret)) == b"f" * 32


def test_bad_keys_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "short")
    with pytest.raises(UsageError, match="5 bytes") as refusal:
        read_key("SOME_KEY", None)
    assert "short" not in str(refusal.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_key(None, str(tmp_path / "absent"))


def test_hidden_paths_need_a_key() -> None:
    with pytest.raises(UsageError, match="keep_uri=false needs a key"):
        resolve_privacy(key_env=None, key_file=None, keep_uri=False, keep_year=False, manifest_ids="raw")
    with pytest.raises(UsageError, match="manifest_ids"):
        resolve_privacy(key_env=None, key_file=None, keep_uri=True, keep_year=False, manifest_ids="hash")
