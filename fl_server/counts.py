"""The counts of a `count` study as they stand in its record: each with the noise that lies on it, small ones held back.

The noise is the promise; that a count below the study's limit is told as "fewer than 10" is a rule of the house, for people who
read tables. `model.pt` beside the record holds the noisy sum of every cell, which is as protected as the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from conf.study import Study
from fl_server.record import CountTable, Record

if TYPE_CHECKING:
    import torch


def counts_of(study: Study, state: Mapping[str, torch.Tensor]) -> list[CountTable]:
    """The tables of a study whose task is `count`; none of any other study."""
    from tasks.count.task import CountTask  # here: tasks import torch, and a record is shown without
    from tasks.task import load

    task = load(study.task)
    if not isinstance(task, CountTask):
        return []
    total = state["total"].numpy() / task.weight
    sd = math.sqrt(float(state["noise_variance"][0])) / task.weight
    least = task.settings.suppress_below
    found, first = [], 0
    for table in task.settings.tables:
        part = total[first : first + table.length].tolist()
        found.append(
            CountTable(
                fields=[axis.field for axis in table.axes],
                cells=[list(cell) for cell in itertools.product(*(axis.cells for axis in table.axes))],
                counts=[None if least and value < least else max(0, round(value)) for value in part],
                fewer_than=least,
                noise_sd=sd,
            )
        )
        first += table.length
    return found


def lines(record: Record) -> Iterator[str]:
    """The tables in words, for the screen; nothing for a study that counted nobody."""
    for table in record.counts:
        certain = f"give or take {1.96 * table.noise_sd:.0f} (95 %, the noise)" if table.noise_sd else "exact: no privacy"
        yield f"  training patients by {' and '.join(table.fields) or 'nothing: all of them'}, {certain}"
        names = [", ".join(cell) or "all" for cell in table.cells]
        width = max(map(len, names))
        for name, count in zip(names, table.counts, strict=True):
            yield f"    {name:{width}}  " + (f"{count:6}" if count is not None else f"fewer than {table.fewer_than}")
