"""cxr_ray: screen whole archives of chest X-rays with CXR-Net on PyTorch and Ray.

Research software, not a medical device. The public names load lazily, so that ``import cxr_ray``
costs neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Scorer": "cxr_ray.scorer",
    "load_bundle": "cxr_ray.weights",
    "open_scores": "cxr_ray.results",
}

__all__ = ["Scorer", "__version__", "load_bundle", "open_scores"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'cxr_ray' has no attribute {name!r}")
