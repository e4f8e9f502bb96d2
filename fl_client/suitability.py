"""How many training patients a study's task can use here: told on the hospital's own screen, with its yes or without one.

A study that nobody here fits is not refused later on, because a refusal would tell the coordinator so: its rounds are paid
for and release noise alone. So the person who decides should know. The count is the one that training makes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from conf.study import Study
from fl_client.patients import chosen
from fl_client.site import Site
from fl_client.training_cases import usable_cases
from tasks.task import GradientTask, load_for

TOLD = 10
"""So many patients are named with their reasons; the others are counted."""


@dataclass(frozen=True)
class Usable:
    """Whom a study can use here, in numbers and in words."""

    count: int  # of patients
    left_out: Mapping[str, str]  # pseudonym: reason
    asked: tuple[str, ...]  # what the study asks of patients and images
    headline: str  # empty if the task can't be run here
    warning: str  # empty if there is nothing to warn of


def count_usable(site: Site, study: Study) -> Usable:
    """Count whom of the training patients the study's task can use.

    Prepares their arrays, as the first round would. Raises `OSError` if there can't be a cohort here.
    """
    try:
        task = load_for(study, models=site.models_folder)
    except ValueError as error:
        return Usable(0, {}, (), "", f"{site.name} can't take part in study {study.name}: {error}")
    asked = []
    if study.selection is not None:
        asked.append(f"study {study.name} asks for patients with {study.selection}")
    if study.quality is not None:
        asked.append(f"study {study.name} asks for images with {study.quality}")
    _, usable, left_out = chosen(site, study, task, "train")
    synthetic, unused = usable_cases(site, study, task) if isinstance(task, GradientTask) else ({}, {})
    headline = (
        f"{len(usable)} of {len(usable) + len(left_out)} training patients at {site.name} can be used for study {study.name}"
        + (f"; {len(left_out)} can't" if left_out else "")
        + (f"; beside them {len(synthetic)} of {len(synthetic) + len(unused)} synthetic cases" if synthetic or unused else "")
    )
    warning = ""
    if not usable:
        paid = "its rounds would be paid for, and what they release would be noise alone"
        bare = "it promises no privacy, and the model would come back unchanged, which tells the coordinator so"
        warning = f"no training patient at {site.name} can be used for study {study.name}: "
        warning += paid if study.privacy.kind == "patient" else bare
    return Usable(len(usable), left_out, tuple(asked), headline, warning)


def tell_usable(site: Site, study: Study) -> int:
    """Print how many of the training patients the study's task can use, and why not the others; warn if it can use nobody.

    Returns the number. Raises `OSError` if there can't be a cohort here.
    """
    found = count_usable(site, study)
    tell(found)
    return found.count


def tell(found: Usable) -> None:
    """Print it; a warning goes to standard error."""
    for line in found.asked:
        print(line)
    if found.headline:
        print(found.headline + (":" if found.left_out else ""))
    for patient, reason in list(found.left_out.items())[:TOLD]:
        print(f"  {patient}: {reason}")
    if len(found.left_out) > TOLD:
        print(f"  and {len(found.left_out) - TOLD} more; log/training.jsonl names them all once a round is trained")
    if found.warning:
        print(f"WARNING: {found.warning}", file=sys.stderr)
