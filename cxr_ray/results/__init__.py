"""Reading a finished (or still growing) table: SQL, Arrow, pictures, proof. Needs neither torch nor Ray.

The public names load lazily, so that one that needs DuckDB or matplotlib is paid for only where it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "HeatMaps": "cxr_ray.results.heat_maps",
    "compact_output": "cxr_ray.results.compact",
    "decode_heat_map": "cxr_ray.results.heat_maps",
    "decode_lung_mask": "cxr_ray.results.heat_maps",
    "open_scores": "cxr_ray.results.table",
    "rebuild_maps": "cxr_ray.results.heat_maps",
    "render_images": "cxr_ray.results.render",
    "run_query": "cxr_ray.results.query",
    "verify_output": "cxr_ray.results.verify",
}

__all__ = [
    "HeatMaps",
    "compact_output",
    "decode_heat_map",
    "decode_lung_mask",
    "open_scores",
    "rebuild_maps",
    "render_images",
    "run_query",
    "verify_output",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'cxr_ray.results' has no attribute {name!r}")
