"""A finished model trained further on this hospital's own patients, for this hospital: called by `konsil-site personalise`.

    <site>/models/personalised/<study>-<hash>-<steps>/model.pt, study.json, note.json

Nothing leaves, so there is no noise and no line in the ledger; and therefore the model itself may never leave, nor draw the
masks of a study, through which patients would reach others unprotected. `add-model` refuses it. A patient who withdraws takes
along the models that were trained on them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from conf.study import Study
from fl_client import personal
from fl_client.cohort import Cohort
from fl_client.device import device_of
from fl_client.patients import note, usable_patients
from fl_client.privacy import os_noise
from fl_client.privacy import train as dp_sgd
from fl_client.sharing import file_mode, make_folder
from fl_client.site import Site
from fl_client.trained import read_weights
from fl_client.training_cases import training_cases
from tasks.fingerprint import fingerprint
from tasks.scores import mean_scores
from tasks.task import GradientTask, load_for, moving
from tasks.weights import save


@dataclass(frozen=True)
class Personalised:
    """What was made."""

    folder: Path
    patients: int  # trained on: for the hospital's own eyes
    before: float  # mean loss of the first step
    after: float  # and of the last
    tested: int = 0  # patients who were held back from every training
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # their mean scores before and after


def personalise(site: Site, study: Study, file: Path, *, steps: int) -> Personalised:
    """Train the study's model in `file` (`model.pt`, or its folder) further, for `steps` steps, and write it down.

    The loop, its bound on one patient's gradient and its learning rate are the study's; there is no noise. This hospital's own
    parameters (`training.personal`) stand in the place of those in the file; what is frozen stays. Raises `ValueError` in
    words for a task without a network, weights of another network, no patient to learn from, fewer steps than one, and a
    patient who withdraws meanwhile.
    """
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, not {steps}")
    task = load_for(study, models=site.models_folder)
    if not isinstance(task, GradientTask):
        raise ValueError(f"task {study.task['name']} is counted: there is no network to train further")
    file = file / "model.pt" if file.is_dir() else file
    model, state = task.model(), read_weights(file)
    try:
        model.load_state_dict(personal.worn(site, study, state))
    except RuntimeError as error:
        raise ValueError(f"{file} is not a model of study {study.name}: {str(error).splitlines()[-1].strip()}") from None
    cases = training_cases(site, study, task)
    cohort, patients = cases.real.cohort, cases.real.patients
    if not patients:
        raise ValueError(f"{site.name} has no training patient whom study {study.name} can use")
    _, held_back = usable_patients(site, study, task, "test")
    scored = [_mean_scores(task, model, cohort, held_back)]
    parameters = dict(model.named_parameters())
    report = dp_sgd(
        model,
        cases,
        parameters=[parameters[name] for name in moving(study, task, model)],
        loss=task.loss,
        steps=steps,
        sample_rate=study.training.sample_rate,
        views=study.training.views,
        declared_size=len(cases.patients),  # exact, since it stays here
        max_grad_norm=study.privacy.max_grad_norm,
        noise_multiplier=0.0,
        optimizer=study.training.optimizer,
        learning_rate=study.training.learning_rate,
        weight_decay=study.training.weight_decay,
        noise=os_noise(),
        sampling_rng=np.random.default_rng(site.noise_seed),
        device=device_of(site),
    )
    for patient, reason in report.failed.items():
        note(site, patient=patient, left_out=reason)
    losses = [float(np.mean(step)) for step in report.losses if step]
    folder = _write(site, study, model, steps=steps, patients=patients, made_of=fingerprint(state))
    if away := cohort.withdrawn.intersection(patients):  # asked last: whoever withdraws from here on finds the model
        for patient in away:
            forget(site, patient)
        raise ValueError(f"{site.name}: one of these patients withdrew meanwhile, so no model was kept; personalise again")
    scored.append(_mean_scores(task, model, cohort, held_back))
    scores = {name: (value, scored[1][name]) for name, value in scored[0].items() if name in scored[1]}
    first, last = (losses[0], losses[-1]) if losses else (np.nan, np.nan)
    return Personalised(folder, len(patients), first, last, len(held_back), scores)


def _mean_scores(task: GradientTask, model: torch.nn.Module, cohort: Cohort, patients: Sequence[str]) -> dict[str, float]:
    """Mean of each score over these patients, as far as it is defined for them. For the hospital's own eyes."""
    model.eval()
    return mean_scores([task.score(model, cohort.case(patient), full=False) for patient in patients])


def made_here(site: Site, sha: str) -> bool:
    """Whether these weights (their fingerprint) were personalised here."""
    return any(said.get("fingerprint") == sha for _, said in _notes(site))


def forget(site: Site, pseudonym: str) -> int:
    """Take away the models that were trained on this patient; how many there were."""
    theirs = [folder for folder, said in _notes(site) if pseudonym in said.get("patients", [pseudonym])]
    for folder in theirs:
        shutil.rmtree(folder)
    return len(theirs)


def _write(site: Site, study: Study, model: torch.nn.Module, *, steps: int, patients: Sequence[str], made_of: str) -> Path:
    """A folder that is there whole or not at all; one of the same name goes."""
    above = site.models_folder / "personalised"
    place, part = above / f"{study.name}-{study.hash[:12]}-{steps}", above / f".{uuid4().hex}.part"
    make_folder(part)
    try:
        state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        said = {
            "note": "trained on this hospital's patients without noise: it must not leave the house",
            "study": study.name,
            "study_hash": study.hash,
            "steps": steps,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "made_of": made_of,
            "fingerprint": fingerprint(state),
            "patients": list(patients),
        }
        _text(part / "note.json", said)
        _text(part / "study.json", study.model_dump(mode="json"))
        save(state, part / "model.pt", mode=file_mode(part))
        if place.exists():
            shutil.rmtree(place)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def _text(path: Path, said: Mapping[str, object]) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file_mode(path.parent)), "w") as file:
        file.write(json.dumps(said, indent=1))
        file.flush()
        os.fsync(file.fileno())


def _notes(site: Site) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each model's folder and what its note says. One that can't be read says nothing, and counts as about everybody."""
    above = site.models_folder / "personalised"
    for folder in sorted(above.iterdir()) if above.is_dir() else []:
        try:
            said = json.loads((folder / "note.json").read_text())
        except (OSError, ValueError):
            said = {}
        yield folder, said if isinstance(said, dict) else {}
