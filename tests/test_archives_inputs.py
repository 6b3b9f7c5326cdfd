"""Identifiers of inputs: stable, unambiguous, keyed on demand."""

from __future__ import annotations

import itertools

from cxr_ray.archives.inputs import ArchiveInput, image_id, image_id_of, readable_name


def test_identifier_is_frozen() -> None:
    # Tables in the field hold these: a change here orphans every one of them.
    assert image_id("file:///films/a.png", None).hex() == "c022aeaac3f2055f6cd416098d42d225"
    assert image_id("s3://films/b.tar", "x/a.png", 2).hex() == "310c805082e1e8b798010d2d227e99dd"
    assert image_id("s3://films/b.tar", "x/a.png", 2, b"k" * 32).hex() == "68f3adf162c570002419a487963279c9"


def test_no_two_inputs_share_an_identifier() -> None:
    parts = ["", "a", "ab", "b", "a/b", "=", "0", "1", "é", "\udcff"]
    names = [None, *parts]
    ids = {image_id(u, m, n) for u, m, n in itertools.product(parts, names, (0, 1, 10))}
    assert len(ids) == len(parts) * len(names) * 3
    assert all(len(one) == 16 for one in ids)


def test_key_changes_every_identifier() -> None:
    plain, keyed = image_id("u", "m"), image_id("u", "m", 0, b"0" * 32)
    assert plain != keyed != image_id("u", "m", 0, b"1" * 32)
    assert image_id_of(ArchiveInput(uri="u", member="m"), b"0" * 32) == keyed


def test_readable_name() -> None:
    assert readable_name("thorax é.png") == "thorax é.png"
    assert readable_name(b"a\xe9.png".decode("utf-8", "surrogateescape")) == "a\\xe9.png"
