"""OUTPUT and its plan belong together: a plan_dir that is new, lost or of another OUTPUT is refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import OutputError
from cxr_ray.pipeline.binding import bind, check_binding
from cxr_ray.pipeline.plan import marker_name
from cxr_ray.pipeline.publish import Publisher


def place(folder: Path) -> Publisher:
    return Publisher(open_storage(str(folder)))


def test_a_pair_once_bound_stays_a_pair(tmp_path: Path) -> None:
    output, plan = place(tmp_path / "out"), place(tmp_path / "plan")
    check_binding(output, plan)
    bind(output, plan)
    bind(output, plan)
    check_binding(output, plan)


def test_another_plan_folder_is_refused(tmp_path: Path) -> None:
    output = place(tmp_path / "out")
    bind(output, place(tmp_path / "plan"))
    with pytest.raises(OutputError, match="begun with another plan_dir"):
        check_binding(output, place(tmp_path / "empty"))
    with pytest.raises(OutputError, match="begun with a plan_dir"):
        check_binding(output, output)


def test_a_plan_of_another_output_is_refused(tmp_path: Path) -> None:
    plan = place(tmp_path / "plan")
    bind(place(tmp_path / "out"), plan)
    plan.publish(marker_name(0), json.dumps({"generation": 0, "directory": "a", "images": 1}).encode())
    with pytest.raises(OutputError, match="belongs to another OUTPUT"):
        check_binding(place(tmp_path / "other"), plan)


def test_a_plan_inside_output_stays_inside(tmp_path: Path) -> None:
    output = place(tmp_path / "out")
    bind(output, output)
    with pytest.raises(OutputError, match="another plan_dir"):
        check_binding(output, place(tmp_path / "plan"))


def test_a_driver_that_died_between_the_two_can_be_followed(tmp_path: Path) -> None:
    output, plan = place(tmp_path / "out"), place(tmp_path / "plan")
    plan.publish("plan_id.json", json.dumps({"plan_id": "a", "plan": "plan_dir"}).encode())
    check_binding(output, plan)
    bind(output, plan)
    assert json.loads((tmp_path / "out" / "plan_id.json").read_text())["plan_id"] == "a"


def test_a_damaged_id_is_one_sentence(tmp_path: Path) -> None:
    output = place(tmp_path / "out")
    output.publish("plan_id.json", b"{")
    with pytest.raises(OutputError, match="damaged"):
        check_binding(output, output)


def race(pairs: list[tuple[Path, Path]]) -> list[str]:
    """Bind every (OUTPUT, plan folder) at once; what each driver was told, empty where it may go on."""
    told: list[str] = []
    barrier = threading.Barrier(len(pairs))

    def drive(output: Path, plan: Path) -> None:
        barrier.wait()
        try:
            bind(place(output), place(plan))
        except OutputError as error:
            told.append(str(error))
        else:
            told.append("")

    threads = [threading.Thread(target=drive, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_drivers_that_begin_one_pair_at_once_agree(tmp_path: Path) -> None:
    for number in range(10):
        pair = (tmp_path / f"out-{number}", tmp_path / f"plan-{number}")
        assert race([pair] * 4) == [""] * 4
        check_binding(place(pair[0]), place(pair[1]))


def test_of_drivers_with_a_plan_folder_each_one_goes_on(tmp_path: Path) -> None:
    """Two plans of one OUTPUT would give its parts' names to different images."""
    for number in range(10):
        output = tmp_path / f"out-{number}"
        told = race([(output, tmp_path / f"plan-{number}-{driver}") for driver in range(3)])
        assert sorted(text != "" for text in told) == [False, True, True]
        assert all("begun with another plan_dir" in text for text in told if text)
