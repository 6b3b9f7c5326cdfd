"""A reader of the table who never stops: lists it and reads every part whole, again and again, during a run."""

from __future__ import annotations

import re
import threading
import time
from types import TracebackType
from typing import Any

from cxr_ray.pipeline.plan import open_plan
from cxr_ray.pipeline.publish import Publisher
from end_to_end.places import Look, Place

PART = re.compile(r"part-(g\d{5}-u\d{6})\.parquet")


class TableReader:
    """Reads in a thread of its own until the block ends; what it finds wrong is in ``problems``.

    A part must be readable whole as soon as its name appears, hold exactly its unit's planned rows, and never be
    written again.

    Attributes:
        passes: how often the whole table was read.
        parts_read: parts read in all these passes.
    """

    def __init__(self, place: Place, every: float = 0.1) -> None:
        self._place = place
        self._every = every
        self._planned: dict[str, int] = {}
        self._stamps: dict[str, tuple[Any, ...]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="table reader", daemon=True)
        self.problems: list[str] = []
        self.passes = self.parts_read = 0

    def __enter__(self) -> TableReader:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=60)

    def assert_content(self) -> None:
        """Nothing was ever wrong with what it read.

        Raises:
            AssertionError: with what was.
        """
        assert not self.problems, self.problems[:10]

    def _run(self) -> None:
        look = self._place.look()
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                self._pass(look)
            except Exception as error:  # whatever a reader meets is a finding, and it goes on reading
                self.problems.append(f"the table's folder cannot be read: {error!r}")
            self._stop.wait(max(0.0, self._every - (time.monotonic() - begun)))

    def _pass(self, look: Look) -> None:
        for name, stamp in look.parts().items():
            if self._stamps.setdefault(name, stamp) != stamp:
                self.problems.append(f"{name} was written again")
                self._stamps[name] = stamp
            wrong = self._wrong_with(look, name)
            if wrong:
                self.problems.append(f"{name} {wrong}")
            self.parts_read += 1
        self.passes += 1

    def _wrong_with(self, look: Look, name: str) -> str | None:
        match = PART.fullmatch(name)
        if match is None:
            return "does not belong in the table's folder"
        try:
            table = look.read(name)
        except Exception as error:
            return f"cannot be read: {error!r}"
        if match[1] not in self._planned:  # a later generation
            units = open_plan(Publisher(self._place.storage)).units()
            self._planned = {unit.unit_id: unit.images for unit in units}
        if table.num_rows != self._planned.get(match[1]):
            return f"holds {table.num_rows} rows; its unit has {self._planned.get(match[1])}"
        return None
