"""The shipped YAML files and the option classes carry the same names and defaults."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cxr_ray.errors import UsageError
from cxr_ray.pipeline.launch import open_mapping
from cxr_ray.pipeline.options import IngestOptions, JobOptions, ScoreOptions, job_options
from training.options import train_options

CONF = Path(__file__).parents[1] / "conf"
REQUIRED = ["archive=a", "output=b"]


def composed(name: str, *overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=list(overrides))


@pytest.mark.parametrize(("name", "schema"), [("score", ScoreOptions), ("ingest", IngestOptions)])
def test_yaml_and_class_agree(name: str, schema: type[JobOptions]) -> None:
    config = OmegaConf.to_container(composed(name, *REQUIRED))
    assert set(config) == {field.name for field in fields(schema)}
    assert asdict(job_options(composed(name, *REQUIRED), schema)) == asdict(schema(archive="a", output="b"))


CHOICES = [f"{path.parent.name}={path.stem}" for path in sorted(CONF.glob("*/*.yaml"))]
CHOICES.remove("cluster=kuberay")  # a RayJob manifest, not a config
CHOICES.remove("cluster=vm")  # for `ray up`, not a config


@pytest.mark.parametrize("override", CHOICES)
def test_every_group_choice_is_valid(override: str) -> None:
    if override.startswith("recipe="):
        config = composed("train", "task=segmentation", "shards=a", "output=b", "manifest.path=c", override)
        assert train_options(config)
    else:
        assert job_options(composed("score", *REQUIRED, override), ScoreOptions)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("limit=0", "limit"),
        ("unit_size=2000", "between 1 and 1000"),
        ("decode_seconds=0", "between 1 and"),
        ("decode_memory=1000000", "between 268435456 and"),
        ("max_quarantined=2", "between 0 and 1"),
    ],
)
def test_values_out_of_range_are_refused(override: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        job_options(composed("score", *REQUIRED, override), ScoreOptions)


def test_missing_places_are_refused() -> None:
    with pytest.raises(UsageError, match="archive"):
        job_options(composed("score", "output=b"), ScoreOptions)


def test_the_users_own_keys_need_no_plus_sign() -> None:
    assert open_mapping("archive_options.anon=true") == "++archive_options.anon=true"
    assert open_mapping("manifest.columns={uri: file}") == "++manifest.columns={uri: file}"
    assert open_mapping("manifest.root=x") == "manifest.root=x"
    assert open_mapping("archive=x") == "archive=x"


@pytest.mark.parametrize("wrong", [{"variant": "loud"}, {"dtype": "float64"}])
def test_what_a_scorer_would_refuse_is_refused_on_the_driver(wrong: dict[str, str]) -> None:
    from cxr_ray.pipeline.score_job import check_score_options

    check_score_options(ScoreOptions(archive="a", output="b", variant="threshold"))
    with pytest.raises(UsageError, match=next(iter(wrong))):
        check_score_options(ScoreOptions(archive="a", output="b", **wrong))
