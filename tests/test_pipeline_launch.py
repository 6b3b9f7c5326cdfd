"""Every end of a job is an exit code and one line without values that may be secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from cxr_ray.archives.storage import is_storage_error
from cxr_ray.errors import ArchiveError, RunFailed
from cxr_ray.pipeline.launch import refusal, run_job, without_paths
from cxr_ray.pipeline.options import ScoreOptions

CONF = Path(__file__).parents[1] / "conf"
CONFIG = OmegaConf.create({"archive": "a", "output": "b"})
PRIVATE = OmegaConf.create({"archive": "a", "output": "b", "keep_uri": False})


def ends(config: object, error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    def fail(options: object) -> int:
        raise error

    with pytest.raises(SystemExit) as end:
        run_job(config, ScoreOptions, fail)
    return end.value.code, capsys.readouterr().err


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(CONFIG, ArchiveError("no archive"), capsys) == (2, "error: no archive\n")
    assert ends(CONFIG, RunFailed("stopped"), capsys) == (1, "error: stopped\n")
    assert ends(CONFIG, KeyboardInterrupt(), capsys)[0] == 1
    code, text = ends(CONFIG, PermissionError(13, "denied", "/films/SMITH"), capsys)
    assert (code, text.count("\n"), "SMITH" in text) == (1, 1, False)


def test_our_own_bugs_show_whole_unless_paths_are_private(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Traceback" in ends(CONFIG, RuntimeError("/films/SMITH"), capsys)[1]
    code, text = ends(PRIVATE, RuntimeError("/films/SMITH"), capsys)
    assert (code, "SMITH" in text, "Traceback" in text) == (1, False, False)


def test_private_paths_are_withheld(capsys: pytest.CaptureFixture[str]) -> None:
    text = ends(
        PRIVATE, ArchiveError("No permission to list file:///data/SMITH^JOHN or 'SMITH^JOHN/'."), capsys
    )[1]
    assert "SMITH" not in text
    assert without_paths("s3://bucket/SMITH and ../x/SMITH.dcm and ~/SMITH").count("SMITH") == 0
    assert without_paths("limit must be at least 1") == "limit must be at least 1"


@pytest.mark.parametrize("value", ["abc+/SECRET=", "SECRET,SECRET", "{key: SECRET"])
def test_a_value_that_cannot_be_parsed_is_not_quoted(value: str) -> None:
    override = f"++archive_options.secret={value}"
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(HydraException) as refused:
        GlobalHydra.instance().config_loader().load_configuration(
            config_name="score", overrides=[override], run_mode=RunMode.RUN
        )
    assert "SECRET" not in refusal(refused.value)
    assert "archive_options.secret" in refusal(refused.value)


def test_an_unknown_option_is_met_with_the_nearest() -> None:
    error = HydraException("Could not override 'weihgts'.\nTo append to your config use +weihgts=seeded")
    assert "did you mean weights?" in refusal(error)


def test_storage_errors_are_told_from_bugs() -> None:
    assert is_storage_error(OSError(5, "io"))
    client_error = type("ClientError", (Exception,), {"__module__": "botocore.exceptions"})
    assert is_storage_error(client_error())
    assert not is_storage_error(KeyError("x"))
