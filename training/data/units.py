"""Which pictures belong together: linked by group, patient, file or whatever else is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training.data.example import Example

Links = Sequence[Sequence[str | None]]
"""Lists along with the examples; examples with an equal value (None apart) of one list belong together."""


def components(examples: Sequence[Example], also: Links = ()) -> list[list[int]]:
    """Indices that share a group or a patient, directly or through others; sorted by their smallest id.

    Args:
        also: further links, such as the hash of each picture's content.
    """
    lists: list[Sequence[str | None]] = [[one.group for one in examples]]
    lists += [[one.patient or None for one in examples], *also]
    places: dict[tuple[int, str], int] = {}
    rows, columns = [], []
    for number, values in enumerate(lists):
        for index, value in enumerate(values):
            if value is not None:
                rows.append(index)
                columns.append(len(examples) + places.setdefault((number, value), len(places)))
    size = len(examples) + len(places)
    links = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
    _, found = connected_components(links, directed=False)
    together: dict[int, list[int]] = {}
    for index in sorted(range(len(examples)), key=lambda index: examples[index].id):
        together.setdefault(int(found[index]), []).append(index)
    return list(together.values())


def with_units(examples: Sequence[Example], also: Links = ()) -> list[Example]:
    """The examples, in order, with ``unit_key``: the ``group_key`` of the first row that each is linked with."""
    named = list(examples)
    for indices in components(examples, also):
        first = min((examples[index] for index in indices), key=lambda one: (one.row, one.id))
        for index in indices:
            named[index] = replace(examples[index], unit_key=first.group_key)
    return named
