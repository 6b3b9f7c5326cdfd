"""From the cost of one image to the rate of a run: decoders, scorers, or the cores that all of them share."""

from __future__ import annotations

from dataclasses import dataclass

from cxr_ray.pipeline.resources import CPU, Resources

#: CPU seconds of Ray, of copying and of writing for each image (measured: 0.8 to 1.2 ms,
#: bench/results/scale.md; the upper end).
REST_SECONDS = 0.0012


@dataclass(frozen=True, kw_only=True)
class ExpectedRate:
    """Images per second that each part of a run could do at most.

    Attributes:
        decode: all decode tasks.
        score: all scorers; None without.
        cores: all cores, if they did nothing but the CPU work of the run.
    """

    decode: float
    score: float | None
    cores: float

    @property
    def limits(self) -> dict[str, float]:
        """By what the limit is."""
        found = {"decoding": self.decode, "scoring": self.score, "the number of cores": self.cores}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def overall(self) -> float:
        """Of the run: the least of them."""
        return min(self.limits.values())

    @property
    def decided_by(self) -> str:
        """What the least of them is."""
        return min(self.limits, key=self.limits.__getitem__)


def expected_rate(
    resources: Resources, *, decode_wall: float, decode_cpu: float, score: float | None
) -> ExpectedRate:
    """Expect of ``resources`` what one image was measured to take.

    Args:
        decode_wall, decode_cpu: seconds to read and decode one image.
        score: images per second of one scorer, others at work beside it; counted in all images, also those that
            never reach it. None without scorer.
    """
    scorers = None if score is None else resources.actors * score
    core_seconds = decode_cpu + REST_SECONDS
    if score is not None and resources.device == CPU:
        core_seconds += 1 / score
    return ExpectedRate(
        decode=resources.decode_tasks / max(decode_wall, 1e-9),
        score=scorers,
        cores=resources.cores / core_seconds,
    )
