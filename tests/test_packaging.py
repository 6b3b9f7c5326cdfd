"""Pins and Makefile: what a fresh machine installs, and what ``make score`` hands on."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cxr_ray.weights.files import FILES

ROOT = Path(__file__).parents[1]


def pins() -> dict[str, str]:
    """Name -> version of constraints.txt, which must hold nothing but comments and exact pins."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if text:
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", text)
            assert match, f"not a plain pin (no URL, path or local tag): {line}"
            found[canonicalize_name(match[1])] = match[2]
    return found


def test_constraints_pin_everything_that_dev_brings_in() -> None:
    pinned, missing = pins(), set()
    todo, seen = [("cxr_ray", frozenset({"dev"}))], set()
    while todo:
        item = todo.pop()
        if item in seen:
            continue
        seen.add(item)
        name, extras = item
        for text in metadata.requires(name) or []:
            need = Requirement(text)
            environments = [{"extra": extra} for extra in extras | {""}]
            if need.marker and not any(need.marker.evaluate(environment) for environment in environments):
                continue
            other = canonicalize_name(need.name)
            # torch pins the packages of its CUDA build itself.
            if other.startswith(("nvidia-", "cuda-")):
                continue
            if other != "cxr-ray" and other not in pinned:
                missing.add(other)
            todo.append((other, frozenset(need.extras)))
    assert len(seen) > 80
    assert not missing, f"constraints.txt lacks {sorted(missing)}"


def test_a_wheel_would_contain_the_bundled_weights() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["cxr_ray"]
    for name in FILES:
        assert any(fnmatch(f"weights/default/{name}", pattern) for pattern in patterns), f"left out: {name}"
    # Git, the image and a job's upload must not leave them out either.
    paths = [f"cxr_ray/weights/default/{name}" for name in FILES]
    for rules in (".gitignore", ".rayignore", ".dockerignore"):
        command = ["git", "-c", f"core.excludesFile={ROOT / rules}", "check-ignore", "--no-index", *paths]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "", rules


def make_score(tmp_path: Path, body: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``make score`` with ``body`` in place of python and cxr-ray; ``$0`` is the command's name."""
    tools = tmp_path / "venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("python", "cxr-ray"):
        tool = tools / name
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(0o755)
    # A stamp from the future: nothing is installed.
    stamp = tmp_path / "venv" / ".installed"
    stamp.write_text("")
    os.utime(stamp, (2**32, 2**32))
    command = ["make", "score", f"VENV={tmp_path / 'venv'}", *variables]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_make_score_hands_on_odd_names_unharmed(tmp_path: Path) -> None:
    """Spaces, quotes, commas and equals signs reach the job as Hydra strings, and cxr-ray as they are."""
    log, output = tmp_path / "log", tmp_path / "out dir" / "x y"
    output.mkdir(parents=True)
    (output / "run.json").write_text("{}")
    body = f'printf "%s\\n" "$(basename "$0")" "$@" >> "{log}"'
    archive = "ARCHIVE=/data/it's, a=b"
    done = make_score(
        tmp_path, body, archive, f"OUTPUT={output}", "WEIGHTS=seeded", "OPTIONS=limit=3 actors=1"
    )
    assert done.returncode == 0, done.stderr
    words = log.read_text().splitlines()
    assert words[:2] == ["python", "jobs/score.py"]
    parsed = OverridesParser.create().parse_overrides(words[2:7])
    assert {option.key_or_group: option.value() for option in parsed} == {
        "archive": "/data/it's, a=b",
        "output": str(output),
        "weights": "seeded",
        "limit": 3,
        "actors": 1,
    }
    assert words[7:] == ["cxr-ray", "render", str(output), "--top", "4", "--out", f"{output}/pictures"]
    assert "mean nothing" in done.stdout
    assert "SYNTHETIC" not in done.stdout, "the user's own archive is not synthetic"


def test_make_score_stops_where_the_job_fails(tmp_path: Path) -> None:
    done = make_score(tmp_path, "exit 2", "ARCHIVE=nowhere", f"OUTPUT={tmp_path / 'out'}")
    assert done.returncode != 0
    assert "Table:" not in done.stdout


def test_make_score_never_picks_untrained_weights_for_the_users_films(tmp_path: Path) -> None:
    log = tmp_path / "log"
    make_score(tmp_path, f'printf "%s\\n" "$@" >> "{log}"', "ARCHIVE=films", f"OUTPUT={tmp_path / 'out'}")
    assert "weights='default'" in log.read_text().splitlines()
