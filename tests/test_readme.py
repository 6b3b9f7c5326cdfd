"""README, docs and the files around the code say what is true: commands, options, columns, links."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from omegaconf import OmegaConf

from cxr_ray.pipeline.options import JobOptions, ScoreOptions
from cxr_ray.pipeline.score_table import SCORE_SCHEMA

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every shell line in README and docs."""
    found = []
    for page in PAGES:
        for block in fenced(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    found.append((page.name, words))
    return found


def after(words: list[str], *start: str) -> list[str] | None:
    """Words behind the first occurrence of ``start``, or None."""
    for index in range(len(words)):
        if tuple(words[index : index + len(start)]) == start:
            return words[index + len(start) :]
    return None


def test_readme_is_led_by_the_two_commands() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:22]
    text = "\n".join(first_screen)
    assert "make score" in text
    assert "make test" in text
    assert "docs/images/heat_maps.png" in text
    assert "not a medical device" in text


def test_make_targets_and_variables_exist() -> None:
    used = [(page, words) for page, words in commands() if words[0] == "make"]
    assert used
    for page, words in used:
        for word in words[1:]:
            name = word.split("=")[0]
            pattern = rf"^{re.escape(name)} \?=" if "=" in word else rf"^{re.escape(name)}:"
            assert re.search(pattern, MAKEFILE, re.MULTILINE), f"{page}: the Makefile has no {name}"


def test_job_commands_exist_and_their_options_too() -> None:
    checked = 0
    for page, words in commands():
        for job in ("score", "ingest"):
            options = after(words, "python", f"jobs/{job}.py")
            if options is None:
                continue
            assert (ROOT / "jobs" / f"{job}.py").is_file()
            known = {
                field.name for field in dataclasses.fields(ScoreOptions if job == "score" else JobOptions)
            }
            for option in options:
                name = option.split("=")[0].split(".")[0]
                assert name in known, f"{page}: jobs/{job}.py has no option {name!r}"
                checked += 1
    assert checked > 20


def test_documented_nested_options_are_accepted(tmp_path: Path) -> None:
    """``archive_options.anon=true`` and the like need no ``+``: the job gets as far as the missing archive."""
    nested = set()
    for _, words in commands():
        options = after(words, "python", "jobs/score.py") or []
        nested |= {option for option in options if "." in option.split("=")[0] or "={" in option}
    assert len(nested) >= 4
    options = [f"archive={tmp_path / 'films.csv'}", f"output={tmp_path / 'out'}", "weights=seeded"]
    command = [sys.executable, "jobs/score.py", *options, *sorted(nested)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "override" not in done.stderr, done.stderr


def test_pytest_selections_select_something() -> None:
    code = "\n".join(
        f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in (ROOT / "tests").rglob("*.py")
    )
    for page, words in commands():
        for keyword in (after(words, "-k") or [])[:1]:
            pattern = rf"^(test_\w*{keyword}\w*\.py|\s*def test_\w*{keyword})"
            assert re.search(pattern, code, re.MULTILINE), f"{page}: no test is called {keyword}"


def test_cli_commands_exist() -> None:
    used = sorted({words[1] for _, words in commands() if words[0] == "cxr-ray"})
    assert {"sample", "query", "render", "verify", "weights"} <= set(used)
    command = [sys.executable, "-m", "cxr_ray.cli", "--help"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    for name in used:
        assert re.search(rf"\b{name}\b", listed), f"cxr-ray has no command {name!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path = target.split("#")[0]
        if path and "://" not in path:
            assert (page.parent / path).exists(), f"{page.name}: {target} does not exist"


def test_documented_sql_runs_on_the_score_schema() -> None:
    statements = [sql for page in PAGES for sql in fenced(page, "sql")]
    statements += [
        words[3] for _, words in commands() if words[:2] == ["cxr-ray", "query"] and "FROM scores" in words[3]
    ]
    assert len(statements) > 5
    connection = duckdb.connect(":memory:")
    connection.register("scores", SCORE_SCHEMA.empty_table())
    for view in ("duplicates", "scores_unique"):
        connection.execute(f"CREATE TEMP VIEW {view} AS SELECT * FROM scores")
    for sql in statements:
        connection.execute(sql)


def test_score_table_page_lists_every_column_in_order() -> None:
    page = (ROOT / "docs" / "reference" / "score-table.md").read_text(encoding="utf-8")
    table = page.split("## Flags")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.MULTILINE)
    short = {"map<string, string>": "map(string, string)", "float": "float32"}

    def written(kind: object) -> str:
        text = re.sub(
            r"list<element: (\w+)>", lambda match: f"list({short.get(match[1], match[1])})", str(kind)
        )
        return short.get(text, text)

    assert rows == [(field.name, written(field.type)) for field in SCORE_SCHEMA]


def test_flags_page_knows_every_flag_in_the_code() -> None:
    page = (ROOT / "docs" / "reference" / "score-table.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)` \|", page.split("## Flags")[1], re.MULTILINE))
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "cxr_ray").rglob("*.py"))
    unknown = [flag for flag in sorted(documented) if f'"{flag}"' not in code]
    assert not unknown, f"documented, but set nowhere: {unknown}"
    set_by_name = set(re.findall(r'flags(?:\.append\(|\.add\(| \+= [\[(])"(\w+)"', code))
    assert set_by_name <= documented


def test_options_page_lists_every_option_with_its_default() -> None:
    page = (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", page, re.MULTILINE))
    schema = OmegaConf.structured(ScoreOptions)
    assert sorted(rows) == sorted(field.name for field in dataclasses.fields(ScoreOptions))
    for name, written in rows.items():
        if name in ("archive", "output", "manifest"):
            continue
        value = schema[name]
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        # JSON spells true, false and null as YAML does; strings stand without quotes on the page.
        expected = plain if isinstance(plain, str) else json.dumps(plain)
        assert written == expected, f"{name}: the page says {written}, the code {expected}"
