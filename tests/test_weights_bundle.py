"""Bundles: round trips, and every way in which a damaged or foreign bundle is refused in words."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch

from cxr_ray.errors import BundleError
from cxr_ray.weights import (
    Bundle,
    bundle_from_bytes,
    bundle_to_bytes,
    load_bundle,
    save_bundle,
    seeded_bundle,
)
from cxr_ray.weights.files import FILES, META_FILE, pack, unpack
from cxr_ray.weights.storage import default_directory


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return seeded_bundle(0)


PLATT = {"method": "platt", "slope": 1.5, "intercept": -0.25, "prevalence": 0.2, "n": 50, "n_positive": 10}
SENS95 = {"p_covid": 0.3, "sensitivity": [0.95, 0.9, 0.98], "specificity": [0.5, 0.4, 0.6]}


def same(first: Bundle, second: Bundle) -> bool:
    def tensors(bundle: Bundle) -> dict[str, torch.Tensor]:
        states = {**bundle.segmenters, **{str(i): state for i, state in enumerate(bundle.paths)}}
        return {f"{key}.{name}": t for key, state in states.items() for name, t in state.items()}

    ours, theirs = tensors(first), tensors(second)
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
        and first.meta == second.meta
        and first.tensor_sha256 == second.tensor_sha256
        and first.card == second.card
    )


def test_directory_round_trip(bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "new" / "bundle")
    assert sorted(p.name for p in (tmp_path / "new" / "bundle").iterdir()) == sorted(FILES)
    assert same(load_bundle(tmp_path / "new" / "bundle"), bundle)


def test_any_fsspec_url(bundle: Bundle) -> None:
    url = "memory://bundles/seeded"
    save_bundle(bundle, url)
    try:
        assert same(load_bundle(url), bundle)
    finally:
        fsspec.filesystem("memory").rm("/bundles", recursive=True)


def test_bytes_round_trip_and_are_stable(bundle: Bundle) -> None:
    data = bundle_to_bytes(bundle)
    assert data == bundle_to_bytes(bundle_from_bytes(data))
    assert same(bundle_from_bytes(data), bundle)


def test_optional_facts_survive(bundle: Bundle) -> None:
    meta = dataclasses.replace(
        bundle.meta,
        calibration=PLATT,
        thresholds={"sens95": SENS95},
        default_threshold="sens95",
        trained_on="made films",
        metrics={"auc": {"value": 0.8, "low": 0.7, "high": 0.9}},
        training_data_fingerprint="f" * 64,
        lung_gate=True,
    )
    assert unpack(pack(dataclasses.replace(bundle, meta=meta))).meta == meta


def test_bundles_from_before_thresholds_load(bundle: Bundle) -> None:
    """Without the entries that came later, and with the one that moved into ``calibration``."""
    files = pack(bundle)

    def age(head: dict) -> None:
        del head["default_threshold"], head["trained_on"]
        head["calibration_prevalence"] = None

    edit_meta(files, age)
    assert same(unpack(files), bundle)
    assert bundle.meta.score_calibration.id is None


def test_what_the_scores_mean_is_checked_and_names_no_networks(bundle: Bundle) -> None:
    meta = dataclasses.replace(bundle.meta, calibration=PLATT, thresholds={"sens95": SENS95})
    with pytest.raises(BundleError, match="default_threshold 'youden'"):
        unpack(pack(dataclasses.replace(bundle, meta=meta)))
    calibrated = Bundle.build(
        segmenters=bundle.segmenters,
        paths=bundle.paths,
        meta=dataclasses.replace(meta, default_threshold="sens95"),
    )
    assert calibrated.tensor_sha256 == bundle.tensor_sha256
    assert calibrated.meta.score_calibration.readout().threshold_name == "sens95"


def test_an_existing_bundle_is_not_overwritten(bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path)
    with pytest.raises(BundleError, match="already"):
        save_bundle(bundle, tmp_path)


def test_unwritable_place(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BundleError, match="cannot write"):
        save_bundle(bundle, tmp_path / "file" / "bundle")


def edit_meta(files: dict[str, bytes], change: Callable[[dict], None]) -> None:
    head = json.loads(files[META_FILE])
    change(head)
    files[META_FILE] = json.dumps(head).encode()


def flip(files: dict[str, bytes], name: str) -> None:
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])


DAMAGE: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "one flipped bit": (lambda f: flip(f, "paths.safetensors"), "paths.safetensors .* SHA-256"),
    "file missing": (lambda f: f.__delitem__("segmenter.safetensors"), "no segmenter.safetensors"),
    "not JSON": (lambda f: f.update({META_FILE: b"{"}), "JSON"),
    "JSON list": (lambda f: f.update({META_FILE: b"[]"}), "format version"),
    "future format": (lambda f: edit_meta(f, lambda h: h.update(format_version=9)), "format version 9"),
    "entry missing": (lambda f: edit_meta(f, lambda h: h.__delitem__("classes")), "missing .*classes"),
    "unknown entry": (lambda f: edit_meta(f, lambda h: h.update(colour="blue")), "unknown .*colour"),
    "other preprocessing": (
        lambda f: edit_meta(f, lambda h: h.update(preprocessing_version="99")),
        "preprocessing version 99",
    ),
    "wrong number of paths": (lambda f: edit_meta(f, lambda h: h.update(paths=5)), "5 paths"),
    "paths no number": (lambda f: edit_meta(f, lambda h: h.update(paths="six")), "should be a number"),
    "wrong classes": (
        lambda f: edit_meta(f, lambda h: h.update(classes=["a", "Covid+", "c"])),
        r"float32 \[3",
    ),
    "positive class": (lambda f: edit_meta(f, lambda h: h.update(positive_class="x")), "positive_class"),
    "mask style": (lambda f: edit_meta(f, lambda h: h.update(mask_style="x")), "mask_style"),
    "mask styles": (lambda f: edit_meta(f, lambda h: h.update(mask_styles=["seeded", "x"])), "holds"),
    "tensor table": (
        lambda f: edit_meta(
            f, lambda h: h["tensors"]["paths.safetensors"]["tensors"]["path0.norm.bias"].update(shape=[50])
        ),
        "names, shapes or dtypes",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(bundle: Bundle, name: str) -> None:
    damage, message = DAMAGE[name]
    files = pack(bundle)
    damage(files)
    with pytest.raises(BundleError, match=message):
        unpack(files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.__delitem__("head.bias"), "missing tensors .*head.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unknown tensors .*extra"),
        (lambda s: s.update({"head.bias": torch.zeros(3)}), r"float32 \[2\], found float32 \[3\]"),
        (lambda s: s.update({"head.bias": torch.zeros(2).half()}), "found float16"),
        (lambda s: s.update({"head.bias": torch.full((2,), torch.nan)}), "NaN"),
    ],
)
def test_tensors_of_another_network_are_refused(
    bundle: Bundle, change: Callable[[dict], None], message: str
) -> None:
    state = dict(bundle.segmenters["seeded"])
    change(state)
    with pytest.raises(BundleError, match=message):
        Bundle.build(segmenters={"seeded": state}, paths=bundle.paths, meta=bundle.meta)


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no weights bundle at"):
        load_bundle(tmp_path / "nothing")


def test_a_storage_that_does_not_exist_leaks_no_password() -> None:
    with pytest.raises(BundleError, match="cannot read") as caught:
        load_bundle("nosuchprotocol://user:secret@host/bundle?token=secret")
    assert "secret" not in str(caught.value)


def test_garbage_bytes() -> None:
    with pytest.raises(BundleError, match="no weights bundle"):
        bundle_from_bytes(b"garbage")


def test_default_without_bundled_weights_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxr_ray.weights.storage.default_directory", lambda: None)
    with pytest.raises(BundleError, match="weights=seeded"):
        load_bundle("default")


def test_bundled_weights_are_small_and_load() -> None:
    directory = default_directory()
    assert directory is not None  # they ship with the package
    assert sum(path.stat().st_size for path in directory.iterdir()) < 2e6
    assert load_bundle("default").meta.trained


def test_seeded_is_reproducible_and_says_what_it_is(bundle: Bundle) -> None:
    assert same(load_bundle("seeded"), bundle)
    assert seeded_bundle(1).tensor_sha256 != bundle.tensor_sha256
    assert not bundle.meta.trained
    assert "scores mean nothing" in bundle.meta.name
    assert "scores mean nothing" in bundle.card


def test_importing_the_package_needs_no_h5py() -> None:
    code = "import sys, cxr_ray.weights; sys.exit('h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
