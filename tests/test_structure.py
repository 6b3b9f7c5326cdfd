"""The house rules that a reader relies on: import directions, file sizes, coded errors, upload size."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from cxr_ray import errors

ROOT = Path(__file__).parents[1]

# Each chain runs from left to right; a room imports only from rooms to the left of it (DESIGN section 2).
PIXELS_TO_SCORES = [{"errors"}, {"preprocess", "nets", "calibration"}, {"weights"}, {"scorer"}]
BYTES_TO_SHARDS = [{"errors"}, {"archives", "decode"}, {"shards"}]
AFTER_BOTH = [{"pipeline"}, {"results"}, {"training"}, {"jobs", "cli"}]
# The sample archive draws and writes files; only the command line (and tests) use it.
PHANTOMS = [{"errors"}, {"phantoms"}]

# Third-party packages with a home of their own: package -> the only rooms that may import it.
HOMES = {
    "ray": {"pipeline", "training", "jobs"},
    "ray.data": {"pipeline"},
    "ray.train": {"training"},
    "h5py": {"weights"},
    "duckdb": {"results"},
    "matplotlib": {"results", "training"},
    "pydicom": {"decode", "phantoms"},
    "torch": {"nets", "weights", "scorer", "pipeline", "training"},
}
# nets is pure torch: no file, network or table access.
NO_INPUT_OUTPUT = {
    "fsspec",
    "pyarrow",
    "safetensors",
    "h5py",
    "cv2",
    "pathlib",
    "io",
    "os",
    "tempfile",
    "json",
}

UPLOAD_LIMIT = 20_000_000


def allowed_rooms() -> dict[str, set[str]]:
    """Room -> rooms that it may import, derived from the chains."""
    allowed: dict[str, set[str]] = {}
    for chain in (PIXELS_TO_SCORES, BYTES_TO_SHARDS, PHANTOMS):
        left: set[str] = set()
        for step in chain:
            for room in step:
                allowed[room] = allowed.get(room, set()) | left
            left = left | step
    left = set().union(*PIXELS_TO_SCORES, *BYTES_TO_SHARDS)
    for step in AFTER_BOTH:
        for room in step:
            allowed[room] = set(left)
        left |= step
    allowed["cli"] |= {"phantoms"}
    return allowed


def python_files() -> list[Path]:
    """Every module of the product (not tests, not bench)."""
    files = [path for top in ("cxr_ray", "training", "jobs") for path in sorted((ROOT / top).rglob("*.py"))]
    assert files, "no product code found; is this the checkout?"
    return files


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """Room of a dotted module name; None for third parties and for the package root itself."""
    parts = module.split(".")
    if parts[0] in ("jobs", "training"):
        return parts[0]
    if parts[0] == "cxr_ray" and len(parts) > 1:
        return "cli" if parts[1] == "__main__" else parts[1]
    return None


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of everything imported anywhere in the file, inside functions too."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def breaches(path: Path) -> Iterator[str]:
    """One sentence for each import that points the wrong way."""
    module = module_name(path)
    room = room_of(module)
    where = path.relative_to(ROOT)
    for name, line in imports_of(path):
        target = room_of(name)
        if room is None:
            if target is not None:
                yield f"{where}:{line}: the package root loads lazily, but imports {name}"
            continue
        # `from cxr_ray import __version__` names the package root, which imports nothing.
        if target is not None and target != room and not name.startswith("cxr_ray.__version__"):
            if room not in allowed_rooms():
                yield f"{where}:{line}: {room!r} is no room of this test's chains; add it there"
            elif target not in allowed_rooms()[room]:
                yield f"{where}:{line}: {room} imports {target} ({name}), which does not lie to its left"
        for package, homes in HOMES.items():
            if (name == package or name.startswith(f"{package}.")) and room not in homes:
                yield f"{where}:{line}: {room} imports {name}; only {', '.join(sorted(homes))} may"
        if room == "nets" and name.split(".")[0] in NO_INPUT_OUTPUT:
            yield f"{where}:{line}: nets is pure torch, but imports {name}"


def tracked_files(*options: str) -> list[Path]:
    """Files that git tracks; new files not ignored count too, so that the test speaks before the commit."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *options]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_imports_point_one_way() -> None:
    found = [breach for path in python_files() for breach in breaches(path)]
    assert not found, "\n".join(found)


def test_the_import_check_sees_a_breach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "cxr_ray" / "nets" / "bad.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "import os\ndef f():\n    import ray.data\n    from ..scorer import Scorer\n"
        "    from cxr_ray import weights\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    found = "\n".join(breaches(module))
    assert "nets imports ray.data" in found
    assert "nets imports scorer" in found
    assert "nets imports weights" in found
    assert "pure torch, but imports os" in found


def test_chains_agree_with_the_design() -> None:
    allowed = allowed_rooms()
    assert allowed["preprocess"] == allowed["calibration"] == {"errors"}
    assert allowed["scorer"] == {"errors", "preprocess", "nets", "calibration", "weights"}
    assert allowed["shards"] == {"errors", "archives", "decode"}
    assert "pipeline" in allowed["results"]
    assert "results" not in allowed["pipeline"]
    assert not allowed["cli"] & {"jobs"}


def test_files_stay_short() -> None:
    long = []
    tests = [path for top in ("tests", "bench") for path in sorted((ROOT / top).rglob("*.py"))]
    for path in [*python_files(), *tests]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        limit = 100 if path.is_relative_to(ROOT / "jobs") else 500
        if lines > limit:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines, at most {limit}")
    assert not long, "\n".join(long)


def test_no_machine_paths_in_the_repository() -> None:
    # A path of somebody's machine: absolute, and not part of a longer word, URL or relative path.
    pattern = re.compile(r"(?<![\w.~$}/*-])/(?:work|root|home|Users|mnt|private)/[\w.]")
    found = []
    for path in tracked_files():
        if path == Path(__file__) or path.suffix in {".png", ".npz", ".safetensors", ".dcm", ".jpg"}:
            continue
        for number, line in enumerate(
            path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
        ):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


def error_classes(base: type[errors.CxrRayError] = errors.CxrRayError) -> list[type[errors.CxrRayError]]:
    below = [name for cls in base.__subclasses__() for name in error_classes(cls)]
    return [base, *below] if base.__module__ == "cxr_ray.errors" else below


def test_error_codes_are_unique_and_documented() -> None:
    codes = [cls.code for cls in error_classes()]
    assert len(codes) > 20
    assert sorted(codes) == sorted(set(codes)), "two errors share a code"
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", code) for code in codes)
    page = (ROOT / "docs" / "reference" / "error-codes.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([a-z0-9_]+)` \|", page, flags=re.MULTILINE)
    assert sorted(documented) == sorted(codes), "docs/reference/error-codes.md and cxr_ray/errors.py differ"


def test_every_error_says_what_it_means() -> None:
    silent = [cls.__name__ for cls in error_classes() if not (cls.__doc__ or "").strip()]
    assert not silent


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_loads(path: Path) -> None:
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    assert len(config) > 0


def test_rayjob_names_the_pinned_ray_and_the_right_entry_point() -> None:
    job = OmegaConf.load(ROOT / "conf" / "cluster" / "kuberay.yaml")
    assert job["kind"] == "RayJob"
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in pins
    # The Dockerfile's WORKDIR holds the code.
    folder = re.search(
        r"^WORKDIR (/opt/\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert folder is not None
    assert job["spec"]["entrypoint"].startswith(f"python {folder[1]}/jobs/score.py ")


def test_job_upload_is_small_and_complete() -> None:
    everything = tracked_files()
    ignored = set(tracked_files("--ignored", "--exclude-from=.rayignore"))
    upload = [path for path in everything if path not in ignored]
    size = sum(path.stat().st_size for path in upload)
    assert size < UPLOAD_LIMIT, f"`ray job submit --working-dir .` would send {size / 1e6:.1f} MB"
    names = {str(path.relative_to(ROOT)) for path in upload}
    assert {"cxr_ray/__init__.py", "cxr_ray/errors.py", "pyproject.toml"} <= names
    assert not [path for path in python_files() if path in ignored], "the upload lacks product code"
    assert not [name for name in names if name.startswith(("tests/", "docs/", "bench/"))]
