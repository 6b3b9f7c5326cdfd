"""The training report: every section from a whole output, what is missing said in words, nothing from outside."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from made_training import PATHS, SECRET, interval, put_json, write_training
from omegaconf import OmegaConf
from sklearn.metrics import roc_auc_score

from cxr_ray.errors import UsageError
from training.report.blocks import Figure, Note, Section, Table, mean_std, number, with_interval
from training.report.options import ReportOptions, report_options
from training.report.page import NOTICE, build_page
from training.report.reading import read_training
from training.report.run import Run, gather
from training.report.scored import Scored, auc_interval, confusion
from training.report.sections.hide_and_seek import hide_and_seek
from training.report.sections.lungs import lungs
from training.report.sections.provenance import shown
from training.report.sections.sources import interval_words, sources
from training.report.sections.split import split
from training.report.writing import run_report

ROOT = Path(__file__).parents[1]
ANCHORS = (
    "summary", "split", "segmentation-curves", "lungs", "classification-curves", "roc", "confusion", "ensemble",
    "sources", "hide-and-seek", "calibration", "histograms", "provenance",
)  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_training(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def run(places: dict[str, str]) -> Run:
    return gather(ReportOptions(training=places["assemble"], output="unused", draws=100))


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return build_page(run)


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text outside of style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._style = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._style else data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_a_whole_output_gives_every_section_and_leaves_nothing_out(page: str) -> None:
    elements = Elements(page)
    assert tuple(section["id"] for section in elements.all("section")) == ANCHORS
    links = [str(link["href"]) for link in elements.all("a")]
    assert links == [f"#{anchor}" for anchor in ANCHORS]
    assert "Not shown" not in elements.text
    assert elements.text.count(NOTICE) == 2


def test_the_page_needs_nothing_outside_itself(page: str) -> None:
    elements = Elements(page)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in elements.found}
    for tag, attributes in elements.found:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert 'content="width=device-width' in page


def test_figures_are_pictures_with_words_for_those_who_cannot_see_them(page: str) -> None:
    images = Elements(page).all("img")
    assert len(images) > 20
    for image in images:
        kind, data = str(image["src"]).split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        svg = ElementTree.fromstring(base64.b64decode(data))
        assert svg.tag.endswith("svg")
        drawn = {
            node.get("href") or node.get("{http://www.w3.org/1999/xlink}href") for node in svg.iter()
        } - {None}
        assert all(str(link).startswith(("#", "data:")) for link in drawn)
        assert len(str(image["alt"])) > 40
    assert page.count('class="how"') == page.count("<figure") + page.count("<table")


def test_no_secret_and_no_patient_reaches_the_page(page: str) -> None:
    assert SECRET not in page
    assert "s3://bucket/manifest.csv" in page
    assert "key-north" not in page
    assert "(not shown)" in shown({"output_options": {"profile": "x"}, "key_file": "x", "options": {"a": 1}})
    assert json.loads(shown({"key_file": None, "options": {}, "rows": 2})) == {
        "key_file": None,
        "options": {},
        "rows": 2,
    }


def test_the_same_output_gives_the_same_page(run: Run) -> None:
    for make in (split, lungs):
        assert make(run) == make(run)


def test_areas_are_those_of_scikit_learn_inside_the_mixed_sources(run: Run) -> None:
    test = run.ensemble["test"]
    mixed = np.isin(test.source, ["north", "east"])
    assert run.areas["test", "pooled"].value == pytest.approx(roc_auc_score(test.positive, test.logit))
    expected = roc_auc_score(test.positive[mixed], test.logit[mixed])
    assert run.areas["test", "mixed"].value == pytest.approx(expected)
    assert run.areas["test", "mixed"].low < expected < run.areas["test", "mixed"].high


def test_out_of_fold_pairs_stay_inside_a_fold() -> None:
    # Each fold is ranked perfectly, but the second one's scores lie above the first's.
    pictures = Scored(
        positive=np.array([False, True, False, True]),
        logit=np.array([-3.0, -2.0, 2.0, 3.0]),
        source=np.array(["a"] * 4),
        group=np.array(list("abcd")),
        fold=np.array([0, 0, 1, 1]),
    )
    assert auc_interval(pictures, 100).value == 1.0
    assert confusion(pictures, 0.5).tolist() == [[1, 1], [1, 1]]


def test_a_probability_on_the_threshold_is_positive() -> None:
    on_it = Scored(
        positive=np.array([True]), logit=np.zeros(1), source=np.array(["a"]), group=np.array(["g"])
    )
    assert confusion(on_it, 0.5).tolist() == [[1, 0], [0, 0]]


def test_split_counts_every_picture_once(run: Run) -> None:
    section = split(run)
    parts = next(
        block for block in section.blocks if isinstance(block, Table) and block.title == "Parts of the split"
    )
    table = run.classification.split
    assert table is not None
    assert sum(int(row[1]) for row in parts.rows) == table.num_rows
    assert [row[0] for row in parts.rows] == [
        *(f"fold {k}" for k in range(PATHS)),
        "calibration",
        "test",
        "left out",
    ]
    diagram = section.blocks[0]
    assert isinstance(diagram, Figure)
    assert diagram.width == "whole"


def test_a_table_without_sources_has_a_split_too(run: Run) -> None:
    table = run.classification.split
    assert table is not None
    for names in ([None] * table.num_rows, [None, *table.column("source").to_pylist()[1:]]):
        place = table.schema.get_field_index("source")
        without = table.set_column(place, "source", pa.array(names, pa.string()))
        shown = split(replace(run, classification=replace(run.classification, split=without)))
        assert "unknown" in str(shown.blocks)


def test_an_audit_of_training_pictures_is_no_evidence(run: Run) -> None:
    table = run.classification.split
    assert table is not None
    seen = [row["image_id"] for row in table.to_pylist() if row["split"] == "train"]
    name, audit = next(
        (name, one) for name, one in run.classification.audits.items() if one.predictions is not None
    )
    ids = pa.array((seen * audit.predictions.num_rows)[: audit.predictions.num_rows], pa.string())
    place = audit.predictions.schema.get_field_index("image_id")
    changed = replace(audit, predictions=audit.predictions.set_column(place, "image_id", ids))
    flattering = replace(run, classification=replace(run.classification, audits={name: changed}))
    assert name in run.ensemble
    assert name not in flattering.ensemble


def test_lungs_take_the_source_from_the_split_and_keep_the_pooled_figure_apart(run: Run) -> None:
    tables = {block.title: block for block in lungs(run).blocks if isinstance(block, Table)}
    own = tables["Lung class alone, validation pictures"]
    assert {row[:2] for row in own.rows} >= {("v7", "north"), ("v7", "west"), ("jms", "east")}
    pooled = tables["The paper's pooled figure, “made” on test"]
    assert pooled.rows[-1] == ("v7", "all", "30", "0.955", "0.957")
    assert not any("pooled" in heading for heading in own.columns)


def test_hide_and_seek_shows_the_audit_as_it_is(run: Run) -> None:
    tables = [block for block in hide_and_seek(run).blocks if isinstance(block, Table)]
    rows = {row[0]: row[-1] for table in tables for row in table.rows}
    assert rows["lungs removed"] == "0.620 (0.52 to 0.72)"
    assert rows["difference, paired"] == "0.120 (0.02 to 0.22)"


def test_what_is_missing_is_said_with_the_name_of_the_file(places: dict[str, str], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    put_json(bare / "config.json", {"settings": {"task": "classification"}})
    text = Elements(build_page(gather(ReportOptions(training=str(bare), output="x", draws=100)))).text
    for file in (
        "split.parquet", "history.parquet", "out_of_fold.parquet", "validation.parquet", "calibration.parquet",
        "audit.json", "segmentation.json", "bundle.json",
    ):  # fmt: skip
        assert file in text[text.rindex("Not shown") :], file
    assert "How the pictures were split" not in text


def test_an_assembly_that_was_moved_still_reads_what_is_there(places: dict[str, str], tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(places["assemble"], alone)
    config = json.loads((alone / "config.json").read_text())
    config["settings"] |= {"classification": str(tmp_path / "gone"), "segmentation": str(tmp_path / "gone2")}
    (alone / "config.json").write_text(json.dumps(config))
    run = gather(ReportOptions(training=str(alone), output="x", draws=100))
    assert set(run.ensemble) == {"calibration", "test"}
    assert run.out_of_fold is None
    given = ReportOptions(training=str(alone), output="x", classification=places["classification"], draws=100)
    again = gather(given)
    assert again.out_of_fold is not None
    assert again.threshold == ("youden", 0.41)


def test_an_audit_written_elsewhere_is_taken_in(places: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(Path(places["assemble"]) / "audit" / "test", tmp_path / "audit" / "elsewhere")
    run = gather(ReportOptions(training=places["classification"], output="x", audit=str(tmp_path), draws=100))
    assert set(run.ensemble) == {"elsewhere"}
    words = [block.text for block in sources(run).blocks if isinstance(block, Note)]
    assert words == [
        "elsewhere: 62 pictures of 30 groups; 1 dropped as truncated and 2 without a score (no lungs found)."
    ]


def test_a_segmentation_alone(places: dict[str, str]) -> None:
    run = gather(ReportOptions(training=places["segmentation"], output="x", draws=100))
    sections: list[Section] = [lungs(run), split(run)]
    assert all(section.blocks for section in sections)


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", b"{"), ("config.json", b"[]"), ("split.parquet", b"PAR1 and then nothing")],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(file)):
        read_training(str(tmp_path))


def test_a_folder_without_a_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no training output"):
        read_training(str(tmp_path / "nothing"))


def test_numbers_as_people_read_them() -> None:
    assert number(-0.1234) == "−0.123"
    assert number(-0.0001) == "0.000"
    assert number(math.nan) == number(None) == "–"
    assert mean_std([0.5, 0.7, math.nan]) == "0.600 (0.141)"
    assert mean_std([0.5]) == "0.500"
    assert with_interval(0.5, None, None) == "0.500"
    assert interval_words([0.5, 0.4, 0.6]) == interval_words(interval(0.5)) == "0.500 (0.40 to 0.60)"
    assert interval_words({"value": None, "low": None, "high": None}) == interval_words(None) == "–"


def test_options_and_config_carry_the_same_names() -> None:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "report.yaml"))
    assert isinstance(config, dict)
    assert set(config) - {"defaults", "hydra"} == {field.name for field in fields(ReportOptions)}
    docs = (ROOT / "docs" / "how-to" / "read-a-training-report.md").read_text(encoding="utf-8")
    assert all(f"`{field.name}`" in docs for field in fields(ReportOptions))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": "a"}, "output is missing"),
        ({"training": "a", "output": " "}, "output is empty"),
        ({"training": "a", "output": "b", "draws": 3}, "at least 100"),
        ({"training": "a", "output": "b", "color": 3}, "color"),
    ],
)
def test_options_that_cannot_serve_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        report_options(OmegaConf.create(values))


def test_the_file_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_json(tmp_path / "training" / "config.json", {"settings": {}})
    monkeypatch.setattr("training.report.writing.build_page", lambda run, title: f"<p>{title} é</p>")
    target = tmp_path / "new" / "report.html"
    for title in ("first", "second"):
        options = ReportOptions(training=str(tmp_path / "training"), output=str(target), title=title)
        assert run_report(options) == 0
    assert target.read_text(encoding="utf-8") == "<p>second é</p>"
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line == {"output": f"file://{target}", "bytes": len(target.read_bytes())}
    with pytest.raises(UsageError, match="is a folder"):
        run_report(ReportOptions(training=str(tmp_path / "training"), output=str(tmp_path)))


def test_the_command_refuses_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "report.py"), f"training={tmp_path}", "output=x.html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "x.html").exists()
