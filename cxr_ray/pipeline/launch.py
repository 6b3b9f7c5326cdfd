"""From a Hydra entry point to an exit code: every refusal is one sentence, never a traceback."""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NoReturn

from cxr_ray.archives.storage import explain, is_storage_error
from cxr_ray.errors import CxrRayError, UsageError
from cxr_ray.pipeline.job import EXIT_FAILED, EXIT_USAGE
from cxr_ray.pipeline.options import JobOptions, ScoreOptions, job_options

#: Options whose keys are the user's (fsspec options, manifest columns and labels).
_OPEN_MAPPINGS = tuple(
    f"{name}{separator}"
    for name in (
        "archive_options",
        "output_options",
        "weights_options",
        "plan_options",
        "shards_options",
        "training_options",
        "manifest.columns",
        "manifest.label_map",
        "manifest.options",
    )
    for separator in ".="
)


def launch(main: Callable[[], Any]) -> None:
    """Call a ``@hydra.main`` function; a config that cannot be composed ends with 2, where Hydra has 1."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    sys.argv[1:] = [open_mapping(argument) for argument in sys.argv[1:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing and exiting with 1
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        _leave(refusal(error), EXIT_USAGE)


def open_mapping(argument: str) -> str:
    """Let mappings of the user's own keys take any key: Hydra wants ``++archive_options.anon=true``."""
    return f"++{argument}" if argument.startswith(_OPEN_MAPPINGS) else argument


def run_job(config: Any, schema: type[JobOptions], run: Callable[[Any], int]) -> None:
    """Turn a composed config into options, run, and leave with the job's exit code."""
    keep_paths = True

    def work() -> int:
        nonlocal keep_paths
        options = job_options(config, schema)
        keep_paths = options.keep_uri
        return run(options)

    run_guarded(work, keep_paths=lambda: keep_paths)


def run_guarded(work: Callable[[], int], *, keep_paths: Callable[[], bool] = lambda: True) -> None:
    """Leave with the exit code that ``work`` returns, or with one sentence and the code of its error.

    Every error ends here, inside Hydra's call: an error that passes through Hydra is printed together
    with all overrides, credentials included.
    """
    try:
        code = work()
    except CxrRayError as error:
        code = EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
        _leave(str(error) if keep_paths() else without_paths(str(error)), code)
    except KeyboardInterrupt:
        _leave("interrupted; nothing is lost, run the same command again", EXIT_FAILED)
    except Exception as error:
        if is_storage_error(error):
            _leave(
                f"the storage failed ({explain(error)}); nothing is lost, run the same command again",
                EXIT_FAILED,
            )
        if keep_paths():
            traceback.print_exc()  # a bug of ours: show it whole
        _leave(f"an unexpected {type(error).__name__}; please report it", EXIT_FAILED)
    raise SystemExit(code)


def without_paths(message: str) -> str:
    """A message for ``keep_uri=false``: addresses, paths and quoted names withheld."""
    return re.sub(r"\w+://\S+|(?<!\w)[~.]*/\S+|'[^']*'", "(withheld)", message)


def _leave(sentence: str, code: int) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(code) from None


def _option_names() -> list[str]:
    return [option.name for option in fields(ScoreOptions)]


def refusal(error: BaseException) -> str:
    """One sentence that names the option and never quotes its value, which may be a secret."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    quoted = re.search(r"[+~]*([\w.@/]+)=", str(getattr(error, "override", None) or first))
    if quoted is None:
        unknown = re.search(r"Could not override '([\w.@/]+)'", first)
        near = difflib.get_close_matches(unknown[1], _option_names(), n=1) if unknown else []
        hint = (
            f"did you mean {near[0]}?"
            if near
            else "options: docs/reference/options.md, for training train-options.md"
        )
        return f"{first.rstrip('.')} ({hint})"
    name = quoted[1]
    return (
        f"the value of {name} cannot be read; put values with commas, spaces, quotes or equals signs in "
        f"quotes inside the shell's quotes, \"{name}='...'\", or pass a variable: '{name}=${{oc.env:NAME}}'"
    )
