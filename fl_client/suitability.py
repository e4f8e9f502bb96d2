"""How many training patients a study's task can use here: told on the hospital's own screen, with its yes or without one.

A study that nobody here fits is not refused later on, because a refusal would tell the coordinator so: its rounds are paid
for and release noise alone. So the person who decides should know. The count is the one that training makes.
"""

from __future__ import annotations

import sys

from conf.study import Study
from fl_client.patients import chosen
from fl_client.site import Site
from tasks.task import load_for

TOLD = 10
"""So many patients are named with their reasons; the others are counted."""


def tell_usable(site: Site, study: Study) -> int:
    """Print how many of the training patients the study's task can use, and why not the others; warn if it can use nobody.

    Returns the number. Prepares their arrays, as the first round would. Raises `OSError` if there can't be a cohort here.
    """
    try:
        task = load_for(study, models=site.models_folder)
    except ValueError as error:
        print(f"WARNING: {site.name} can't take part in study {study.name}: {error}", file=sys.stderr)
        return 0
    if study.selection is not None:
        print(f"study {study.name} asks for patients with {study.selection}")
    if study.quality is not None:
        print(f"study {study.name} asks for images with {study.quality}")
    _, usable, left_out = chosen(site, study, task, "train")
    print(
        f"{len(usable)} of {len(usable) + len(left_out)} training patients at {site.name} can be used for study {study.name}"
        + (f"; {len(left_out)} can't:" if left_out else "")
    )
    for patient, reason in list(left_out.items())[:TOLD]:
        print(f"  {patient}: {reason}")
    if len(left_out) > TOLD:
        print(f"  and {len(left_out) - TOLD} more; log/training.jsonl names them all once a round is trained")
    if not usable:
        paid = "its rounds would be paid for, and what they release would be noise alone"
        bare = "it promises no privacy, and the model would come back unchanged, which tells the coordinator so"
        print(
            f"WARNING: no training patient at {site.name} can be used for study {study.name}: "
            + (paid if study.privacy.kind == "patient" else bare),
            file=sys.stderr,
        )
    return len(usable)
