"""Checkpoints: exact, whole or not there, damaged ones passed over; on a local folder and on S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from s3_server import S3Server
from torch import Tensor

from cxr_ray.archives.storage import Storage, open_storage
from cxr_ray.errors import StorageReadError, StorageWriteError
from training.checkpoints import Checkpoints, pack, unpack
from training.parallel.processes import Processes

FACTS = {"epoch": 3, "loss": 0.1 + 0.2, "history": [{"auc": float("inf")}, {"auc": None}], "name": "fold 0"}


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "out" / "fold0"))
    server = request.getfixturevalue("s3_server")
    return open_storage(f"s3://{server.make_bucket()}/out/fold0", server.storage_options)


@pytest.fixture
def checkpoints(storage: Storage) -> Checkpoints:
    return Checkpoints(storage.url, storage.options)


def state(number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    weight = torch.randn(4, 3, 2, 2, generator=generator)
    return {
        "model.weight": weight.to(memory_format=torch.channels_last),
        "model.view": weight[0],
        "optimiser.step": torch.tensor(number),
        "half": torch.randn(3, generator=generator).bfloat16(),
        "nan": torch.tensor([float("nan"), -0.0]),
        "random": generator.get_state(),
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*raw), name


def names(storage: Storage) -> list[str]:
    storage.fs.invalidate_cache()
    return sorted(path.rsplit("/", 1)[-1] for path in storage.fs.find(storage.path))


def test_a_state_comes_back_bit_for_bit(checkpoints: Checkpoints) -> None:
    assert checkpoints.latest() is None
    checkpoints.save(7, state(7), FACTS)
    found = checkpoints.latest()
    assert found is not None
    assert found.number == 7
    assert found.facts == FACTS
    assert_same(found.tensors, state(7))


def test_only_the_newest_are_kept(checkpoints: Checkpoints, storage: Storage) -> None:
    for number in (9, 100, 123456789):
        checkpoints.save(number, state(number), {"n": number})
    assert [name[:20] for name in names(storage)] == ["checkpoint-00000100-", "checkpoint-123456789"]
    found = checkpoints.latest()
    assert found is not None
    assert found.number == 123456789


def test_a_number_saved_again_is_replaced(checkpoints: Checkpoints, storage: Storage) -> None:
    for facts in ({"try": 1}, {"try": 2}, {"try": 2}):
        checkpoints.save(5, state(5), facts)
    assert len(names(storage)) == 1
    found = checkpoints.latest()
    assert found is not None
    assert found.facts == {"try": 2}


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_newest_is_passed_over_and_mended(
    checkpoints: Checkpoints, storage: Storage, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints.save(1, state(1), {})
    checkpoints.save(2, state(2), {})
    path = f"{storage.path}/{names(storage)[-1]}"
    data = bytearray(storage.fs.cat_file(path))
    data[-1] ^= 1
    damaged = {"cut": bytes(data[:-40]), "bit": bytes(data), "empty": b""}[damage]
    storage.fs.pipe_file(path, damaged)
    found = checkpoints.latest()
    assert found is not None
    assert found.number == 1
    assert_same(found.tensors, state(1))
    assert "checkpoint 2 is damaged" in caplog.text
    checkpoints.save(2, state(2), {})
    mended = checkpoints.latest()
    assert mended is not None
    assert mended.number == 2
    assert len(names(storage)) == 2


def test_a_damaged_later_one_does_not_push_good_ones_out(checkpoints: Checkpoints, storage: Storage) -> None:
    storage.fs.makedirs(storage.path, exist_ok=True)
    storage.fs.pipe_file(f"{storage.path}/checkpoint-00000009-{'0' * 32}.safetensors", b"damaged")
    for number in (1, 2):
        checkpoints.save(number, state(number), {})
    assert len(names(storage)) == 3


def test_what_a_killed_writer_leaves_is_ignored_and_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "half").write_bytes(pack(state(9), {})[:100])
    (tmp_path / "notes.txt").write_text("of the user")
    assert checkpoints.latest() is None
    checkpoints.save(1, state(1), {})
    assert list((tmp_path / "staging").iterdir()) == []
    assert (tmp_path / "notes.txt").exists()


def test_a_failed_save_keeps_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, state(1), {})

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cxr_ray.pipeline.publishing.local.os.fsync", full)
    with pytest.raises(StorageWriteError, match=r"checkpoint 2 .*No space left"):
        checkpoints.save(2, state(2), {})
    monkeypatch.undo()
    found = checkpoints.latest()
    assert found is not None
    assert found.number == 1


def test_an_unreadable_storage_is_not_an_empty_one(s3_server: S3Server) -> None:
    checkpoints = Checkpoints(f"s3://{s3_server.make_bucket()}/fold0", s3_server.storage_options)
    checkpoints.save(1, state(1), {})
    s3_server.set_faults(1.0, kinds=("403",))
    try:
        with pytest.raises(StorageReadError, match="could not be read"):
            checkpoints.latest()
        with pytest.raises(StorageWriteError, match="the one before it is kept"):
            checkpoints.save(2, state(2), {})
    finally:
        s3_server.clear_faults()
    found = checkpoints.latest()
    assert found is not None
    assert found.number == 1


def test_the_same_state_gives_the_same_bytes() -> None:
    backwards = dict(reversed(state(3).items()))
    assert pack(state(3), FACTS) == pack(backwards, json.loads(json.dumps(FACTS)))
    assert_same(unpack(3, pack(state(3), FACTS)).tensors, state(3))


def test_the_state_for_all_is_the_latest(checkpoints: Checkpoints) -> None:
    alone = Processes.alone()
    assert checkpoints.latest_for_all(alone) is None
    checkpoints.save(4, state(4), FACTS)
    found = checkpoints.latest_for_all(alone)
    assert found is not None
    assert (found.number, found.facts) == (4, FACTS)
    assert_same(found.tensors, state(4))


def test_one_checkpoint_is_too_few_to_keep(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Checkpoints(str(tmp_path), keep=1)
