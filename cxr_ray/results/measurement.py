"""``cxr-ray info --measure``: how fast this machine would score, from a few seconds of work."""

from __future__ import annotations

import time
from typing import Any, Final

from cxr_ray.decode import decode
from cxr_ray.pipeline.expected_rate import expected_rate
from cxr_ray.pipeline.resources import CUDA, local_gpus, share
from cxr_ray.pipeline.scorer_process import SECONDS, BundleScorer, scoring_rate
from cxr_ray.preprocess import preprocess
from cxr_ray.weights import load_bundle

_DECODE_SECONDS: Final = 1.0


def measured(weights: str, film: bytes, cpus: int) -> dict[str, Any]:
    """Rates of scorers and decoders here, and of a run over 5-megapixel JPEG films on a local disk.

    Args:
        weights: bundle, as for ``load_bundle``.
        film: encoded, as typical for an archive; ``five_megapixel_jpeg``.
        cpus: that this process may use.

    Raises:
        BundleError: no such bundle.
        MeasurementFailed: the scorers did not start.
    """
    load_bundle(weights)  # refuses here, in words, what every scorer would fail at
    resources = share(cpus=cpus, gpus=local_gpus(), local=True, scoring=True, actors=None, decode_tasks=None)
    together = 1 if resources.device == CUDA else resources.actors
    one = scoring_rate(BundleScorer(weights=weights, device=resources.device), together) / together
    decode_seconds = _decode_seconds(film)
    rates = expected_rate(resources, decode_wall=decode_seconds, decode_cpu=decode_seconds, score=one)
    return {
        "device": resources.device,
        "scorers": resources.actors,
        "score_images_per_second": _rounded(one * resources.actors),
        "decode_milliseconds": _rounded(1000 * decode_seconds),
        "expected_images_per_second": _rounded(rates.overall),
        "hours_per_million_images": _rounded(1e6 / rates.overall / 3600),
        "decided_by": rates.decided_by,
        "seconds_measured": SECONDS,
    }


def measured_lines(facts: dict[str, Any]) -> list[str]:
    """The same for people."""
    scorers = "1 scorer" if facts["scorers"] == 1 else f"{facts['scorers']} scorers"
    return [
        "Speed",
        f"  {scorers} on {facts['device']}: {facts['score_images_per_second']:,g} images/s",
        f"  decoding a 5-megapixel JPEG: {facts['decode_milliseconds']:g} ms of a core",
        f"  a run over such films: about {facts['expected_images_per_second']:,g} images/s, "
        f"{facts['hours_per_million_images']:,g} hours for a million ({facts['decided_by']} decides)",
        f"  measured for {facts['seconds_measured']:g} seconds on this machine as busy as it is now; for an archive "
        "of yours use dry_run=true",
    ]


def _decode_seconds(content: bytes) -> float:
    """Wall seconds from the bytes of a film to its frame, one after another."""
    preprocess(decode(content).pixels)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < _DECODE_SECONDS:
        preprocess(decode(content).pixels)
        done += 1
    return (time.perf_counter() - start) / done


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
