"""What the check of a node refuses, in words that follow "node NAME"; run here as Ray runs it on a node."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import RunFailed
from cxr_ray.pipeline.cluster import (
    NodeExpectation,
    _free_of_the_jobs,
    check_node,
    object_store_bytes,
    publish_token,
    ray_session,
)
from cxr_ray.pipeline.code_version import code_version
from cxr_ray.pipeline.publish import Publisher

BUNDLE = b"the bytes of a bundle"


@pytest.fixture
def sound(tmp_path: Path) -> NodeExpectation:
    """An expectation that this process meets."""
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.png").write_bytes(b"film")
    output = Publisher(open_storage(str(tmp_path / "out")))
    return NodeExpectation(
        code=code_version(),
        archive=open_storage(str(tmp_path / "films")),
        output=output,
        bundle_sha256=hashlib.sha256(BUNDLE).hexdigest(),
        token_name=publish_token(output),
    )


def test_a_sound_node_passes_and_nothing_but_the_token_is_left(sound: NodeExpectation) -> None:
    assert check_node(sound, BUNDLE) is None
    assert sound.output.names("staging") == [sound.token_name.rsplit("/", 1)[-1]]


def test_other_code_is_refused(sound: NodeExpectation) -> None:
    assert "install the same version" in str(check_node(replace(sound, code="0.0.1+x"), BUNDLE))


def test_a_damaged_bundle_is_refused(sound: NodeExpectation) -> None:
    assert "damaged weights bundle" in str(check_node(sound, BUNDLE[:-1]))


def test_an_archive_that_the_node_does_not_see_is_refused(sound: NodeExpectation, tmp_path: Path) -> None:
    elsewhere = replace(sound, archive=open_storage(str(tmp_path / "not-mounted")))
    assert "cannot read the archive" in str(check_node(elsewhere, BUNDLE))


def test_an_output_on_the_nodes_own_disk_is_refused(sound: NodeExpectation, tmp_path: Path) -> None:
    own = replace(sound, output=Publisher(open_storage(str(tmp_path / "own"))))
    assert "another OUTPUT than the driver" in str(check_node(own, BUNDLE))


def test_the_jobs_own_variables_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "2"}}}'
    )
    assert _free_of_the_jobs({"OMP_NUM_THREADS": "1", "B": "2"}) == {"B": "2"}


def test_a_local_object_store_has_room_for_what_is_in_flight() -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert object_store_bytes(0) == min(4 * 2**30, memory // 4)
    assert object_store_bytes(10**15) == memory // 4


def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", busy)
    sentence = (
        r"Ray did not start \(Exception: The current node timed out during startup\.\); nothing is lost"
    )
    with pytest.raises(RunFailed, match=sentence), ray_session(None, 1):
        pass
