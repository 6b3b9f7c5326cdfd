"""Shards joined with a manifest: every way of finding a picture, and every way of failing to; masks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from end_to_end.commands import write_films
from torch.nn.functional import interpolate
from training_material import make_pairs, make_shards, write_manifest

from cxr_ray.errors import TrainingDataError
from cxr_ray.pipeline.privacy import Privacy
from cxr_ray.preprocess import preprocess
from training.data.frames import Frames, load_frames
from training.data.manifest import ManifestSettings, manifest_root, read_manifest
from training.data.masks import load_masks, resize_mask

KEY = b"k" * 32


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[ManifestSettings, str]:
    folder = tmp_path_factory.mktemp("pairs")
    manifest = make_pairs(folder)
    settings = ManifestSettings(path=str(manifest), manifest_ids="pseudonyms")
    return settings, make_shards(manifest, folder / "out")


def load(settings: ManifestSettings, shards: str, **more: Any) -> Frames:
    return load_frames(shards, read_manifest(settings), root=manifest_root(settings), **more)


def test_frames_are_the_pictures(pairs: tuple[ManifestSettings, str]) -> None:
    frames = load(*pairs)
    assert len(frames) == 5
    assert frames.pixels_NHW.shape == (5, 300, 340)
    assert frames.pixels_NHW.dtype == np.uint8
    assert frames.pixels_NHW.flags.c_contiguous
    assert [one.id for one in frames.examples] == sorted(one.id for one in frames.examples)
    # Two masks of one picture, and the two pictures of a patient, are drawn as one: p0 with three rows, p1 with two.
    assert [one.unit_key for one in frames.examples] == ["p0"] * 3 + ["p1"] * 2
    assert len(set(frames.image_id)) == 4
    assert frames.dropped == {}
    folder = Path(pairs[0].path).parent
    for pixels_HW, example in zip(frames.pixels_NHW, frames.examples, strict=True):
        film = cv2.imread(str(folder / example.file), cv2.IMREAD_UNCHANGED)
        assert film is not None
        np.testing.assert_array_equal(pixels_HW, preprocess(film))
    assert set(frames.source_rows.tolist()) == {400}
    assert set(frames.source_columns.tolist()) == {340}


def test_order_does_not_depend_on_the_manifest(pairs: tuple[ManifestSettings, str]) -> None:
    settings, shards = pairs
    examples = read_manifest(settings)
    root = manifest_root(settings)
    backwards = load_frames(shards, examples[::-1], root=root)
    assert [one.id for one in backwards.examples] == [one.id for one in load(*pairs).examples]
    one = load_frames(shards, examples[1:2], root=root)
    assert [example.id for example in one.examples] == [examples[1].id]


def test_take(pairs: tuple[ManifestSettings, str]) -> None:
    frames = load(*pairs)
    two = frames.take([3, 1])
    assert two.image_id == [frames.image_id[3], frames.image_id[1]]
    np.testing.assert_array_equal(two.pixels_NHW, frames.pixels_NHW[[3, 1]])
    assert two.examples == [frames.examples[3], frames.examples[1]]


def test_shards_without_addresses_join_by_key_or_by_id(
    pairs: tuple[ManifestSettings, str], tmp_path: Path
) -> None:
    settings, plain = pairs
    shards = make_shards(Path(settings.path), tmp_path, privacy=Privacy(key=KEY, keep_uri=False))
    keyed = load(settings, shards, key=KEY)
    by_address = {one.id: row.tobytes() for one, row in zip_frames(load(settings, plain))}
    assert {one.id: row.tobytes() for one, row in zip_frames(keyed)} == by_address
    # A picture with two masks is one row of the shards, under the id of the manifest's first row.
    first = [one for one in read_manifest(settings) if one.mask_style == "v7"]
    by_id = load_frames(shards, first, root=manifest_root(settings))
    assert {one.id: row.tobytes() for one, row in zip_frames(by_id)}.items() <= by_address.items()
    with pytest.raises(TrainingDataError, match="are not in the shards"):
        load(settings, shards, key=b"x" * 32)


def zip_frames(frames: Frames) -> Any:
    return zip(frames.examples, frames.pixels_NHW, strict=True)


def test_members_of_a_container(tmp_path: Path) -> None:
    films = write_films(tmp_path / "films", 2)
    archive = shutil.make_archive(str(tmp_path / "films"), "tar", tmp_path / "films")  # names begin with ./
    rows = [{"id": film.stem, "file": Path(archive).name, "member": film.name} for film in films]
    manifest = write_manifest(tmp_path / "manifest.csv", rows)
    frames = load(ManifestSettings(path=str(manifest)), make_shards(manifest, tmp_path / "out"))
    for pixels_HW, example in zip(frames.pixels_NHW, frames.examples, strict=True):
        film = cv2.imread(str(tmp_path / "films" / str(example.member)), cv2.IMREAD_UNCHANGED)
        assert film is not None
        np.testing.assert_array_equal(pixels_HW, preprocess(film))


def test_bad_pictures_are_dropped_and_counted_missing_ones_refused(tmp_path: Path) -> None:
    films = write_films(tmp_path / "films", 2)
    (tmp_path / "films" / "page.png").write_bytes(b"<html>no film</html>")
    rows = [{"file": f"films/{name}"} for name in (films[0].name, films[1].name, "page.png")]
    rows = [{"id": str(number), **row} for number, row in enumerate(rows)]
    manifest = write_manifest(tmp_path / "manifest.csv", rows)
    settings = ManifestSettings(path=str(manifest))
    shards = make_shards(manifest, tmp_path / "out")
    frames = load(settings, shards)
    assert (len(frames), frames.dropped) == (2, {"unknown_format": 1})
    with pytest.raises(TrainingDataError, match="no picture is left"):
        load_frames(shards, read_manifest(settings)[2:], root=manifest_root(settings))
    films[1].unlink()
    with pytest.raises(TrainingDataError, match=r"1 of 3 pictures of the manifest were not there.*\(row 2\)"):
        load(settings, make_shards(manifest, tmp_path / "again"))


def test_what_is_not_in_the_shards_is_named(pairs: tuple[ManifestSettings, str], tmp_path: Path) -> None:
    settings, shards = pairs
    others = [replace(one, id=f"other-{one.id}") for one in read_manifest(settings)]
    with pytest.raises(TrainingDataError, match=r"5 of 5 pictures .*row 1 \(film-000\.v7\)"):
        load_frames(shards, others, root=str(tmp_path))
    with pytest.raises(TrainingDataError, match="holds no shards"):
        load(settings, str(tmp_path))


def test_masks(pairs: tuple[ManifestSettings, str]) -> None:
    settings, shards = pairs
    frames = load(settings, shards)
    lungs_NHW = load_masks(frames, root=manifest_root(settings))
    assert lungs_NHW.shape == (5, 300, 340)
    assert lungs_NHW.dtype == np.uint8
    for mask_HW, example in zip(lungs_NHW, frames.examples, strict=True):
        first = 100 + int(example.id[5:8])
        rows = (2 * np.arange(300) + 1) * 400 // 600
        expected_HW = np.outer((rows >= first) & (rows < 300), np.isin(np.arange(340), np.arange(60, 150)))
        np.testing.assert_array_equal(mask_HW, expected_HW)


@pytest.mark.parametrize("size", [(300, 340), (512, 401), (299, 511), (150, 170), (341, 343), (2000, 1777)])
def test_resizing_is_nearest_with_half_pixel_centres(size: tuple[int, int]) -> None:
    # Every pixel has its own number, so that the pixel that was read shows.
    numbers_HW = np.arange(size[0] * size[1], dtype=np.int32).reshape(size)
    resized_HW = resize_mask(numbers_HW)  # type: ignore[arg-type]
    centres = [(2 * np.arange(n) + 1) * m / (2 * n) for n, m in zip((300, 340), size, strict=True)]
    rows, columns = (np.floor(centre).astype(int) for centre in centres)
    np.testing.assert_array_equal(resized_HW, numbers_HW[np.ix_(rows, columns)])
    whole = [(2 * np.arange(n) + 1) * m % (2 * n) == 0 for n, m in zip((300, 340), size, strict=True)]
    clear_HW = ~(whole[0][:, None] | whole[1][None, :])
    opencv_HW = cv2.resize(numbers_HW.astype(np.float64), (340, 300), interpolation=cv2.INTER_NEAREST_EXACT)
    np.testing.assert_array_equal(resized_HW[clear_HW], opencv_HW[clear_HW])
    torch_HW = interpolate(
        torch.from_numpy(numbers_HW)[None, None].double(), (300, 340), mode="nearest-exact"
    )
    np.testing.assert_array_equal(resized_HW[clear_HW], torch_HW[0, 0].numpy()[clear_HW])


def bad_mask(kind: str) -> bytes | None:
    mask_HW = np.zeros((400, 340), np.uint8)
    mask_HW[50:100, 50:100] = 1
    if kind == "grey":
        mask_HW[60] = 128
    if kind == "empty":
        mask_HW[:] = 0
    if kind == "size":
        mask_HW = mask_HW[:300]
    if kind in ("no picture", "missing"):
        return b"no picture" if kind == "no picture" else None
    return cv2.imencode(".png", mask_HW)[1].tobytes()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("size", r"mask of row 2 \(film-001\.v7\) is 300 x 340 pixels .* its picture is 400 x 340"),
        ("grey", "holds 3 grey levels"),
        ("empty", "is empty"),
        ("no picture", "no picture that can be decoded"),
        ("missing", "is not there"),
    ],
)
def test_bad_masks_are_named(tmp_path: Path, kind: str, expected: str) -> None:
    folder = tmp_path / "films"
    films = write_films(folder, 2)
    rows = [
        {"id": f"{film.stem}.v7", "file": film.name, "mask": f"{film.stem}.mask.png", "patient_id": "Doe"}
        for film in films
    ]
    manifest = write_manifest(folder / "manifest.csv", rows)
    settings = ManifestSettings(path=str(manifest), manifest_ids="pseudonyms")
    frames = load(settings, make_shards(manifest, tmp_path / "out"))
    good = bad_mask("good")
    assert good is not None
    (folder / "film-000.mask.png").write_bytes(good)
    bad = bad_mask(kind)
    if bad is not None:
        (folder / "film-001.mask.png").write_bytes(bad)
    with pytest.raises(TrainingDataError, match=expected) as caught:
        load_masks(frames, root=manifest_root(settings))
    assert "Doe" not in str(caught.value)


def test_real_pairs(shared_dir: Path, tmp_path: Path) -> None:
    data = shared_dir / "data"
    settings = ManifestSettings(
        path=str(data / "seg" / "manifest.csv"), root=str(data), manifest_ids="pseudonyms"
    )
    chosen = read_manifest(settings)[::150]
    rows = [{"id": one.id, "file": one.file} for one in chosen]
    shards = make_shards(write_manifest(tmp_path / "some.csv", rows), tmp_path / "out", root=str(data))
    frames = load_frames(shards, chosen, root=manifest_root(settings))
    lungs_NHW = load_masks(frames, root=manifest_root(settings))
    assert len(frames) == len(chosen)
    shares = lungs_NHW.mean(axis=(1, 2))
    assert shares.min() > 0.05
    assert shares.max() < 0.7
