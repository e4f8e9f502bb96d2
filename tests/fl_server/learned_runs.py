"""Run folders as a coordinator's process leaves them, around a small network that has learned a few generated hearts."""

import numpy as np
import torch

from conf.study import Study
from fl_server.record import Record, Round, SiteRound
from simulation.hospital_case import patient_case
from simulation.reader import Reader
from simulation.scanner import random_scanner
from tasks.fingerprint import fingerprint
from tasks.task import load
from tasks.weights import save

HEART = {
    "name": "segmentation",
    "series": ["cine_ed"],
    "structures": {"blood_pool": 1, "myocardium": 4},  # 4: a mask value that is not the class's number
    "voxels": 32,
    "field_mm": 192,
    "roi_mm": 120,
    "working_mm": 3,
    "channels": [8, 16, 16],
    "strides": [2, 2],
    "head_channels": 8,
}


def generated(seed, series="cine_ed"):
    """A generated patient's case, its myocardium with the mask value 4."""
    case = patient_case(
        seed,
        scanner=random_scanner(seed),
        reader=Reader(),
        case_mix={"normal": 1.0},
        series=(series,),
        oversampling=1,
        subslices=1,
    )
    for volume in case.volumes:
        volume.mask[volume.mask == 2] = 4
    return case


def learn(task_settings, cases, *, steps):
    """Weights after a few steps of plain Adam."""
    torch.manual_seed(0)
    task = load(task_settings)
    model, rng = task.model(), np.random.default_rng(0)
    prepared = [task.prepare(case) for case in cases]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        image, target = task.example(prepared[step % len(prepared)], 8, rng)
        optimizer.zero_grad()
        task.loss(model(image), target).mean().backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def write_run(folder, task_settings, state, *, answer="used", sites=("clinic", "north"), **study):
    """A folder with record.json and model.pt; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = Study(name=folder.name, konsil_version="0.3.0", task=task_settings, rounds=1, sites=sites, **study)
    record = Record.begin(asked)
    answers = {site: SiteRound(answer="used", epsilon=1.5) for site in sites}
    answers[sites[-1]] = SiteRound(answer=answer, reason="" if answer == "used" else "the disk was full", epsilon=1.5)
    record.rounds.append(Round(round=1, sites=answers, seconds=1.0, arrays_sha256=fingerprint(state)))
    for site in record.sites.values():
        site.epsilon, site.delta = 1.5, 1e-3
    record.judge()
    record.write(folder / "record.json")
    save(state, folder / "model.pt")
    return folder
