"""Everything that is measured on one test patient: volumes, doubt, reliability, other readers, a second scan.

The patient comes from the hospital's cohort, as any model sees it. What needs more than a cohort holds (another reader, another
scan) is made from the seed that the patient was drawn from, and only if that seed still gives the mask that lies there.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt

from conf.study import Frozen
from fl_client.cohort import Cohort
from fl_server.report.measured import BINS, Agreement, Role, Volume
from fl_server.report.measured import Patient as Measured
from simulation.clinical.dropout import dropout
from simulation.phantom import Patient, draw_patient, truth
from simulation.reader import Reader, read
from simulation.scanner import PHASE, Scan, Scanner, affine, plan, scan
from simulation.scoring import device, restore
from tasks.case import UNKNOWN
from tasks.case import Volume as Image
from tasks.segmentation.infer import Segmentation, probabilities, segment
from tasks.segmentation.metrics import volume_scores
from tasks.segmentation.settings import Settings
from tasks.segmentation.task import SegmentationTask
from tasks.task import gradient_task

Mask = npt.NDArray[np.uint8]


class Plan(Frozen):
    """What is done to each patient. None of it was chosen by looking at results."""

    dropout: float = 0.02  # so that passes differ about as much as readers do, a Dice of 0.95
    passes: int = 8
    margin_mm: float = 10.0  # of the voxels whose probabilities are compared with the reader's drawing


@dataclass(frozen=True)
class Origin:
    """Where a generated patient comes from."""

    seed: int
    scanner: Scanner
    case_mix: Mapping[str, float]
    readers: tuple[Reader, ...]  # the hospital's own first
    oversampling: int
    subslices: int


def examine(
    hospital: str,
    role: Role,
    scanner: str,
    patient: str,
    cohort: Path,
    task_settings: dict[str, Any],
    weights: Path,
    dice: dict[str, list[float | None]],
    what: Plan,
    origin: Origin | None,
) -> Measured:
    """Measure one patient with the model in `weights`. Runs in a worker process; equal arguments give equal numbers."""
    task = gradient_task(task_settings)
    if not isinstance(task, SegmentationTask):
        raise ValueError(f"task {task_settings.get('name')!r} draws no masks; there is nothing to measure on a patient")
    settings = task.settings
    model = restore(task, [torch.load(weights, weights_only=True)]).to(device())
    case = Cohort(cohort).case(patient)
    images = [v for v in case.volumes if v.series in settings.series and v.mask is not None]
    found = Measured(hospital=hospital, role=role, patient=patient, scanner=scanner, dice=dice, **facts(case.endpoints))
    drawn = [segment(model, settings, image) for image in images]
    found.volumes = [v for image, seen in zip(images, drawn, strict=True) for v in sizes(image, seen.mask, settings)]
    found.entropy = _mean([entropy(seen) for seen in drawn])
    found.doubt = _mean([doubt(model, settings, image, patient, what) for image in images])
    found.reliability = reliability(model, settings, images, drawn, what.margin_mm)
    if origin is not None:
        person = draw_patient(origin.seed, origin.case_mix)
        views = {image.series: unexposed(person, origin, image.series) for image in images}
        if all(
            np.array_equal(read(views[image.series], person, origin.readers[0], seed=origin.seed).mask, image.mask)
            for image in images
            if image.mask is not None
        ):
            masks = {image.series: seen.mask for image, seen in zip(images, drawn, strict=True)}
            found.readers = readings(person, origin, views, masks, settings)
            second_scan(found, model, settings, person, origin)
    return found


def facts(endpoints: Mapping[str, float | int | str | None]) -> dict[str, Any]:
    """Sex, age and disease, as far as the case tells them."""
    sex, age, disease = (endpoints.get(name) for name in ("sex", "age", "disease"))
    return {
        "sex": str(sex) if sex not in (None, "") else None,
        "age": float(age) if isinstance(age, int | float) else None,
        "disease": str(disease) if disease not in (None, "") else None,
    }


def sizes(image: Image, predicted: Mask, settings: Settings) -> list[Volume]:
    """Drawn and predicted millilitres of every structure in one image; unknown voxels count for neither."""
    ml = float(np.prod(image.spacing_mm)) / 1000
    mask = np.asarray(image.mask)
    known = mask != UNKNOWN
    return [
        Volume(
            series=image.series,
            structure=name,
            drawn_ml=float((mask == value).sum()) * ml if (mask == value).any() else None,
            predicted_ml=float(((predicted == value) & known).sum()) * ml,
        )
        for name, value in settings.structures.items()
    ]


def entropy(seen: Segmentation) -> float:
    """Mean entropy of what was segmented, 0 sure to 1 guessing; 1 where nothing was found, which a person should look at."""
    inside = seen.mask > 0
    return float(seen.uncertainty[inside].mean()) if inside.any() else 1.0


def doubt(model: torch.nn.Module, settings: Settings, image: Image, patient: str, what: Plan) -> float:
    """1 minus the mean Dice between passes under dropout, mean over the structures (Roy et al. 2019, NeuroImage 195:11).

    A structure that no pass found counts as 1: somebody should look.
    """
    seed = zlib.crc32(f"{patient}/{image.series}".encode())
    with dropout(model, probability=what.dropout, seed=seed):
        masks = [segment(model, settings, image).mask for _ in range(what.passes)]
    return float(np.mean([1 - _pairwise([mask == value for mask in masks]) for value in settings.structures.values()]))


def _pairwise(masks: list[npt.NDArray[np.bool_]]) -> float:
    """Mean Dice over all pairs; pairs in which both are empty agree on nothing and count as 0."""
    flat = np.stack([mask.ravel() for mask in masks])
    flat = flat[:, flat.any(0)].astype(np.float32)
    size, common = flat.sum(1), flat @ flat.T
    return float(np.mean([2 * common[i, j] / max(size[i] + size[j], 1) for i, j in combinations(range(len(flat)), 2)]))


def reliability(
    model: torch.nn.Module, settings: Settings, images: list[Image], drawn: list[Segmentation], margin_mm: float
) -> dict[str, list[tuple[int, float, int]]]:
    """By structure: in each bin of predicted probability the voxels, the sum of their probabilities, and how many were drawn.

    Only labelled voxels near something drawn or predicted count: the far background is right for everybody, and would hide all
    else.
    """
    table = {name: np.zeros((BINS, 3)) for name in settings.structures}
    for image, seen in zip(images, drawn, strict=True):
        mask = np.asarray(image.mask)
        there = (seen.mask > 0) | ((mask > 0) & (mask != UNKNOWN))
        if not there.any():
            continue
        near = distance_transform_edt(~there, sampling=image.spacing_mm) <= margin_mm
        counted = near & (mask != UNKNOWN)
        with torch.inference_mode():
            p, _ = probabilities(model, settings, image)
        classes = p.movedim(1, 0).reshape(p.shape[1], *mask.shape).cpu().numpy()
        for index, (name, value) in enumerate(settings.structures.items(), start=1):
            chance = classes[index][counted].astype(np.float64).clip(0, 1)
            bin_of = np.minimum((chance * BINS).astype(int), BINS - 1)
            hit = (mask[counted] == value).astype(np.float64)
            for column, weights in enumerate((None, chance, hit)):
                table[name][:, column] += np.bincount(bin_of, weights=weights, minlength=BINS)
    return {name: [(int(n), float(p), int(h)) for n, p, h in rows] for name, rows in table.items()}


def unexposed(person: Patient, origin: Origin, series: str) -> Scan:
    """The examination of the cohort without its image: where the slices lay, which is all that a reader's contours need."""
    grid = plan(person, origin.scanner, series, seed=origin.seed, oversampling=origin.oversampling, subslices=origin.subslices)
    phase = PHASE[series]
    drawn = truth(person, grid, phase)
    return Scan(
        series=series,  # type: ignore[arg-type]  # PHASE has just known it
        image=np.zeros(drawn.mask.shape, np.uint16),
        mask=drawn.mask,
        lesion=drawn.lesion,
        aha=drawn.aha,
        affine=affine(person, grid),
        inversion_time_ms=None,
        trigger_time_ms=0.0,
        grid=grid,
        phase=phase,
    )


def readings(
    person: Patient, origin: Origin, views: Mapping[str, Scan], predicted: Mapping[str, Mask], settings: Settings
) -> dict[str, Agreement]:
    """By structure: Dice between every two readers, and between the model and every reader; mean over pairs and series."""
    between: dict[str, list[float]] = {name: [] for name in settings.structures}
    with_model: dict[str, list[float]] = {name: [] for name in settings.structures}
    for series, view in views.items():
        masks = [read(view, person, reader, seed=origin.seed).mask for reader in origin.readers]
        for name, value in settings.structures.items():
            drawn = [mask == value for mask in masks]
            between[name] += [_dice(a, b) for a, b in combinations(drawn, 2)]
            with_model[name] += [_dice(a, predicted[series] == value) for a in drawn]
    return {name: Agreement(readers=_mean(between[name]), model=_mean(with_model[name])) for name in settings.structures}


def second_scan(found: Measured, model: torch.nn.Module, settings: Settings, person: Patient, origin: Origin) -> None:
    """The same patient on the same scanner another day: planned, breathed and received anew, read by the same reader."""
    again: dict[str, list[float]] = {name: [] for name in settings.structures}
    fast = {"oversampling": origin.oversampling, "subslices": origin.subslices}
    for series in dict.fromkeys(volume.series for volume in found.volumes):
        taken = scan(person, origin.scanner, series, seed=origin.seed + 1, **fast)  # type: ignore[arg-type]
        mask = read(taken, person, origin.readers[0], seed=origin.seed + 1).mask
        image = Image(series, taken.image, taken.affine, mask)
        predicted = segment(model, settings, image).mask
        sized = {volume.structure: volume for volume in sizes(image, predicted, settings)}
        for volume in found.volumes:
            if volume.series == series:
                second = sized[volume.structure]
                volume.drawn_again_ml, volume.predicted_again_ml = second.drawn_ml, second.predicted_ml
        for name, value in volume_scores(image, predicted, settings, full=False).items():
            again[name.removeprefix("dice/")].append(value)
    found.dice_again = {name: _mean(values) for name, values in again.items()}


def _dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    size = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / size if size else float("nan")


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None
