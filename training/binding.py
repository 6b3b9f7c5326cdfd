"""``config.json``: an output of training belongs to the settings that decide its weights."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cxr_ray.errors import OutputError, TrainingDataError
from cxr_ray.pipeline.publish import Publisher
from training.options import TrainOptions, recorded, train_options
from training.segmenters import load_segmenter

CONFIG = "config.json"
SEGMENTER = "segmenter_sha256"
"""Classification: hash of the segmenter whose masks the paths were trained with."""
WORKERS = "workers"
"""Processes that shared each batch; batch norm taken by each for itself depends on it."""
_PACKAGES = ("cxr_ray", "torch", "numpy", "scipy", "kymatio", "opencv-python-headless", "scikit-learn", "ray")


def bind(options: TrainOptions, output: Publisher, *, write: bool) -> None:
    """Refuse an OUTPUT that was begun with something else; with ``write``, tie a new one to these options.

    Raises:
        OutputError: begun with other settings; the message names them.
    """
    now = {"settings": json.loads(json.dumps(recorded(options))), WORKERS: options.execution.workers}
    if options.task == "classification":
        recipe = options.recipe.classification
        now[SEGMENTER] = load_segmenter(str(options.segmentation), recipe.mask_style, options.output_options)[
            1
        ]
    data = output.read(CONFIG)
    if data is None:
        if write:
            facts = {**now, "packages": _versions(), "python": platform.python_version()}
            output.replace(CONFIG, json.dumps(facts, indent=1).encode())
        return
    before = json.loads(data)
    odd = sorted(_differences(_completed(before["settings"]), now["settings"]))
    if not odd and before.get(SEGMENTER) != now.get(SEGMENTER):
        odd = ["the weights at segmentation"]
    if not odd and options.recipe.loop.batch_norm == "local" and before.get(WORKERS, 1) != now[WORKERS]:
        odd = ["execution.workers, which batch_norm=local makes part of the recipe"]
    if odd:
        raise OutputError(
            f"this output was begun with other settings ({', '.join(odd[:5])}); give a new output, or the settings it "
            f"was begun with (in its {CONFIG})"
        )


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings with the defaults of options that came later."""
    completed: dict[str, Any] = json.loads(json.dumps(recorded(train_options({**settings, "output": "-"}))))
    return completed


def read_config(output: Publisher) -> dict[str, Any]:
    """``config.json`` of a training output. Raises TrainingDataError where there is none."""
    data = output.read(CONFIG)
    if data is None:
        raise TrainingDataError(f"{output.storage.url} is no training output: it has no {CONFIG}")
    found: dict[str, Any] = json.loads(data)
    return found


def _differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = before.keys() | now.keys()
        return [
            odd for name in names for odd in _differences(before.get(name), now.get(name), f"{prefix}{name}.")
        ]
    return [] if before == now else [prefix.rstrip(".")]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
