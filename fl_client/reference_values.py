"""Reference values that this hospital compares its patients with: `konsil-site add-reference-values`, and one patient's places.

    <site>/reference_values.json    curves by sex and age of one study, with where they come from

A study of reference values leaves a noisy sum and a record. From these the curves are worked out here, once; they replace those
of an earlier study. What is said of a patient is computed from the patient's own masks and stays in the hospital.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from conf.study import words
from fl_client.counted import counted_sum
from fl_client.sharing import file_mode
from fl_client.site import Site
from tasks.case import Case
from tasks.reference_values.measures import Mask, ventricle
from tasks.reference_values.place import Place, places
from tasks.reference_values.task import ReferenceTask
from tasks.reference_values.values import ReferenceValues, reference_values
from tasks.task import load


def add_reference_values(site: Site, run: Path) -> int:
    """Work out the curves of a run's folder (`model.pt` beside `record.json`) and keep them; print what they say.

    Raises `ValueError` and `OSError` in words, having written nothing, for a run of another kind and for a sum that isn't the
    record's.
    """
    values = values_of(run if run.is_dir() else run.parent)
    place = site.reference_values_path
    part = place.with_suffix(".part")
    part.touch(mode=file_mode(site.folder))
    part.write_text(values.model_dump_json())
    part.replace(place)
    told = sum(bool(curve.ages) for curve in values.curves)
    print(
        f"{site.name} now has the reference values of study {values.study}: {told} of {len(values.curves)} curves say something"
    )
    for line in lines(values):
        print(line)
    return 0


def values_of(folder: Path) -> ReferenceValues:
    """The reference values of a run's folder. Raises `ValueError` and `FileNotFoundError` in words."""
    found = counted_sum(folder, task="reference_values", called="reference values")
    task = load(found.task)
    if not isinstance(task, ReferenceTask):
        raise ValueError(f"study {found.provenance.study} is no study of reference values")
    return reference_values(task, found.state, found.provenance)


def kept(site: Site) -> ReferenceValues | None:
    """The hospital's reference values; None if it has none. Raises `ValueError` for a file that holds something else."""
    place = site.reference_values_path
    try:
        return ReferenceValues.model_validate_json(place.read_text())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ValueError(
            f"{place} holds no reference values that this konsil can read: {words(error).splitlines()[0]}"
        ) from None


def placed(case: Case, values: ReferenceValues, masks: Mapping[str, Mask] | None = None) -> list[Place]:
    """Where a patient stands, by `masks` (series: mask) or by those in the case. `ValueError` for what can't be measured."""
    found = masks
    if found is None:
        found = {volume.series: volume.mask for volume in case.volumes if volume.mask is not None}
    return places(ventricle(case, values.settings, found), values)


def lines(values: ReferenceValues) -> list[str]:
    """Medians with 5th and 95th percentile in the middle of what is told, a line for each measure and sex."""
    result = []
    for curve in values.curves:
        who = f"  {curve.measure.words}, {'women' if curve.sex == 'F' else 'men'}: "
        if not curve.ages:
            result.append(who + "too few patients, or too much noise, to say anything")
            continue
        age = curve.ages[len(curve.ages) // 2]
        (low, _, median, _, high), ((_, _, least, _, _), (_, _, most, _, _)) = (
            curve.percentiles([age])[0],
            (one[0] for one in curve.interval([age])),
        )
        doubt = "; the curves' shape is in doubt" if curve.misfit < 0.01 else ""
        result.append(
            f"{who}{median:.0f} {curve.measure.unit} at {age} ({least:.0f} to {most:.0f} with 95 % certainty), 5th to 95th "
            f"percentile {low:.0f} to {high:.0f}; told from {curve.ages[0]} to {curve.ages[-1]} years{doubt}"
        )
    return result
