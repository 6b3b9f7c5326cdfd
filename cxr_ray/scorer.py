"""Preprocessed frames in, scores and maps out: the network of one bundle on one device (DESIGN sections 1, 5).

Promise 4 rests on this module: the network always sees the same number of images per call and ``threads``
threads, so an image's values depend neither on its neighbours nor on its place nor on the call. On a GPU that
number is ``compute_batch`` (the last batch is filled up with a constant image); on a CPU it is one. Where a GPU
runs out of memory the number is halved, and ``micro_batch`` and ``halvings`` say so.
"""

from __future__ import annotations

import dataclasses
import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_ray.errors import RunFailed, UsageError
from cxr_ray.nets.ensemble import Ensemble, class_logits, log_odds
from cxr_ray.nets.evidence import evidence, grey_levels
from cxr_ray.nets.folding import fold_blocks, free_scratch
from cxr_ray.nets.fused.library import find_library
from cxr_ray.nets.fused.network import fuse
from cxr_ray.nets.gate import packed_bits, pool_mask
from cxr_ray.nets.gpu.network import accelerate, first_line, has_triton
from cxr_ray.nets.gpu.replay import Replay, recorded, to_host
from cxr_ray.nets.network import Activations, Network
from cxr_ray.nets.path import Variant
from cxr_ray.nets.segmenter import Segmenter
from cxr_ray.weights.bundle import Bundle

DEFAULT_COMPUTE_BATCH = {"cpu": 1, "cuda": 64}
"""Images per network call and device kind. On a CPU with one thread, 1 was the cheapest of 1, 2, 4 and 8 per image;
the GPU figure is a guess that nobody has measured yet."""
DEFAULT_THREADS = 1
"""Torch threads per process: more processes use a machine better than more threads."""
STORAGE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Of Module 1's tensors, by dtype. Module 2 and all sums are IEEE float32 in any case."""
DTYPES = tuple(STORAGE)
EXACT = "float32"
"""The only one that keeps parity with the published scores; the others are for GPUs, where memory takes the time."""
VARIANTS: tuple[str, ...] = get_args(Variant)
"""The optional variants of the published code."""
PADDING_GREY = 128
LUNG_PROBABILITY = 0.5
"""Probability above which a pixel counts into ``lung_fraction``."""

_NO_MEMORY = ("ALLOC_FAILED", "ALLOCATION_FAILED", "out of memory")
"""Of cuBLAS and cuFFT, of cuDNN, and of CUDA itself (also where Triton or torch quotes it)."""

_Finished = TypeVar("_Finished")


@dataclass(frozen=True)
class Scores:
    """NumPy arrays with one entry per image.

    Where ``has_lungs`` is False, p_covid, logit, path_logits, p_std and class_probs are NaN, never 0.5.
    """

    p_covid: NDArray[np.float32]
    """[B] probability of the positive class."""
    logit: NDArray[np.float32]
    """[B] its log-odds."""
    path_logits: NDArray[np.float32]
    """[B, K] log-odds of the positive class per path."""
    p_std: NDArray[np.float32]
    """[B] standard deviation (ddof 0) of the path probabilities."""
    class_probs: NDArray[np.float32]
    """[B, C] probability of every class, in the bundle's order."""
    lung_fraction: NDArray[np.float32]
    """[B] share of the frame with lung probability above 0.5, before gate and quantisation."""
    lung_probability: NDArray[np.float32]
    """[B, 300, 340] Module 1, before gate and quantisation; [B, 0, 0] from a scorer that does not keep it."""
    evidence_map: NDArray[np.float32]
    """[B, 75, 85] ensemble map of the positive class minus the mean of the others; [B, 0, 0] likewise."""
    heat_map: NDArray[np.uint8]
    """[B, 75, 85] the evidence map in 8 bits, over its own range."""
    heat_lo: NDArray[np.float32]
    """[B] its value at level 0 of ``heat_map``."""
    heat_hi: NDArray[np.float32]
    """[B] its value at level 255; equal to ``heat_lo`` where the map is constant."""
    lung_mask: NDArray[np.bool_]
    """[B, 300, 340] gated (and quantised) mask above the bundle's threshold; [B, 0, 0] likewise."""
    lung_bits: NDArray[np.uint8]
    """[B, 12750] the mask packed as ``np.packbits`` does."""
    has_lungs: NDArray[np.bool_]
    """[B] False: nothing of the mask is left, at full resolution or in the paths, so there is no score."""


class Scorer:
    """The network of a bundle, ready to score. It keeps scratch memory, so one scorer serves one thread.

    Args:
        bundle: from ``load_bundle``.
        device: torch device, "cpu" or "cuda[:n]".
        dtype: "float32", IEEE arithmetic with TF32 off; on a GPU with triton also "float16" or "bfloat16", in which
            Module 1 keeps its tensors. Scores then differ by up to 5e-3 from the published ones.
        variant: None, or one of the published options "threshold" and "multiply".
        compute_batch: images per network call on a GPU; None takes ``DEFAULT_COMPUTE_BATCH``. A CPU always takes
            them one by one, so there it changes nothing.
        threads: torch threads of this *process* (they are a global setting); None takes ``DEFAULT_THREADS``.
        mask_style: segmenter to use; None takes the one that the paths were trained with, as you should.
        quantise_mask: round the lung probability to 8 bits, as the published flow does.
        fused: on a CPU, use the compiled form of both modules where it was built; on a GPU, Triton kernels where
            triton is installed and they pass a check here and now, and the network recorded as a CUDA graph. They agree
            with torch's within 1e-5.
        full_maps: return lung_probability, evidence_map and lung_mask, 96 % of all bytes. What a row of the score table
            needs, the heat map in 8 bits and the packed mask, is made on the device and returned in any case.

    Attributes:
        engine: ``fused`` or ``triton`` where that form is in use, else ``torch``. Together with the device model it
            bounds bit-for-bit equality.
        micro_batch: images per network call now: ``compute_batch`` on a GPU, less after it ran out of memory (for
            good, since a size that did not fit once would fail again and again); one on a CPU. Values of different
            sizes agree within 1e-5.
        halvings: how often ``micro_batch`` was halved.

    Raises:
        UsageError: an option that this bundle or machine cannot serve.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        variant: Variant | None = None,
        compute_batch: int | None = None,
        threads: int | None = None,
        mask_style: str | None = None,
        quantise_mask: bool = True,
        fused: bool = True,
        full_maps: bool = True,
    ) -> None:
        meta = bundle.meta
        self.bundle = bundle
        self.meta = meta
        self.device = _check_device(device)
        self.variant = _check_variant(variant)
        self.compute_batch = _check_count(
            "compute_batch",
            DEFAULT_COMPUTE_BATCH[self.device.type] if compute_batch is None else compute_batch,
        )
        # On a CPU images go through one by one, whatever compute_batch says: that is fastest, and it makes a result
        # independent of its place (the last elements of a vectorised loop, and matrices at another alignment, round
        # differently, so inside a batch of several images the last bit can depend on the position).
        self.micro_batch = 1 if self.device.type == "cpu" else self.compute_batch
        self.halvings = 0
        self.threads = _check_count("threads", DEFAULT_THREADS if threads is None else threads)
        self.mask_style = meta.mask_style if mask_style is None else mask_style
        self.quantise_mask = quantise_mask
        self.full_maps = full_maps
        check_dtype(dtype, self.device.type if fused else "cpu")
        if self.mask_style not in bundle.segmenters:
            raise UsageError(
                f"mask_style={self.mask_style} is not in this bundle; it has {sorted(bundle.segmenters)}"
            )

        network = network_of(
            bundle, mask_style=self.mask_style, quantise_mask=quantise_mask, variant=self.variant
        )
        library = find_library() if fused and self.device.type == "cpu" else None
        self.engine = "torch"
        if library is not None and meta.columns % library.pixels == 0:
            self.engine = "fused"
            fuse(network, library)
        elif fused and self.device.type == "cuda":
            self.engine = _gpu_engine(network.to(self.device), (meta.rows, meta.columns), dtype)
        fold_blocks(network)
        self._network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._records = fused and self.device.type == "cuda"
        self._replay: Replay | None = None

    def score(self, pixels_BHW: NDArray[np.uint8]) -> Scores:
        """Score equalised uint8 frames ``[B, 300, 340]`` as ``cxr_ray.preprocess.preprocess`` makes them; B may be 0.

        Raises UsageError: another dtype or shape. RunFailed: no memory for even one image.
        """
        chunks = self._run(pixels_BHW, self._to_scores)
        if not chunks:
            # The shapes of nothing: score one filler image and drop it.
            return _take(self.score(self._filler(1)), 0)
        return Scores(
            **{
                f.name: np.concatenate([getattr(c, f.name) for c in chunks])
                for f in dataclasses.fields(Scores)
            }
        )

    def forward(self, pixels_BHW: NDArray[np.uint8]) -> Activations:
        """The same computation, but what the network computed on the way, on the CPU; at least one image."""
        names = [f.name for f in dataclasses.fields(Activations)]
        chunks = self._run(
            pixels_BHW, lambda chunk, size: to_host({name: getattr(chunk, name)[:size] for name in names})
        )
        return Activations(**{name: torch.cat([chunk[name] for chunk in chunks]) for name in names})

    @torch.inference_mode()
    def _run(
        self, pixels_BHW: NDArray[np.uint8], finish: Callable[[Activations, int], _Finished]
    ) -> list[_Finished]:
        """``finish`` of the activations of one compute batch after the other and the number of real images at its
        front. It takes the results off the device, so that an earlier batch holds no memory there."""
        self._check_pixels(pixels_BHW)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        if self._replay is not None:
            self._replay.forget()
        finished: list[_Finished] = []
        start = 0
        while start < len(pixels_BHW):
            size = min(self.micro_batch, len(pixels_BHW) - start)
            try:
                finished.append(finish(self._activations(pixels_BHW, start), size))
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if self.micro_batch == 1:
                    raise RunFailed(
                        f"{self.device} has no memory for even one image; free it of other processes, "
                        "or use a larger one"
                    ) from error
            else:
                start += size
                continue
            # Only here is the error gone, whose trace holds the tensors that did not fit.
            self._halve()
        return finished

    def _activations(self, pixels_BHW: NDArray[np.uint8], start: int) -> Activations:
        """Of the compute batch that begins at image ``start``; valid until the next call."""
        if self._records and self._replay is None:
            self._record()
        if self._replay is None:
            # Not from_numpy, which warns of arrays that may not be written to.
            result: Activations = self._network(torch.tensor(self._batch(pixels_BHW, start)).to(self.device))
            return result
        if not self._replay.waiting:
            self._replay.upload(self._batch(pixels_BHW, start))
        result = self._replay.run()
        if start + self.micro_batch < len(pixels_BHW):
            self._replay.upload(self._batch(pixels_BHW, start + self.micro_batch))
        return result

    def _batch(self, pixels_BHW: NDArray[np.uint8], start: int) -> NDArray[np.uint8]:
        """Images from ``start`` on, filled up; those of the caller where nothing is to fill."""
        chunk = pixels_BHW[start : start + self.micro_batch]
        missing = self.micro_batch - len(chunk)
        return np.concatenate((chunk, self._filler(missing))) if missing else chunk

    def _record(self) -> None:
        """Record the network for the present ``micro_batch``, or never again where it computes something else so."""
        try:
            self._replay, failure = recorded(
                self._network, (self.micro_batch, self.meta.rows, self.meta.columns), self.device
            )
        except RuntimeError as error:
            if _out_of_memory(error):
                raise
            failure = f"{type(error).__name__}: {first_line(error)}"
        if self._replay is None:
            self._records = False
            warnings.warn(
                f"the network is not recorded as a CUDA graph: {failure}", RuntimeWarning, stacklevel=2
            )

    def _halve(self) -> None:
        self.micro_batch = max(1, self.micro_batch // 2)
        self.halvings += 1
        if self.device.type == "cuda":  # a copy to memory that is given back here may be under way
            torch.cuda.synchronize(self.device)
        self._replay = None
        free_scratch(self._network)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _to_scores(self, batch: Activations, size: int) -> Scores:
        """Scores of the first ``size`` images of a compute batch."""
        threshold = self.meta.mask_threshold
        positive = self.meta.positive_index
        lungs = batch.mask > threshold
        has_lungs = lungs.any(dim=2).any(dim=1) & (pool_mask(batch.mask) > threshold).any(dim=2).any(dim=1)
        unscored = ~has_lungs

        logits = class_logits(batch.ensemble_map)
        path_logits = log_odds(class_logits(batch.path_maps), positive)
        class_probs = logits.softmax(dim=-1)
        p_std = path_logits.sigmoid().std(dim=-1, correction=0)
        lung_fraction = (batch.lung_probability > LUNG_PROBABILITY).float().mean(dim=(1, 2))
        evidence_map = evidence(batch.ensemble_map, positive)
        heat_map, heat_lo, heat_hi = grey_levels(evidence_map)
        arrays = {
            "p_covid": class_probs[:, positive].masked_fill(unscored, torch.nan),
            "logit": log_odds(logits, positive).masked_fill(unscored, torch.nan),
            "path_logits": path_logits.masked_fill(unscored[:, None], torch.nan),
            "p_std": p_std.masked_fill(unscored, torch.nan),
            "class_probs": class_probs.masked_fill(unscored[:, None], torch.nan),
            "lung_fraction": lung_fraction,
            "lung_probability": batch.lung_probability,
            "evidence_map": evidence_map,
            "heat_map": heat_map,
            "heat_lo": heat_lo,
            "heat_hi": heat_hi,
            "lung_mask": lungs,
            "lung_bits": packed_bits(lungs),
            "has_lungs": has_lungs,
        }
        if not self.full_maps:
            left_out = ("lung_probability", "evidence_map", "lung_mask")
            arrays |= {name: arrays[name].new_empty(len(lungs), 0, 0) for name in left_out}
        found = to_host({name: array[:size] for name, array in arrays.items()})
        # From a GPU they come in pinned memory, of which there should be little: copied.
        own = np.copy if self.device.type == "cuda" else np.ascontiguousarray
        return Scores(**{name: own(array.numpy()) for name, array in found.items()})

    def _filler(self, count: int) -> NDArray[np.uint8]:
        return np.full((count, self.meta.rows, self.meta.columns), PADDING_GREY, dtype=np.uint8)

    def _check_pixels(self, pixels_BHW: NDArray[np.uint8]) -> None:
        expected = (self.meta.rows, self.meta.columns)
        if not isinstance(pixels_BHW, np.ndarray) or pixels_BHW.dtype != np.uint8:
            found = getattr(pixels_BHW, "dtype", type(pixels_BHW).__name__)
            raise UsageError(
                f"the scorer takes a NumPy array of uint8 from cxr_ray.preprocess, found {found}"
            )
        if pixels_BHW.ndim != 3 or pixels_BHW.shape[1:] != expected:
            raise UsageError(
                f"the scorer takes [B, {expected[0]}, {expected[1]}] frames from cxr_ray.preprocess, "
                f"found {list(pixels_BHW.shape)}"
            )


def network_of(
    bundle: Bundle, *, mask_style: str, quantise_mask: bool = True, variant: Variant | None = None
) -> Network:
    """The network of a bundle as the nets define it, in eval mode on the CPU: the form that all others must equal."""
    meta = bundle.meta
    segmenter = Segmenter()
    segmenter.load_state_dict(dict(bundle.segmenters[mask_style]))
    network = Network(
        segmenter,
        ensemble_of(bundle),
        mean=meta.standardisation_mean,
        std=meta.standardisation_std,
        quantise_mask=quantise_mask,
        variant=variant,
    )
    network.eval().requires_grad_(False)
    return network


def ensemble_of(bundle: Bundle) -> Ensemble:
    """Module 2 of a bundle, as ``network_of`` has it."""
    meta = bundle.meta
    ensemble = Ensemble(
        rows=meta.rows,
        columns=meta.columns,
        paths=meta.paths,
        classes=len(meta.classes),
        mask_threshold=meta.mask_threshold,
        lung_gate=meta.lung_gate,
    )
    for path, state in zip(ensemble.paths, bundle.paths, strict=True):
        path.load_state_dict(dict(state))
    ensemble.eval().requires_grad_(False)
    return ensemble


def check_dtype(dtype: str, device: str) -> None:
    """Raises UsageError where a kind of device, "cpu" or "cuda", cannot serve a dtype."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype={dtype} is not offered; use {', '.join(DTYPES)}")
    if dtype != EXACT and device != "cuda":
        raise UsageError(f"dtype={dtype} is for the Triton kernels of GPUs; use dtype={EXACT} here")


def _gpu_engine(network: Network, frame: tuple[int, int], dtype: str = EXACT) -> str:
    """The form that a network on a GPU will run, which it is given; a warning where it is torch's though triton is
    there. Raises UsageError where torch's would not do."""
    failure = accelerate(network, frame, STORAGE[dtype]) if has_triton() else "triton is not installed"
    if failure is None:
        return "triton"
    if dtype != EXACT:
        raise UsageError(f"dtype={dtype} needs the Triton kernels: {failure}; use dtype={EXACT}")
    if has_triton():
        warnings.warn(f"the network stays with torch's own kernels: {failure}", RuntimeWarning, stacklevel=3)
    return "torch"


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory ran out; its libraries say so in words of their own, and a recording that failed
    for it may raise another error afterwards."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError) or any(words in str(cause) for words in _NO_MEMORY):
            return True
        cause = cause.__context__
    return False


def _take(scores: Scores, size: int) -> Scores:
    return Scores(**{f.name: getattr(scores, f.name)[:size] for f in dataclasses.fields(Scores)})


def _check_device(device: str | torch.device) -> torch.device:
    try:
        checked = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device={device} is no torch device; use cpu or cuda") from error
    if checked.type not in DEFAULT_COMPUTE_BATCH:
        raise UsageError(f"device={device} is not supported; use one of {sorted(DEFAULT_COMPUTE_BATCH)}")
    if checked.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(
                "device=cuda, but torch sees no GPU here; use device=cpu or install a CUDA build of torch"
            )
        if checked.index is not None and checked.index >= torch.cuda.device_count():
            raise UsageError(
                f"device={device}, but the GPUs here end with cuda:{torch.cuda.device_count() - 1}"
            )
        # Process-wide, as torch has it: IEEE float32, and no kernel chosen by a stopwatch.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    return checked


def _check_variant(variant: str | None) -> Variant | None:
    if variant is not None and variant not in VARIANTS:
        raise UsageError(f"variant={variant} is unknown; use one of {list(VARIANTS)} or none")
    return variant  # type: ignore[return-value]


def _check_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}={value} should be a whole number of at least 1")
    return value
