"""Pictures: what is drawn where, from originals of every kind, and what is refused."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from encoded_maps import heat_columns
from made_output import IDENTITY, make_output

from cxr_ray.decode import decode
from cxr_ray.errors import OutputError, UsageError
from cxr_ray.phantoms import write_sample_archive
from cxr_ray.pipeline.identity import KIND_SHARDS, Identity
from cxr_ray.pipeline.map_encoding import encode_lung_mask
from cxr_ray.preprocess import preprocess
from cxr_ray.results import open_scores, render_images
from cxr_ray.results.figure import NOTICE, draw_figure
from cxr_ray.results.originals import read_originals
from cxr_ray.results.render import render_top
from cxr_ray.results.rows import fetch_rows, top_ids
from cxr_ray.results.table import open_output

SHARDS = Identity(kind=KIND_SHARDS, document=IDENTITY.document)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_sample_archive(folder, count=6)
    return folder


@pytest.fixture(scope="module")
def output(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_output(archive, tmp_path_factory.mktemp("runs") / "out", unit_size=3))


def ids_by_status(output: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in open_scores(output).to_table(columns=["image_id", "status"]).to_pylist():
        found.setdefault(row["status"], []).append(row["image_id"])
    return found


def made_row(**changes: Any) -> dict[str, Any]:
    """Evidence that grows from left to right; lungs are the left and the right third of the frame."""
    evidence = np.tile(np.linspace(-1, 1, 85, dtype=np.float32), (75, 1))
    mask = np.zeros((300, 340), bool)
    mask[50:250, 20:120] = mask[50:250, 220:320] = True
    row = {
        "image_id": "0" * 32,
        "p_covid": 0.75,
        "lung_fraction": 0.4,
        "flags": [],
        "decision": None,
        "image_rows": 300,
        "image_columns": 340,
        **heat_columns(evidence),
        "lung_mask": encode_lung_mask(mask),
    }
    return {**row, **changes}


def picture(png: bytes) -> np.ndarray:
    """RGB as float."""
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(float)


def panel_boxes(rgb: np.ndarray) -> list[slice]:
    """Columns of the four panels, found by the grey image that each shows."""
    middle = rgb[rgb.shape[0] // 2].max(axis=1) > 60
    edges = np.flatnonzero(np.diff(np.concatenate([[0], middle.astype(int), [0]])))
    runs = [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 100]
    assert len(runs) == 4
    return runs


def test_the_four_panels_show_what_their_titles_say() -> None:
    grey = np.full((300, 340), 128, np.uint8)
    rgb = picture(draw_figure(made_row(), grey))
    row = rgb.shape[0] // 2
    colours = [rgb[row, box] for box in panel_boxes(rgb)]

    def at(panel: int, place: float) -> np.ndarray:
        return colours[panel][int(place * len(colours[panel]))]

    image, positive, negative, difference = range(4)
    assert np.ptp(colours[image]) <= 2  # the plain image is grey everywhere
    for panel in (positive, negative, difference):
        assert np.ptp(at(panel, 0.5)) <= 2  # between the lungs the overlay is transparent
    assert at(positive, 0.1)[2] > at(positive, 0.1)[0]  # least evidence: blue
    assert at(positive, 0.9)[0] > at(positive, 0.9)[2]  # most evidence: red
    assert at(negative, 0.1)[0] > at(negative, 0.1)[2]
    assert at(negative, 0.9)[2] > at(negative, 0.9)[0]
    # Opacity follows the score: 0.5 for 0.75, and 0.25 for 0.25.
    strength = [np.ptp(at(panel, 0.08)) for panel in (positive, negative, difference)]
    assert strength[0] == pytest.approx(strength[2], abs=4)  # |0.75 - 0.25| = 0.5
    assert 0.35 * strength[0] < strength[1] < 0.65 * strength[0]


def test_the_original_aspect_ratio_is_restored() -> None:
    grey = np.full((300, 340), 128, np.uint8)
    shapes = {}
    for rows, columns in ((600, 680), (3000, 2000)):
        rgb = picture(draw_figure(made_row(image_rows=rows, image_columns=columns), grey))
        box = panel_boxes(rgb)[0]
        height = int((rgb[:, box.start + 10].min(axis=1) > 60).sum())  # beside the title
        shapes[rows / columns] = height / (box.stop - box.start)
    for wanted, found in shapes.items():
        assert found == pytest.approx(wanted, rel=0.03)


def test_without_the_image_the_outline_is_drawn_and_undefined_maps_are_said() -> None:
    plain = picture(draw_figure(made_row(), None))
    assert plain.max() > 100
    undefined = made_row(**heat_columns(np.ones((75, 85))))
    assert not np.array_equal(picture(draw_figure(undefined, None)), plain)


def test_files_say_what_they_are_and_are_deterministic() -> None:
    png = draw_figure(made_row(), None)
    assert NOTICE.encode() in png
    assert png == draw_figure(made_row(), None)


@pytest.mark.parametrize("container", ["directory", "tar.gz", "shards"])
def test_originals_come_back_as_they_were_scored(archive: Path, tmp_path: Path, container: str) -> None:
    """The pixels behind a row are those that the run preprocessed, whatever the archive was."""
    source: Path = archive
    if container == "tar.gz":
        source = tmp_path / "films.tar.gz"
        with tarfile.open(source, "w:gz") as tar:
            for file in sorted(archive.iterdir()):
                tar.add(file, arcname=file.name)
    if container == "shards":
        source = tmp_path / "shards"
        make_output(archive, source, identity=SHARDS)
    make_output(source, tmp_path / "out", unit_size=3)
    expected = {}
    for file in sorted(archive.glob("synthetic-00[0-4]*")):
        data = file.read_bytes()
        expected[hashlib.sha256(data).hexdigest()] = preprocess(decode(data).pixels)
    storage, identity = open_output(tmp_path / "out")
    rows = fetch_rows(storage, identity, ids_by_status(tmp_path / "out")["scored"][::-1])
    found = {row.values["content_sha256"]: pixels for row, pixels in read_originals(storage, rows)}
    assert found.keys() == expected.keys()
    for content, pixels in found.items():
        assert np.array_equal(pixels, expected[content])


def test_one_image_to_a_file_and_several_to_a_folder(output: Path, tmp_path: Path) -> None:
    ids = ids_by_status(output)["scored"]
    (file,) = render_images(output, [ids[0].upper()], tmp_path / "new" / "one.png")
    assert file == tmp_path / "new" / "one.png"
    assert picture(file.read_bytes()).shape[2] == 3
    files = render_images(output, ids[:2], tmp_path / "several", with_image=False)
    assert [path.name for path in files] == [f"{image_id}.png" for image_id in ids[:2]]
    with pytest.raises(UsageError, match="names one file"):
        render_images(output, ids[:2], tmp_path / "two.png")


def test_top_takes_the_highest_scores(output: Path, tmp_path: Path) -> None:
    table = open_scores(output).to_table(columns=["image_id", "p_covid"]).to_pylist()
    ranked = sorted((row for row in table if row["p_covid"] is not None), key=lambda row: -row["p_covid"])
    assert top_ids(*open_output(output), 3) == [row["image_id"] for row in ranked[:3]]
    files = render_top(output, 2, tmp_path, with_image=False)
    assert [file.stem for file in files] == [row["image_id"] for row in ranked[:2]]
    assert len(top_ids(*open_output(output), 100)) == len(ranked)
    with pytest.raises(UsageError, match="at least 1"):
        render_top(output, 0, tmp_path)


def test_unknown_and_quarantined_images_are_refused(output: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not in the table"):
        render_images(output, ["f" * 32], tmp_path / "x.png")
    (bad,) = ids_by_status(output)["quarantined"]
    with pytest.raises(UsageError, match=r"quarantined, so it has no maps: truncated \(the PNG ends"):
        render_images(output, [bad], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_originals_gone_or_changed_are_said_with_what_to_do(archive: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(archive, tmp_path / "films"))
    output = Path(make_output(copy, tmp_path / "out"))
    storage, identity = open_output(output)
    rows = {
        Path(row.values["uri"]).name: row.image_id
        for row in fetch_rows(storage, identity, ids_by_status(output)["scored"])
    }
    (copy / "synthetic-000.png").unlink()
    (copy / "synthetic-003.png").write_bytes((copy / "synthetic-005-broken.png").read_bytes())
    for name in ("synthetic-000.png", "synthetic-003.png"):
        with pytest.raises(UsageError, match="--no-image") as caught:
            render_images(output, [rows[name]], tmp_path / "x.png")
        assert name not in str(caught.value)
    assert render_images(output, [rows["synthetic-000.png"]], tmp_path / "x.png", with_image=False)


def test_a_plan_kept_elsewhere_is_asked_for(archive: Path, tmp_path: Path) -> None:
    output = Path(make_output(archive, tmp_path / "out"))
    (tmp_path / "private").mkdir()
    shutil.move(output / "plan", tmp_path / "private" / "plan")
    image_id = ids_by_status(output)["scored"][0]
    with pytest.raises(UsageError, match="--plan-dir"):
        render_images(output, [image_id], tmp_path / "x.png")
    assert render_images(output, [image_id], tmp_path / "x.png", plan=tmp_path / "private")


def test_shards_have_no_pictures(archive: Path, tmp_path: Path) -> None:
    make_output(archive, tmp_path / "out", identity=SHARDS)
    with pytest.raises(OutputError, match="holds shards"):
        render_images(tmp_path / "out", ["0" * 32], tmp_path / "x.png")
