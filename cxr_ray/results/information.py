"""What ``cxr-ray info`` tells: versions, devices, bundled weights, readable formats.

Nothing heavy is imported (no torch, no Ray), so that it answers at once, even where torch is broken.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from cxr_ray.nets.fused.library import built
from cxr_ray.results.weights_information import bundled_weights, weights_lines

PACKAGES: Final = (
    "torch",
    "ray",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pydicom",
    "kymatio",
    "scipy",
    "safetensors",
    "pyarrow",
    "fsspec",
    "s3fs",
    "duckdb",
    "matplotlib",
    "hydra-core",
    "h5py",
)
_ALWAYS: Final = (
    "PNG",
    "JPEG",
    "TIFF",
    "WebP",
    "BMP",
    "DICOM uncompressed, deflated, RLE and 8-bit JPEG",
)
# What is read if a module is there; all come with the same extra.
_DECODERS: Final = {
    "DICOM JPEG lossless and 12-bit": "gdcm",
    "DICOM JPEG-LS": "jpeg_ls",
    "DICOM JPEG 2000": "openjpeg",
}
_NVIDIA: Final = Path("/proc/driver/nvidia/gpus")


def information() -> dict[str, Any]:
    """Everything as one JSON-ready mapping: ``versions``, ``devices``, ``weights``, ``formats``."""
    return {
        "versions": _versions(),
        "devices": {"cpu": _processor(), "cpus": _cpus(), "gpus": _gpus(), "compiled_kernels": built()},
        "weights": bundled_weights(),
        "formats": {
            "always": list(_ALWAYS),
            "optional": {
                name: "yes" if find_spec(module) else "no: pip install 'cxr_ray[dicom]'"
                for name, module in _DECODERS.items()
            },
        },
        "notice": "research software, not a medical device",
    }


def information_lines(facts: dict[str, Any]) -> list[str]:
    """The same for people."""
    devices, weights = facts["devices"], facts["weights"]
    lines = ["Versions"]
    lines += [f"  {name:<24}{version or 'not installed'}" for name, version in facts["versions"].items()]
    lines += ["Devices", f"  {devices['cpus']} CPUs ({devices['cpu']})"]
    lines += [f"  GPU {number}: {name}" for number, name in enumerate(devices["gpus"])] or ["  no NVIDIA GPU"]
    kernels = ", ".join(devices["compiled_kernels"])
    lines.append(
        f"  compiled kernels: {kernels or 'none, so scoring on CPUs is slower: install with a C++ compiler'}"
    )
    lines += weights_lines(weights)
    lines += ["Formats", f"  {', '.join(facts['formats']['always'])}"]
    lines += [f"  {name}: {state}" for name, state in facts["formats"]["optional"].items()]
    return [*lines, facts["notice"]]


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"cxr_ray": _version("cxr_ray"), "python": platform.python_version()}
    return found | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpus() -> int:
    """CPUs that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Model names; from the driver's files where there are any, else from nvidia-smi."""
    models = []
    for file in sorted(_NVIDIA.glob("*/information")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                models.append(line.split(":", 1)[1].strip())
    if models:
        return models
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # no driver, or one that does not answer
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
