"""From a Hydra entry point to an exit code: every refusal is one sentence, never a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from cxr_ray.errors import CxrRayError, UsageError
from cxr_ray.pipeline.job import EXIT_FAILED, EXIT_USAGE
from cxr_ray.pipeline.options import JobOptions, job_options

#: Options whose keys are the user's (fsspec options, manifest columns).
_OPEN_MAPPINGS = tuple(
    f"{name}{separator}"
    for name in ("archive_options", "output_options", "weights_options", "plan_options", "manifest.columns")
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
        _leave(_first_line(error), EXIT_USAGE)


def open_mapping(argument: str) -> str:
    """Let mappings of the user's own keys take any key: Hydra wants ``++archive_options.anon=true``."""
    return f"++{argument}" if argument.startswith(_OPEN_MAPPINGS) else argument


def run_job(config: Any, schema: type[JobOptions], run: Callable[[Any], int]) -> None:
    """Turn a composed config into options, run, and leave with the job's exit code.

    Every error ends here, inside Hydra's call: an error that passes through Hydra is printed together
    with all overrides, credentials included.
    """
    try:
        code = run(job_options(config, schema))
    except UsageError as error:
        _leave(str(error), EXIT_USAGE)
    except CxrRayError as error:
        _leave(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        _leave("interrupted; nothing is lost, run the same command again", EXIT_FAILED)
    except Exception:  # a bug of ours: show it whole
        traceback.print_exc()
        raise SystemExit(EXIT_FAILED) from None
    raise SystemExit(code)


def _leave(sentence: str, code: int) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(code) from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
