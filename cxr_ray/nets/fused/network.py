"""Put the compiled form of both modules into a network."""

from __future__ import annotations

from cxr_ray.nets.ensemble import Ensemble
from cxr_ray.nets.fused.ensemble import FusedEnsemble
from cxr_ray.nets.fused.library import Library
from cxr_ray.nets.fused.segmenter import FusedSegmenter
from cxr_ray.nets.network import Network
from cxr_ray.nets.segmenter import Segmenter


def fuse(network: Network, library: Library) -> None:
    """Replace segmenter and ensemble in place. ``network`` is in eval mode, on the CPU, and not folded."""
    assert isinstance(network.segmenter, Segmenter)
    assert isinstance(network.ensemble, Ensemble)
    network.segmenter = FusedSegmenter(network.segmenter, library)
    network.ensemble = FusedEnsemble(network.ensemble, library)
