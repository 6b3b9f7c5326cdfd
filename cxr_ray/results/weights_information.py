"""What ``cxr-ray info`` tells of the bundled weights: read from ``bundle.json`` alone, so that it costs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

BUNDLE: Final = Path(__file__).parents[1] / "weights" / "default" / "bundle.json"

_FACTS: Final = (
    "name",
    "trained",
    "trained_on",
    "classes",
    "positive_class",
    "paths",
    "mask_style",
    "mask_styles",
    "lung_gate",
    "calibration",
    "default_threshold",
    "thresholds",
    "metrics",
    "licence_basis",
)
_MORE: Final = "docs/model_card.md says how they were obtained, and what the weights must not be used for"
_WIDEST: Final = 160
_NONE: Final = "  none bundled; jobs take weights=URL of a bundle, or weights=seeded for trials"


def bundled_weights() -> dict[str, Any] | None:
    """The facts of the bundled ``bundle.json``; None where no weights are bundled."""
    try:
        record = json.loads(BUNDLE.read_text(encoding="utf-8"))
        return {name: record[name] for name in _FACTS if name in record}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        return {"error": "bundle.json is damaged; install cxr_ray again"}


def weights_lines(facts: dict[str, Any] | None) -> list[str]:
    """The same for people, one line a fact; intervals are those of ``bundle.json`` (95 %)."""
    if facts is None:
        return ["Weights", _NONE]
    lines = [f"  {name:<24}{value}" for name, value in _plain_facts(facts)]
    if facts.get("metrics"):
        lines += ["  measured (95 % interval)", *(f"    {line}" for line in _measured(facts["metrics"]))]
        lines.append(f"  {_MORE}")
    return ["Weights", *lines]


def _plain_facts(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if name in ("metrics", "default_threshold") or value in (None, {}, []):
            continue
        if name == "calibration":
            yield name, f"{value.get('method')}, valid at a prevalence of {value.get('prevalence'):.3g}"
        elif name == "thresholds":
            for threshold, reached in value.items():
                chosen = " (default)" if threshold == facts.get("default_threshold") else ""
                figures = ", ".join(
                    f"{figure} {_figure(reached[figure])}" for figure in ("sensitivity", "specificity")
                )
                yield f"threshold {threshold}", f"p_covid {reached['p_covid']:.3g}{chosen}: {figures}"
        elif isinstance(value, list):
            yield name, ", ".join(str(entry) for entry in value)
        else:
            yield name, _one_line(str(value))


def _measured(metrics: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested figures flattened: ``lung_dice.montgomery  0.966 (0.961 to 0.97)``."""
    for name, value in metrics.items():
        if isinstance(value, dict) and "value" not in value:
            yield from _measured(value, f"{prefix}{name}.")
        else:
            yield f"{prefix + name:<39} {_figure(value)}"


def _figure(value: Any) -> str:
    """A number, or ``value (low to high)`` from a triple or an object with these names."""
    if isinstance(value, dict):
        value = [value.get(part) for part in ("value", "low", "high")]
    if isinstance(value, list) and len(value) == 3 and all(isinstance(part, int | float) for part in value):
        return f"{value[0]:.3g} ({value[1]:.3g} to {value[2]:.3g})"
    if isinstance(value, list) and value and value[1:] == [None, None]:
        value = value[0]
    return f"{value:.4g}" if isinstance(value, float) else _one_line(str(value))


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 4]} ..."
