"""Identity: stable hash, refusal of another one with the difference named, foreign folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import IdentityMismatch, OutputError
from cxr_ray.pipeline.identity import (
    KIND_SCORES,
    KIND_SHARDS,
    Identity,
    check_identity,
    claim_identity,
    differences,
    read_identity,
)
from cxr_ray.pipeline.publish import Publisher


def scores(**score: object) -> Identity:
    return Identity(kind=KIND_SCORES, document={"schema_version": 1, "score": {"threads": 1, **score}})


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(open_storage(str(tmp_path / "out")))


def test_hash_does_not_depend_on_key_order() -> None:
    one = Identity(kind=KIND_SCORES, document={"a": 1, "b": {"c": 2, "d": 3}})
    other = Identity(kind=KIND_SCORES, document={"b": {"d": 3, "c": 2}, "a": 1})
    assert one.hash == other.hash
    assert len(one.hash) == 64


def test_claim_and_read_back(publisher: Publisher) -> None:
    assert read_identity(publisher) is None
    claim_identity(publisher, scores())
    claim_identity(publisher, scores())
    assert read_identity(publisher) == scores()


def test_another_identity_is_refused_with_the_difference(publisher: Publisher) -> None:
    claim_identity(publisher, scores(compute_batch=4))
    with pytest.raises(IdentityMismatch, match=r"score\.compute_batch is 4 there and 8 here"):
        claim_identity(publisher, scores(compute_batch=8))


def test_another_kind_is_refused(publisher: Publisher) -> None:
    with pytest.raises(IdentityMismatch, match="holds shards"):
        check_identity(Identity(kind=KIND_SHARDS, document={}), scores(), "file:///out")


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(OutputError, match="not of a cxr_ray run"):
        read_identity(Publisher(open_storage(str(tmp_path))))


def test_an_output_that_another_driver_begins_meanwhile_is_no_foreign_folder(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = publisher.is_empty

    def begun_before_the_look() -> bool:
        claim_identity(publisher, scores())
        return look()

    monkeypatch.setattr(publisher, "is_empty", begun_before_the_look)
    assert read_identity(publisher) == scores()


@pytest.mark.parametrize("content", ["", "{}", '{"identity": "0", "kind": "scores", "document": {}}'])
def test_a_damaged_identity_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "identity.json").write_text(content)
    with pytest.raises(OutputError, match="damaged"):
        read_identity(Publisher(open_storage(str(tmp_path))))


def test_differences_name_every_leaf() -> None:
    found = differences({"a": 1, "b": {"c": [1]}}, {"a": 1, "b": {"c": [2]}, "d": None})
    assert found == ["b.c is [1] there and [2] here"]
