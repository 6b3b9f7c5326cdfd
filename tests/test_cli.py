"""The command line: its names are frozen, its errors are one sentence, ``info`` costs no torch."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_calibration import MADE
from made_output import make_output

from cxr_ray import cli
from cxr_ray.cli import build_parser, main, parse_options
from cxr_ray.errors import UsageError
from cxr_ray.phantoms import write_sample_archive
from cxr_ray.results import information, weights_information
from cxr_ray.results.information import information_lines

COMMAND = [sys.executable, "-m", "cxr_ray.cli"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_sample_archive(folder / "films", count=4)
    return Path(make_output(folder / "films", folder / "out"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def surface(parser: argparse.ArgumentParser, prefix: str = "") -> dict[str, list[str]]:
    """Every command with its arguments, options as they are typed."""
    found: dict[str, list[str]] = {}
    names = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found |= surface(child, f"{prefix} {name}".strip())
        elif "--help" not in action.option_strings:
            names.append(action.option_strings[0] if action.option_strings else str(action.metavar))
    return found if found else {prefix: sorted(names)}


def test_the_command_line_is_frozen() -> None:
    """Public names (DESIGN section 5): a change here breaks users' scripts."""
    assert surface(build_parser()) == {
        "info": ["--json", "--measure", "--weights"],
        "query": [
            "--format",
            "--max-rows",
            "--output-option",
            "--prevalence",
            "--threshold",
            "--weights",
            "--weights-option",
            "OUTPUT",
            "SQL",
        ],
        "compact": ["--output-option", "--rows-per-file", "OUTPUT"],
        "render": [
            "--archive-option",
            "--no-image",
            "--out",
            "--output-option",
            "--plan-dir",
            "--plan-option",
            "--top",
            "IMAGE_ID",
            "OUTPUT",
        ],
        "sample": ["--count", "--seed", "DIR"],
        "verify": [
            "--archive-option",
            "--json",
            "--output-option",
            "--plan-dir",
            "--plan-option",
            "--source",
            "OUTPUT",
        ],
        "weights import": ["--bundle-option", "BUNDLE_DIR", "KERAS_DIR"],
    }


def test_info_answers_at_once_and_without_torch() -> None:
    loaded = "sys.modules.keys() & {'torch', 'ray', 'cv2', 'duckdb', 'matplotlib', 'pyarrow', 'numpy'}"
    code = f"import sys; from cxr_ray.cli import main; main(['info', '--json']); sys.exit(len({loaded}))"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert min(seconds) < 1.0
    facts = json.loads(done.stdout)
    assert facts["versions"].keys() >= {"cxr_ray", "python", "torch", "ray"}
    assert facts["devices"]["cpus"] >= 1
    assert "PNG" in facts["formats"]["always"]


def test_info_for_people_names_gpus_weights_and_missing_decoders(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, printed, _ = run(capsys, "info")
    assert code == 0
    assert "not a medical device" in printed
    driver = tmp_path / "gpus" / "0000:01:00.0"
    driver.mkdir(parents=True)
    (driver / "information").write_text("Model: \t\t Some GPU 80GB\nIRQ: 1\n")
    bundle = tmp_path / "bundle.json"
    bundle.write_text(json.dumps({"name": "made", "trained": True, "tensors": {}}))
    monkeypatch.setattr(information, "_NVIDIA", tmp_path / "gpus")
    monkeypatch.setattr(weights_information, "BUNDLE", bundle)
    monkeypatch.setattr(information, "_DECODERS", {"DICOM made up": "no_such_module"})
    facts = information.information()
    assert facts["devices"]["gpus"] == ["Some GPU 80GB"]
    assert facts["weights"] == {"name": "made", "trained": True}
    lines = "\n".join(information_lines(facts))
    assert "GPU 0: Some GPU 80GB" in lines
    assert "DICOM made up: no: pip install 'cxr_ray[dicom]'" in lines


def test_info_measures_this_machine_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(run(capsys, "info", "--measure", "--weights", "seeded", "--json")[1])["measured"]
    assert facts["scorers"] >= 1
    assert 0 < facts["expected_images_per_second"] <= facts["score_images_per_second"]
    assert facts["hours_per_million_images"] == pytest.approx(
        1e6 / 3600 / facts["expected_images_per_second"], rel=0.01
    )
    code, _, said = run(capsys, "info", "--measure", "--weights", "/no/such/bundle")
    assert code == 2
    assert "/no/such/bundle" in said


def test_info_names_the_bundled_weights_with_their_metrics(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {
        "name": "made-1",
        "trained": True,
        "trained_on": "2 made films",
        "mask_styles": ["v7", "jms"],
        "metrics": {
            "mixed_source_auc": [0.7512, 0.6, 0.85],
            "lung_dice": {"one": {"value": 0.961, "low": 0.95, "high": 0.97}, "two": 0.95},
        },
        "licence_basis": "research use;\n" + "no warranty of rights. " * 20,
        "tensors": {"never": "shown"},
        **MADE.record(),
    }
    (tmp_path / "bundle.json").write_text(json.dumps(record))
    monkeypatch.setattr(weights_information, "BUNDLE", tmp_path / "bundle.json")
    lines = [" ".join(line.split()) for line in run(capsys, "info")[1].splitlines()]
    for line in (
        "name made-1",
        "trained_on 2 made films",
        "mask_styles v7, jms",
        "calibration platt, valid at a prevalence of 0.25",
        "threshold youden p_covid 0.5 (default): sensitivity 0.8 (0.7 to 0.9), specificity 0.75 (0.65 to 0.85)",
        "mixed_source_auc 0.751 (0.6 to 0.85)",
        "lung_dice.one 0.961 (0.95 to 0.97)",
        "lung_dice.two 0.95",
    ):
        assert line in lines
    (licence,) = [line for line in lines if line.startswith("licence_basis research use; no warranty")]
    assert len(licence) < 200
    facts = json.loads(run(capsys, "info", "--json")[1])["weights"]
    assert facts == {name: value for name, value in record.items() if name != "tensors"}
    for content, words in (("{", "damaged"), (None, "none bundled")):
        (tmp_path / "bundle.json").unlink()
        if content is not None:
            (tmp_path / "bundle.json").write_text(content)
        assert words in run(capsys, "info")[1]
        (tmp_path / "bundle.json").touch()


def test_query(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT status, count(*) AS images FROM scores GROUP BY status ORDER BY status"
    assert run(capsys, "query", output, sql) == (
        0,
        "status       images\n-----------  ------\nquarantined       1\nscored            3\n",
        "",
    )
    _, printed, _ = run(capsys, "query", output, sql, "--format", "json")
    assert json.loads(printed) == [{"status": "quarantined", "images": 1}, {"status": "scored", "images": 3}]
    _, printed, _ = run(capsys, "query", output, sql, "--format", "csv", "--max-rows", 1)
    assert printed == "status,images\nquarantined,1\n"


def test_verify_proves_and_says_what_is_missing(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = run(capsys, "verify", output)
    assert code == 0
    assert printed.startswith("COMPLETE")
    hidden = output / "scores" / "hidden"
    part = next((output / "scores").glob("part-*"))
    part.rename(hidden)
    try:
        code, printed, _ = run(capsys, "verify", output, "--json")
    finally:
        hidden.rename(part)
    assert code == 1
    assert json.loads(printed)["missing_units"] == 1


def test_render_top_and_one(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = run(capsys, "render", output, "--top", 2, "--out", tmp_path / "top")
    assert code == 0
    files = [Path(line) for line in printed.splitlines()]
    assert len(files) == 2
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    one = tmp_path / "one.png"
    code, printed, _ = run(capsys, "render", output, files[0].stem, "--out", one, "--no-image")
    assert (code, printed.strip()) == (0, str(one))


def test_sample_says_synthetic_and_is_repeatable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        code, printed, _ = run(capsys, "sample", tmp_path / "films", "--count", 2)
        assert code == 0
        assert "SYNTHETIC" in printed
    assert len(list((tmp_path / "films").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["query", "OUT", "SELECT nothing FROM scores"], "nothing"),
        (["query", "OUT", "SELECT 1", "--max-rows", "-1"], "at least 0"),
        (["query", "OUT", "SELECT 1", "--prevalence", "1.5"], "between 0 and 1"),
        (["query", "OUT", "SELECT 1", "--prevalence", "0.1"], "no calibration"),
        (["query", "OUT", "SELECT 1", "--threshold", "sens95"], "is unknown"),
        (["query", "OUT", "SELECT 1", "--weights", "nowhere"], "no weights bundle"),
        (["query", "OUT", "SELECT 1", "--output-option", "anon"], "KEY=VALUE"),
        (["query", "nowhere", "SELECT 1"], "holds no table"),
        (["query", "unknown://x", "SELECT 1"], "unknown"),
        (["query", "OUT/identity.json", "SELECT 1"], "cannot be read"),
        (["verify", "nowhere"], "holds no table"),
        (["render", "OUT", "--out", "x.png"], "IMAGE_IDs, or --top"),
        (["render", "OUT", "f" * 32, "--top", "1", "--out", "x.png"], "IMAGE_IDs, or --top"),
        (["render", "OUT", "f" * 32, "--out", "x.png"], "not in the table"),
        (["sample", "DIR", "--count", "1"], "at least 2"),
        (["weights", "import", "nowhere", "bundle"], "nowhere"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else None,
)
def test_user_errors_are_one_sentence_and_exit_2(
    arguments: list[str],
    words: str,
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, said = run(capsys, *(word.replace("OUT", str(output)) for word in arguments))
    assert code == 2
    assert printed == ""
    assert said.startswith("cxr-ray: ")
    assert said.count("\n") == 1
    assert words in said
    assert list(tmp_path.iterdir()) == []


def test_a_failing_storage_is_one_sentence(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/secret/place")

    monkeypatch.setattr("cxr_ray.results.verify.open_plan", refuse)
    code, _, said = run(capsys, "verify", output)
    assert (code, said) == (2, "cxr-ray: the storage failed (access denied); try again\n")


def test_unknown_options_exit_2_and_a_closed_pipe_is_quiet(output: Path) -> None:
    done = subprocess.run([*COMMAND, "query", "--nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    sql = "SELECT i FROM range(200000) t(i)"
    shell = f'"{sys.executable}" -m cxr_ray.cli query "{output}" "{sql}" --format csv | head -1'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.stdout == "i\n"
    assert done.stderr == ""


def test_storage_options_keep_text_and_read_json() -> None:
    pairs = ["anon=true", "key=0123", "secret=a=b", 'config_kwargs={"retries": 1}', "token=null", "list=[1]"]
    assert parse_options(pairs) == {
        "anon": True,
        "key": "0123",
        "secret": "a=b",
        "config_kwargs": {"retries": 1},
        "token": None,
        "list": [1],
    }
    for wrong, words in ((["anon"], "KEY=VALUE"), (["=x"], "KEY=VALUE"), (["a={"], "option a ")):
        with pytest.raises(UsageError, match=words):
            parse_options(wrong)
    with pytest.raises(UsageError) as caught:
        parse_options(["hunter2secret"])
    assert "hunter2" not in str(caught.value)


def test_exit_codes_are_as_documented() -> None:
    assert (cli.DONE, cli.INCOMPLETE, cli.UNUSABLE) == (0, 1, 2)
