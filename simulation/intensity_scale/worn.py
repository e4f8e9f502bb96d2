"""Free patients in the intensities of hospitals: the scales that counting studies released, and who wears which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fl_client.counted import counted_sum
from tasks.case import Case
from tasks.intensity_scale.released import IntensityScale, intensity_scale
from tasks.intensity_scale.task import IntensityTask
from tasks.task import load


def scale_of(folder: Path | str) -> IntensityScale:
    """The scale that a study's run left in its folder. Raises `ValueError` and `FileNotFoundError` in words."""
    found = counted_sum(Path(folder), task="intensity_scale", called="intensities")
    task = load(found.task)
    if not isinstance(task, IntensityTask):
        raise ValueError(f"study {found.provenance.study} is no study of an intensity scale")
    return intensity_scale(task, found.state, found.provenance)


def scales_of(folders: Sequence[Path | str], series: Sequence[str]) -> list[IntensityScale]:
    """The scales of these folders, for patients with these series.

    Raises `ValueError` for a folder that has no scale, and for one whose scale is of none of these series.
    """
    found = []
    for folder in folders:
        try:
            scale = scale_of(folder)
        except OSError as error:
            raise ValueError(str(error)) from None
        if not set(scale.settings.series) & set(series):
            raise ValueError(f"the scale of {folder} is of {', '.join(scale.settings.series)}; there are {', '.join(series)}")
        found.append(scale)
    return found


def dressed(case: Case, number: int, scales: Sequence[IntensityScale]) -> Case:
    """The free patient of this number in the scale whose turn it is; as drawn if there is none."""
    return scales[number % len(scales)].worn_by(case) if scales else case
