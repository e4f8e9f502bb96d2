"""METRICS for a radiomics study: the software answers the items that it knows, with the numbers, and leaves the rest open.

`filled` says that the answer is known, and not that it is a good one: a study of one hospital fills the item of several
centres with a no. There is no score, because that is a judgement. An open item says what a person has to write, after
what the study knows of it. Of generated patients much is known that no study of real ones can know by itself; then it says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fl_server.record import Record
from simulation.radiomics import metrics_images, metrics_model
from simulation.radiomics.metrics_items import ITEMS
from simulation.radiomics.metrics_known import Json, Known

if TYPE_CHECKING:
    from simulation.radiomics.report_facts import World

ANSWERS = (*metrics_images.ANSWERS, *metrics_model.ANSWERS)


def checklist(world: World, record: Record, facts: Json) -> list[dict[str, Any]]:
    """The 30 items in order: number, section, item, filled, text.

    `record` is the federation's; `facts` is what `radiomics.json` holds so far, any key of which may be missing.
    """
    known = Known(world, record, facts)
    rows = []
    for item, answer_of in zip(ITEMS, ANSWERS, strict=True):
        answer = answer_of(known)
        text = answer.text if answer.whole else f"{answer.text} To be written: {item.to_write}.".strip()
        rows.append(
            {"number": str(item.number), "section": item.section, "item": item.item, "filled": answer.whole, "text": text}
        )
    return rows
