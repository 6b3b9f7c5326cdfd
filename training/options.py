"""Options of ``jobs/train.py``: names, types and defaults; ``conf/train.yaml`` and ``conf/recipe`` carry the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cxr_ray.archives.storage import open_storage
from cxr_ray.errors import UsageError
from cxr_ray.weights.storage import public_url
from training.classification import ClassificationRecipe
from training.data.manifest import ManifestSettings
from training.features import COPIES
from training.loop import LoopSettings
from training.segmentation import SegmentationRecipe

TASKS = ("segmentation", "classification", "assemble")


@dataclass(kw_only=True)
class Recipe:
    """Everything that decides what the weights become; a YAML file in ``conf/recipe``."""

    name: str = "default"
    """For people."""
    restricted_licences: bool = False
    """Also train on pictures whose licence forbids commercial use (NC) or changes (ND)."""
    loop: LoopSettings = field(default_factory=LoopSettings)
    """Seed, batch norm, checkpoints, precision."""
    segmentation: SegmentationRecipe = field(default_factory=SegmentationRecipe)
    """Module 1."""
    classification: ClassificationRecipe = field(default_factory=ClassificationRecipe)
    """Module 2."""


@dataclass(kw_only=True)
class Execution:
    """How the work is laid out; may change at every run and decides nothing about the weights (with one worker)."""

    launcher: str = "ray"
    """``ray``: Ray Train. ``local``: this machine only, without Ray."""
    workers: int = 1
    """Processes that share the batches of one member (distributed data parallel)."""
    at_once: int | None = None
    """Members trained side by side; default: what the CPUs or GPUs allow."""
    device: str = "auto"
    """``cpu``, ``cuda``, or ``auto``: a GPU where there is one."""
    threads: int = 1
    """CPU threads of one worker; more than one rarely pays for these small networks."""
    only: list[str] = field(default_factory=list)
    """Members to train now, such as ``[fold0]``; empty: all."""
    max_failures: int = 3
    """How often a killed worker is started again."""
    work_dir: str | None = None
    """Local folder for path inputs (some GB), kept for the next run; default: a temporary one, removed at the end."""
    ray_address: str | None = None
    """Ray cluster to join; default: RAY_ADDRESS where set (a submitted job), else a local one."""


@dataclass(kw_only=True)
class TrainOptions:
    """``jobs/train.py``: shards + manifest -> weights."""

    task: str = MISSING
    """``segmentation`` (Module 1), ``classification`` (Module 2), or ``assemble`` (both into a bundle)."""
    output: str = MISSING
    """Where to write: a new place, or one that an earlier run of the same settings began."""
    shards: str | None = None
    """OUTPUT of ``jobs/ingest.py``; needed for training, while ``assemble`` knows it from the outputs it is given."""
    manifest: ManifestSettings = field(default_factory=ManifestSettings)
    """Labels, masks, patients, groups, sources and licences of the pictures."""
    segmentation: str | None = None
    """OUTPUT of the segmentation task, or a bundle whose segmenters are to be used (classification, assemble)."""
    classification: str | None = None
    """OUTPUT of the classification task (assemble)."""
    train_split: str = "train"
    """Value of the manifest's ``split`` that is trained on."""
    validation_split: str = "val"
    """Value of ``split`` that Module 1 is monitored on; nothing is chosen by it."""
    recipe: Recipe = field(default_factory=Recipe)
    """What is trained, and how."""
    bundle_name: str = "cxr-net"
    """Name of the assembled bundle."""
    execution: Execution = field(default_factory=Execution)
    """Machines, not results."""
    shards_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options of ``shards``; never recorded."""
    output_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options of ``output``, ``segmentation`` and ``classification``; never recorded."""


def train_options(config: DictConfig | dict[str, Any]) -> TrainOptions:
    """Typed options of a composed config, or of what ``as_plain`` made.

    Raises:
        UsageError: unknown names, wrong types, missing or contradictory values.
    """
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainOptions), config))
    except MissingMandatoryValue as error:
        raise UsageError(
            f"{_name(error)} is missing; give task=segmentation|classification|assemble shards=URL "
            "manifest.path=URL output=URL"
        ) from error
    except OmegaConfBaseException as error:
        raise UsageError(
            f"option {_name(error)} has a value of the wrong kind; see docs/reference/train-options.md"
        ) from error
    assert isinstance(options, TrainOptions)
    _check(options)
    return options


def as_plain(options: TrainOptions) -> dict[str, Any]:
    """Plain nested values, for a worker: credentials included, so never print or store it."""
    return asdict(options)


def recorded(options: TrainOptions) -> dict[str, Any]:
    """What decides the weights, without credentials and without how the work was laid out."""
    plain = asdict(options)
    for name in ("execution", "shards_options", "output_options", "output"):
        del plain[name]
    for name in ("options", "key_env", "key_file"):
        del plain["manifest"][name]
    for place, name in (
        (plain, "shards"), (plain, "segmentation"), (plain, "classification"),
        (plain["manifest"], "path"), (plain["manifest"], "root"),
    ):  # fmt: skip
        # Without user name, password and query, which may hold a signature.
        place[name] = None if place[name] is None else public_url(place[name])
    return relevant(plain)


def relevant(settings: dict[str, Any]) -> dict[str, Any]:
    """The recorded settings that the task depends on: one module's recipe does not concern the other."""
    others = {"segmentation": ["classification"], "classification": ["segmentation"]}
    unread = others.get(settings["task"], ["segmentation", "classification"])
    recipe = {name: value for name, value in settings["recipe"].items() if name not in unread}
    return {**settings, "recipe": recipe}


def absolute(options: TrainOptions) -> TrainOptions:
    """The same options with whole addresses, so that a worker with another working directory finds the places."""

    def whole(url: str | None) -> str | None:
        return url if not url or url in ("default", "seeded") else open_storage(url).url

    return replace(
        options,
        output=str(whole(options.output)),
        shards=whole(options.shards),
        segmentation=whole(options.segmentation),
        classification=whole(options.classification),
        manifest=replace(
            options.manifest, path=whole(options.manifest.path) or "", root=whole(options.manifest.root)
        ),
    )


def _check(options: TrainOptions) -> None:
    if options.task not in TASKS:
        raise UsageError(f"expected task to be one of {', '.join(TASKS)}, got {options.task!r}")
    recipe = options.recipe
    if recipe.loop.batch_norm not in ("local", "sync"):
        raise UsageError(f"expected recipe.loop.batch_norm local or sync, got {recipe.loop.batch_norm!r}")
    if recipe.loop.precision not in ("float32", "bfloat16"):
        raise UsageError(f"expected recipe.loop.precision float32 or bfloat16, got {recipe.loop.precision!r}")
    stages = [*recipe.segmentation.stages, *recipe.classification.stages]
    if any(stage.epochs < 1 or stage.batch < 1 for stage in stages):
        raise UsageError("expected at least one epoch and one picture a batch in every stage")
    odd = sorted(set(recipe.classification.copies.kinds) - set(COPIES))
    if odd or not recipe.classification.copies.kinds:
        raise UsageError(f"expected kinds of copies out of {', '.join(COPIES)}, got {odd or 'none'}")
    if (
        any(stage.silence for stage in recipe.classification.stages)
        and "removed" not in recipe.classification.copies.kinds
    ):
        raise UsageError("silence in a stage needs the kind removed in recipe.classification.copies.kinds")
    shares = recipe.classification.copy_shares
    if shares and len(shares) != len(recipe.classification.copies.kinds):
        raise UsageError("expected one number in copy_shares for each kind of copy, or none")
    if recipe.classification.positive_class not in recipe.classification.classes:
        raise UsageError("positive_class is none of recipe.classification.classes")
    if options.execution.launcher not in ("ray", "local"):
        raise UsageError(f"expected execution.launcher ray or local, got {options.execution.launcher!r}")
    if options.execution.launcher == "local" and options.execution.workers > 1:
        raise UsageError("execution.workers above 1 needs execution.launcher=ray")
    if options.task != "segmentation" and not options.segmentation:
        raise UsageError(f"task={options.task} needs segmentation=URL, a segmentation output or a bundle")
    if options.task != "assemble" and not options.shards:
        raise UsageError(f"task={options.task} needs shards=URL, the OUTPUT of jobs/ingest.py")
    if options.task == "assemble" and not options.classification:
        raise UsageError("task=assemble needs classification=URL, a classification output")


def _name(error: OmegaConfBaseException) -> str:
    return str(getattr(error, "full_key", None) or getattr(error, "key", None) or "?")
