"""A drawing becomes the mask of a volume: put on its grid, checked, and with what its reader looked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fl_client.intake.labels import LabelMap
from fl_client.intake.mask import Drawing, MaskRefused, Notes, onto_grid
from fl_client.intake.plausibility import check_volume
from tasks.case import Volume


def place(volume: Volume, drawing: Drawing, labels: LabelMap) -> tuple[Volume, Notes]:
    """The volume with this mask, and what the cohort remembers of it: `mask_resampled/<series>` and the drawing's own notes.

    `mask_annotated/<series>` names the structures that the reader looked for, where those are not all of the label map.
    Raises `MaskRefused` for a mask that doesn't fit, can't be right, or holds what the label map says isn't drawn there.
    """
    mask, resampled = onto_grid(drawing, volume)
    present = {int(value) for value in np.unique(mask)}
    annotated = labels.looked_for(volume.series, present)
    drawn = replace(volume, mask=mask, annotated=annotated)
    check_volume(drawn, labels)
    notes: Notes = {f"mask_resampled/{volume.series}": resampled}
    notes |= {f"mask_{name}/{volume.series}": value for name, value in drawing.notes.items()}
    names = ", ".join(map(labels.name, annotated))
    if more := sorted(present - {0, *labels.role("unknown"), *annotated}):
        raise MaskRefused(
            f"it holds {', '.join(map(labels.name, more))}, and the label map says that {volume.series} has {names} alone"
        )
    if len(annotated) < len(labels.structures) - len(labels.role("unknown")):
        notes[f"mask_annotated/{volume.series}"] = names
    return drawn, notes
