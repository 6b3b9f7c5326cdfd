"""Import of the published Keras files: both sources of the paths agree, and wrong folders are refused in words."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cxr_ray.errors import BundleError, MissingExtra
from cxr_ray.weights import import_keras, load_bundle
from cxr_ray.weights.keras import path_state, segmenter_state
from cxr_ray.weights.keras_files import LAYER_WEIGHTS, PATH_LAYERS


def copy_keras(shared_dir: Path, target: Path, *patterns: str) -> Path:
    target.mkdir()
    for pattern in patterns:
        for file in (shared_dir / "reference" / "weights").glob(pattern):
            shutil.copy(file, target / file.name)
    return target


def test_published_facts(published_bundle_dir: Path) -> None:
    bundle = load_bundle(published_bundle_dir)
    assert (bundle.meta.mask_style, bundle.meta.mask_styles) == ("v7", ("jms", "v7"))
    assert bundle.meta.classes == ("Covid+", "Covid-")
    assert bundle.meta.positive_index == 0
    assert bundle.meta.standardisation_mean == 124.07157127013421
    assert bundle.meta.standardisation_std == 75.97485671901313
    assert bundle.meta.trained
    assert [sum(t.numel() for t in state.values()) for state in bundle.paths] == [20_467] * 6
    assert sum(t.numel() for t in bundle.segmenters["v7"].values()) == 59_941
    assert bundle.meta.licence_basis


def test_the_ensemble_file_gives_the_same_paths(
    shared_dir: Path, published_bundle_dir: Path, tmp_path: Path
) -> None:
    folder = copy_keras(shared_dir, tmp_path / "keras", "model_16F*", "ensemble_*", "*.json")
    imported = import_keras(folder, tmp_path / "bundle")
    assert imported.tensor_sha256 == load_bundle(published_bundle_dir).tensor_sha256


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("model_17F*", "*.json"), "model_16F"),
        (("model_16F*", "*.json"), "ensemble"),
        (("model_16F*", "model_17F*"), "standardization"),
    ],
)
def test_missing_files_are_named(
    shared_dir: Path, tmp_path: Path, patterns: tuple[str, ...], message: str
) -> None:
    pytest.importorskip("h5py")
    folder = copy_keras(shared_dir, tmp_path / "keras", *patterns)
    with pytest.raises(BundleError, match=message):
        import_keras(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_damaged_file_is_named(shared_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    folder = copy_keras(shared_dir, tmp_path / "keras", "*")
    damaged = next(folder.glob("*_M3_*"))
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(BundleError, match="_M3_"):
        import_keras(folder, tmp_path / "bundle")


def test_no_folder(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    with pytest.raises(BundleError, match="no directory"):
        import_keras(tmp_path / "nothing", tmp_path / "bundle")


def test_without_h5py_it_says_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match="pip install"):
        import_keras(tmp_path, tmp_path / "bundle")


def made_layers(names: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """Made Keras layers of Module 2, every number different, so that any swap shows."""
    counter = iter(range(10**9))
    shapes = {"query_kernel": (2, 1, 64), "key_kernel": (2, 1, 64), "value_kernel": (2, 1, 64),
              "projection_kernel": (2, 64, 1), "projection_bias": (1,)}  # fmt: skip
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name in names:
        kind = name.rstrip("0123456789").rstrip("_")
        layers[name] = {}
        for weight in LAYER_WEIGHTS[kind]:
            shape = shapes.get(weight, (3, 3, 5, 1) if weight == "depthwise_kernel" else (1, 1, 5, 4))
            shape = (4,) if weight in ("bias", "gamma", "beta", "moving_mean", "moving_variance") else shape
            values = [next(counter) for _ in range(int(np.prod(shape)))]
            layers[name][weight] = np.array(values, np.float64).reshape(shape)
    return layers


def test_path_layers_land_where_they_belong() -> None:
    layers = made_layers(PATH_LAYERS)
    state = path_state(layers)
    assert len(PATH_LAYERS) == len(set(PATH_LAYERS)) == 38
    columns = layers["multi_head_attention_1"]["query_kernel"]
    assert torch.equal(state["attention.columns.query"], torch.tensor(columns[:, 0, :]).float())
    depthwise = layers["separable_conv2d_9"]["depthwise_kernel"]  # block B, branch 1, second
    assert torch.equal(
        state["block_b.branches.1.second.depthwise.weight"],
        torch.tensor(depthwise.transpose(2, 3, 0, 1)).float(),
    )
    assert state["block_a.shortcut_norm.bias"].tolist() == layers["batch_normalization_4"]["beta"].tolist()
    assert state["block_c.pre_norm.weight"].tolist() == layers["batch_normalization_10"]["gamma"].tolist()
    kernel = layers["conv2d_2"]["kernel"]
    assert torch.equal(state["block_c.shortcut.weight"], torch.tensor(kernel.transpose(3, 2, 0, 1)).float())


def test_a_foreign_model_is_refused() -> None:
    with pytest.raises(BundleError, match="no layer separable_conv2d"):
        segmenter_state({"dense": {"kernel": np.zeros((1, 1), np.float32)}})
