"""Resources: scorers never take every logical CPU (the silent hang of ray-project/ray#44687)."""

from __future__ import annotations

import pytest

from cxr_ray.errors import UsageError
from cxr_ray.pipeline.resources import bytes_in_flight, device_model, share


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 16, 64])
@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("local", [True, False])
def test_a_decode_and_a_write_task_always_fit_beside_the_scorers(cpus: int, gpus: int, local: bool) -> None:
    found = share(cpus=cpus, gpus=gpus, local=local, scoring=True, actors=None, decode_tasks=None)
    total = found.local_cpus if local else cpus
    assert found.actors >= 1
    assert found.actors * found.actor_cpus + found.decode_cpus + found.publish_cpus <= total
    assert found.decode_tasks >= 1


def test_one_scorer_per_cpu_locally_and_per_gpu_where_there_are_some() -> None:
    assert share(cpus=2, gpus=0, local=True, scoring=True, actors=None, decode_tasks=None).actors == 2
    found = share(cpus=16, gpus=2, local=True, scoring=True, actors=None, decode_tasks=None)
    assert (found.device, found.actors, found.actor_gpus) == ("cuda", 2, 1.0)


def test_a_cluster_keeps_one_cpu_free() -> None:
    assert share(cpus=4, gpus=0, local=False, scoring=True, actors=None, decode_tasks=None).actors == 3
    with pytest.raises(UsageError, match="actors=4 does not fit"):
        share(cpus=4, gpus=0, local=False, scoring=True, actors=4, decode_tasks=None)


@pytest.mark.parametrize("local", [True, False])
def test_ingest_needs_no_scorer(local: bool) -> None:
    found = share(cpus=2, gpus=1, local=local, scoring=False, actors=None, decode_tasks=None)
    assert found.actors == 0
    total = found.local_cpus if local else 2
    assert found.decode_tasks * found.decode_cpus + found.publish_cpus <= total


def test_a_pool_that_grows_needs_room_for_its_beginning_only() -> None:
    with pytest.raises(UsageError, match="actors=16 does not fit"):
        share(cpus=10, gpus=0, local=False, scoring=True, actors=16, decode_tasks=None)
    grown = share(cpus=10, gpus=0, local=False, scoring=True, actors=16, decode_tasks=None, min_actors=2)
    fixed = share(cpus=10, gpus=0, local=False, scoring=True, actors=8, decode_tasks=None)
    assert (grown.actors, grown.min_actors, fixed.min_actors) == (16, 2, None)
    assert grown.decode_tasks >= fixed.decode_tasks
    gpus = share(cpus=16, gpus=2, local=False, scoring=True, actors=20, decode_tasks=None, min_actors=1)
    assert (gpus.device, gpus.actors, gpus.actor_gpus) == ("cuda", 20, 1.0)
    with pytest.raises(UsageError, match="min_actors=3 is more than actors=2"):
        share(cpus=10, gpus=0, local=True, scoring=True, actors=2, decode_tasks=None, min_actors=3)
    with pytest.raises(UsageError, match="does not fit"):
        share(cpus=4, gpus=0, local=False, scoring=True, actors=16, decode_tasks=None, min_actors=8)


def test_what_is_in_flight_is_bounded_by_readers_and_scorers() -> None:
    found = share(cpus=4, gpus=0, local=True, scoring=True, actors=2, decode_tasks=2)
    assert bytes_in_flight(1000, found) == 2 * (3 * 2 + 2 * 2) * 1000 * (300 * 340 + 2048)
    assert bytes_in_flight(1, found) == 512 * 2**20


@pytest.mark.parametrize("local", [True, False])
def test_no_more_publishing_tasks_than_cores_to_encode_on(local: bool) -> None:
    for cpus, expected in ((1, 2), (2, 2), (16, 16)):
        found = share(cpus=cpus, gpus=0, local=local, scoring=True, actors=None, decode_tasks=None)
        assert found.publish_tasks == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_device_is_named_with_the_kernels_that_are_not_torchs_own(device: str) -> None:
    plain = device_model(device)
    assert device_model(device, "torch") == plain
    assert device_model(device, "triton") == f"{plain} triton"
