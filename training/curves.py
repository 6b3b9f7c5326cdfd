"""TensorBoard logs of a member, written while it trains, wherever OUTPUT lies."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from cxr_ray.archives.storage import Storage

FOLDER = "tensorboard"


class Curves:
    """One event file per start of the member; ``epoch`` is the step on every curve.

    A member that goes on from a checkpoint tells TensorBoard to forget what the killed process had logged beyond it.
    """

    def __init__(self, output: Storage, *, epochs_done: int) -> None:
        self._output = output
        self._temporary = None if output.is_local else tempfile.TemporaryDirectory()
        folder = Path(output.path) / FOLDER if self._temporary is None else Path(self._temporary.name)
        self._writer = SummaryWriter(str(folder), purge_step=epochs_done + 1 if epochs_done else None)
        self._folder = folder

    def add(self, row: Mapping[str, Any]) -> None:
        """Log one epoch's row."""
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, int(row["epoch"]))
        self._writer.flush()
        if self._temporary is not None:
            for file in self._folder.iterdir():
                self._output.fs.put_file(str(file), f"{self._output.path}/{FOLDER}/{file.name}")

    def close(self) -> None:
        """Finish the event file."""
        self._writer.close()
        if self._temporary is not None:
            self._temporary.cleanup()
