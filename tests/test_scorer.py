"""The scorer: bit for bit the same wherever an image stands, no score without lungs, options that are checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cxr_ray.errors import RunFailed, UsageError
from cxr_ray.nets.folding import FoldedBranch, Scratch
from cxr_ray.nets.path import Path as NetPath
from cxr_ray.scorer import Scorer, Scores, _out_of_memory
from cxr_ray.weights import Bundle, load_bundle, seeded_bundle

NAMES = [f.name for f in dataclasses.fields(Scores)]
SCORE_NAMES = ("p_covid", "logit", "path_logits", "p_std", "class_probs")


def frames(count: int, seed: int = 0) -> np.ndarray:
    """Made frames: smooth, every grey level, each one different."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:300, 0:340] / 340
    waves = [np.sin(2 * np.pi * (a * rows + b * columns) + c) for a, b, c in rng.uniform(0, 4, (count, 3))]
    return np.stack([(127.5 + 127.5 * wave).round().astype(np.uint8) for wave in waves])


def films(shared_dir: Path, count: int) -> np.ndarray:
    files = sorted((shared_dir / "reference" / "golden").glob("raw_*.npz"))
    return np.stack([np.load(file)["eq_u8"] for file in files[:count]])


def pick(scores: Scores, index: Any) -> Scores:
    return Scores(**{name: np.ascontiguousarray(getattr(scores, name)[index]) for name in NAMES})


def differing(first: Scores, second: Scores) -> list[str]:
    """Names of the arrays that are not equal bit for bit."""
    return [name for name in NAMES if getattr(first, name).tobytes() != getattr(second, name).tobytes()]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return seeded_bundle(0)


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> Scorer:
    return Scorer(bundle)


@pytest.fixture(scope="module")
def published(published_bundle_dir: Path) -> Scorer:
    return Scorer(load_bundle(published_bundle_dir))


def test_shapes_and_types(scorer: Scorer) -> None:
    scores = scorer.score(frames(2))
    expected = {
        "p_covid": (2,),
        "logit": (2,),
        "path_logits": (2, 6),
        "p_std": (2,),
        "class_probs": (2, 2),
        "lung_fraction": (2,),
        "lung_probability": (2, 300, 340),
        "evidence_map": (2, 75, 85),
        "heat_map": (2, 75, 85),
        "heat_lo": (2,),
        "heat_hi": (2,),
        "lung_mask": (2, 300, 340),
        "lung_bits": (2, 12750),
        "has_lungs": (2,),
    }
    assert {name: getattr(scores, name).shape for name in NAMES} == expected
    for name in NAMES:
        others = {"lung_mask": np.bool_, "has_lungs": np.bool_, "heat_map": np.uint8, "lung_bits": np.uint8}
        assert getattr(scores, name).dtype == others.get(name, np.float32)
        assert getattr(scores, name).flags.c_contiguous


def test_no_image_gives_empty_arrays_of_the_same_shapes(scorer: Scorer) -> None:
    none, one = scorer.score(frames(1)[:0]), scorer.score(frames(1))
    for name in NAMES:
        assert getattr(none, name).shape == (0, *getattr(one, name).shape[1:])
        assert getattr(none, name).dtype == getattr(one, name).dtype


def test_the_scores_of_an_image_fit_together(scorer: Scorer) -> None:
    pixels = frames(2)
    scores, inner = scorer.score(pixels), scorer.forward(pixels)
    assert scores.has_lungs.all()
    p_paths = 1 / (1 + np.exp(-scores.path_logits.astype(np.float64)))
    assert np.allclose(scores.p_covid, 1 / (1 + np.exp(-scores.logit.astype(np.float64))), atol=1e-6)
    assert np.allclose(scores.class_probs.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(scores.class_probs[:, 0], scores.p_covid)
    assert np.allclose(scores.p_std, p_paths.std(axis=1), atol=1e-6)
    # Two classes: the ensemble's logit is the mean of the path logits.
    assert np.allclose(scores.logit, scores.path_logits.mean(axis=1), atol=1e-4)
    assert np.allclose(scores.lung_fraction, (scores.lung_probability > 0.5).mean(axis=(1, 2)), atol=1e-6)
    assert np.array_equal(scores.lung_mask, (inner.mask > 0.3).numpy())
    assert np.array_equal(scores.lung_bits, np.packbits(scores.lung_mask.reshape(2, -1), axis=1))
    maps = inner.ensemble_map.numpy()
    assert np.array_equal(scores.evidence_map, maps[:, 0] - maps[:, 1])
    assert scores.p_std.min() > 0
    assert np.ptp(scores.evidence_map) > 0
    assert np.array_equal(scores.heat_hi, scores.evidence_map.max(axis=(1, 2)))
    low, high = (ends.astype(np.float64)[:, None, None] for ends in (scores.heat_lo, scores.heat_hi))
    levels = np.rint((scores.evidence_map - low) / (high - low) * 255)
    assert np.array_equal(scores.heat_map, levels.astype(np.uint8))


def test_neighbours_place_and_call_do_not_change_a_bit(published: Scorer, shared_dir: Path) -> None:
    pixels = films(shared_dir, 5)
    together = published.score(pixels)
    for order in ([4, 3, 2, 1, 0], [3, 3, 0], [1]):
        assert differing(pick(together, order), published.score(pixels[order])) == []
    assert differing(pick(together, [2, 3]), Scorer(published.bundle).score(pixels[2:4])) == []


def test_strided_pixels_score_the_same(scorer: Scorer) -> None:
    pixels = frames(2)
    strided = np.asfortranarray(pixels)
    assert differing(scorer.score(pixels), scorer.score(strided)) == []


def test_compute_batch_and_threads_agree_within_limits(published: Scorer, shared_dir: Path) -> None:
    pixels = films(shared_dir, 2)
    reference = published.score(pixels)
    for options in ({"compute_batch": 2}, {"threads": 2}):
        other = Scorer(published.bundle, **options)  # type: ignore[arg-type]
        scores = other.score(pixels)
        assert np.abs(scores.p_covid - reference.p_covid).max() < 1e-5
        assert differing(pick(scores, [1]), other.score(pixels[[1]])) == []
    # Another scorer's thread number is no lasting change: each sets its own again.
    assert differing(reference, published.score(pixels)) == []
    assert torch.get_num_threads() == published.threads == 1


def with_head_bias(bundle: Bundle, lung: float, other: float) -> Bundle:
    """The segmenter replaced by one that says the same of every pixel."""
    state = bundle.segmenters["seeded"]
    head = {
        "head.weight": torch.zeros_like(state["head.weight"]),
        "head.bias": torch.tensor([lung, other]),
    }
    return Bundle.build(segmenters={"seeded": {**state, **head}}, paths=bundle.paths, meta=bundle.meta)


def assert_unscored(scores: Scores, index: int) -> None:
    assert not scores.has_lungs[index]
    for name in SCORE_NAMES:
        assert np.isnan(getattr(scores, name)[index]).all(), name


def test_no_lungs_means_no_score(bundle: Bundle) -> None:
    scores = Scorer(with_head_bias(bundle, 0.0, 3.0)).score(frames(2))  # probability 0.047 everywhere
    for index in range(2):
        assert_unscored(scores, index)
    assert np.array_equal(scores.lung_fraction, np.zeros(2, np.float32))
    assert not scores.lung_mask.any()


def test_gated_frames_have_no_lungs_and_leave_others_alone(scorer: Scorer) -> None:
    black, white = np.zeros((1, 300, 340), np.uint8), np.full((1, 300, 340), 255, np.uint8)
    scores = scorer.score(np.concatenate((frames(1), black, white)))
    assert_unscored(scores, 1)
    assert_unscored(scores, 2)
    assert scores.lung_fraction[1] > 0.5  # Module 1 sees lungs; the tissue gate removes them
    assert differing(pick(scores, [0]), scorer.score(frames(1))) == []


def test_lungs_too_thin_for_the_paths_count_as_none(bundle: Bundle) -> None:
    # Single pixels of tissue: the full-resolution mask has some, no 4 x 4 mean reaches the threshold.
    pixels = np.zeros((1, 300, 340), np.uint8)
    pixels[0, ::4, ::4] = 128
    scores = Scorer(with_head_bias(bundle, 1.0, 0.0)).score(pixels)
    assert scores.lung_mask.sum() == 75 * 85
    assert_unscored(scores, 0)


def test_more_classes_and_fewer_paths(bundle: Bundle) -> None:
    meta = dataclasses.replace(bundle.meta, classes=("Normal", "Other", "Covid+"), paths=2)
    paths = [NetPath(classes=3).initialise(seed).state_dict() for seed in (1, 2)]
    scorer = Scorer(Bundle.build(segmenters=bundle.segmenters, paths=paths, meta=meta))
    scores, inner = scorer.score(frames(1)), scorer.forward(frames(1))
    assert scores.path_logits.shape == (1, 2)
    assert np.array_equal(scores.p_covid, scores.class_probs[:, 2])
    p = scores.p_covid.astype(np.float64)
    assert np.allclose(scores.logit, np.log(p / (1 - p)), atol=1e-4)
    maps = inner.ensemble_map.numpy()
    assert np.allclose(scores.evidence_map, maps[:, 2] - maps[:, :2].mean(axis=1), atol=1e-6)


def test_an_extreme_logit_survives_where_the_probability_saturates(bundle: Bundle) -> None:
    loud = [
        {**state, "block_c.shortcut_norm.weight": state["block_c.shortcut_norm.weight"] * 500}
        for state in bundle.paths
    ]
    scores = Scorer(Bundle.build(segmenters=bundle.segmenters, paths=loud, meta=bundle.meta)).score(frames(1))
    assert np.isfinite(scores.logit).all()
    assert abs(scores.logit[0]) > 20


def test_both_mask_styles_of_a_bundle_score(bundle: Bundle) -> None:
    broad, narrow = bundle.segmenters["seeded"], dict(bundle.segmenters["seeded"])
    narrow["head.weight"] = narrow["head.weight"] * 20  # the same ripple, but far from flat
    meta = dataclasses.replace(bundle.meta, mask_style="v7", mask_styles=("v7", "jms"))
    both = Bundle.build(segmenters={"v7": broad, "jms": narrow}, paths=bundle.paths, meta=meta)
    own, other = Scorer(both).score(frames(1)), Scorer(both, mask_style="jms").score(frames(1))
    assert own.has_lungs.all()
    assert other.has_lungs.all()
    assert own.lung_fraction != other.lung_fraction
    assert own.p_covid != other.p_covid
    assert differing(own, Scorer(both, mask_style="v7").score(frames(1))) == []


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"dtype": "float64"}, "not offered; use float32"),
    ({"device": "abacus"}, "no torch device"),
    ({"device": "meta"}, "not supported"),
    ({"variant": "loud"}, "variant=loud"),
    ({"compute_batch": 0}, "compute_batch=0"),
    ({"threads": -1}, "threads=-1"),
    ({"mask_style": "jms"}, "mask_style=jms"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_in_words(bundle: Bundle, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scorer(bundle, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no GPU"):
        Scorer(bundle, device="cuda")


BAD_PIXELS: list[tuple[Any, str]] = [
    (np.zeros((1, 300, 340), np.float32), "float32"),
    (np.zeros((300, 340), np.uint8), r"\[300, 340\]"),
    (np.zeros((1, 340, 300), np.uint8), r"\[1, 340, 300\]"),
    (torch.zeros(1, 300, 340, dtype=torch.uint8), "NumPy"),
    ([1, 2], "list"),
]


@pytest.mark.parametrize(("pixels", "message"), BAD_PIXELS)
def test_bad_pixels_are_refused_in_words(scorer: Scorer, pixels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        scorer.score(pixels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_agrees_with_cpu_and_with_itself(published: Scorer, shared_dir: Path) -> None:
    pixels = films(shared_dir, 7)
    gpu = Scorer(published.bundle, device="cuda", compute_batch=4)
    together = gpu.score(pixels)
    assert np.abs(together.p_covid - published.score(pixels).p_covid).max() < 1e-5
    for order in ([6, 5, 4, 3, 2, 1, 0], [3, 3, 0], [5]):
        assert differing(pick(together, order), gpu.score(pixels[order])) == []


class _Small(torch.nn.Module):
    """The real network on a device that holds ``room`` images at a time."""

    def __init__(self, network: torch.nn.Module, room: int) -> None:
        super().__init__()
        self.network, self.room, self.sizes = network, room, []

    def forward(self, batch: torch.Tensor) -> Any:
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            self.scratch().padded("made", (len(batch), 1, 1, 1), 1, batch)
            raise torch.OutOfMemoryError("CUDA out of memory (made)")
        return self.network(batch)

    def scratch(self) -> Scratch:
        return next(module.scratch for module in self.modules() if isinstance(module, FoldedBranch))


def on_a_device_with_room_for(bundle: Bundle, room: int, micro_batch: int) -> tuple[Scorer, _Small]:
    scorer = Scorer(bundle, fused=False)  # as on a GPU
    scorer.micro_batch = micro_batch  # a CPU would take one by one
    scorer._network = small = _Small(scorer._network, room)  # type: ignore[assignment]
    return scorer, small


def test_a_device_that_runs_out_of_memory_gets_smaller_batches(scorer: Scorer, bundle: Bundle) -> None:
    pixels = frames(5)
    short, network = on_a_device_with_room_for(bundle, room=2, micro_batch=8)
    scores, undisturbed = short.score(pixels), scorer.score(pixels)
    assert network.sizes == [8, 4, 2, 2, 2]  # the last one filled up
    assert (short.micro_batch, short.halvings) == (2, 2)
    assert {len(buffer) for buffer in network.scratch()._buffers.values()} == {
        2
    }  # nothing of the larger ones is held
    for name in SCORE_NAMES:
        np.testing.assert_allclose(getattr(scores, name), getattr(undisturbed, name), rtol=0, atol=1e-5)
    short.score(pixels[:1])
    assert network.sizes[5:] == [2]  # a size that did not fit is not tried again
    assert short.halvings == 2


def test_no_memory_for_even_one_image_is_one_sentence(bundle: Bundle) -> None:
    short, network = on_a_device_with_room_for(bundle, room=0, micro_batch=3)
    with pytest.raises(RunFailed, match="no memory for even one image"):
        short.score(frames(1))
    assert network.sizes == [3, 1]


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
@pytest.mark.parametrize("while_recording", [False, True])
def test_every_librarys_words_for_a_full_memory_are_known(words: str, while_recording: bool) -> None:
    error = RuntimeError(words)
    if while_recording:  # its end fails, too
        later = RuntimeError("operation failed due to a previous error during capture")
        later.__context__, error = error, later
    assert _out_of_memory(error)
    assert not _out_of_memory(RuntimeError("out of resource: shared memory"))


def test_other_errors_of_the_device_are_not_taken_for_a_full_memory(bundle: Bundle) -> None:
    short, _ = on_a_device_with_room_for(bundle, room=8, micro_batch=2)
    short._network = lambda batch: torch.zeros(2) @ torch.zeros(3)  # type: ignore[assignment,misc]
    with pytest.raises(RuntimeError, match="size"):
        short.score(frames(1))
    assert short.halvings == 0


class _OnHost:
    """What ``Replay`` promises, on a CPU: batches are run in the order of their upload, two wait at most."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.batches, self.most = network, [], 0

    @property
    def waiting(self) -> int:
        return len(self.batches)

    def upload(self, pixels_BHW: np.ndarray) -> None:
        self.batches.append(torch.from_numpy(pixels_BHW.copy()))
        self.most = max(self.most, self.waiting)

    def run(self) -> Any:
        return self.network(self.batches.pop(0))

    def forget(self) -> None:
        self.batches.clear()


def test_a_recorded_network_is_fed_one_batch_ahead(scorer: Scorer, bundle: Bundle) -> None:
    recorded = Scorer(bundle)
    recorded._replay = replay = _OnHost(recorded._network)  # type: ignore[assignment]
    pixels = frames(5)
    for size in (5, 1, 4):
        scores, expected = recorded.score(pixels[:size]), scorer.score(pixels[:size])
        assert differing(scores, expected) == []
        assert replay.waiting == 0
    assert replay.most == 1


def test_a_batch_that_waited_when_something_broke_is_not_scored_later(scorer: Scorer, bundle: Bundle) -> None:
    recorded = Scorer(bundle)
    recorded._replay = replay = _OnHost(recorded._network)  # type: ignore[assignment]
    replay.upload(frames(3)[2:])
    assert differing(recorded.score(frames(1)), scorer.score(frames(1))) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_recording_changes_no_bit(published: Scorer, shared_dir: Path) -> None:
    pixels = films(shared_dir, 7)
    recorded, plain = (Scorer(published.bundle, device="cuda", compute_batch=3) for _ in range(2))
    plain._records = False
    for _ in range(2):
        assert differing(recorded.score(pixels), plain.score(pixels)) == []
    assert recorded._replay is not None
    assert recorded._replay.waiting == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_on_a_gpu_are_near(published: Scorer, shared_dir: Path, dtype: str) -> None:
    pixels = films(shared_dir, 7)
    near = Scorer(published.bundle, device="cuda", dtype=dtype).score(pixels)
    assert np.abs(near.p_covid - published.score(pixels).p_covid).max() < 5e-3


@pytest.mark.parametrize(
    ("dtype", "message"), [("float16", "for the Triton kernels of GPUs"), ("int8", "not offered")]
)
def test_a_dtype_that_a_device_cannot_serve_is_refused(bundle: Bundle, dtype: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scorer(bundle, dtype=dtype)


def test_what_no_row_needs_can_be_left_out(scorer: Scorer, bundle: Bundle) -> None:
    lean, whole = Scorer(bundle, full_maps=False).score(frames(2)), scorer.score(frames(2))
    left_out = ["lung_probability", "evidence_map", "lung_mask"]
    assert [getattr(lean, name).shape for name in left_out] == [(2, 0, 0)] * 3
    assert differing(lean, whole) == left_out
