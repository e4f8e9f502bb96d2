"""Hospitals that keep parameters of their own are scored with them."""

import json
from dataclasses import replace

import pytest
import torch

from conf.study import Study
from simulation.__main__ import main, settings_of
from simulation.arms import Arm
from simulation.hospital import drawn
from simulation.machine import Immediately
from simulation.scoring import score_patient

CHANGES = [
    "arms=[federation_private,pooled]", "rounds=1", "repeats=1", "name=own", 'training.personal=["*.N.*"]',
    "task.trainable=all", "plain_task.trainable=all",
]  # fmt: skip


@pytest.fixture(scope="module")
def own(tiny):
    """The tiny rehearsal with norms that stay at the hospitals: its folder, its hospitals and one arm by name."""
    overrides = [*tiny.overrides, *CHANGES]
    assert main(overrides) == 0
    every, cache = settings_of(overrides).hospitals, tiny.folder.parent / "cache"
    hospitals = {
        name: drawn(name, index, profile, every, cache=cache, pool=Immediately(), advance=lambda done, total: None)
        for index, (name, profile) in enumerate(every.sites.items())
    }
    folder = tiny.folder.parent / "own"

    def arm(name):
        place = folder / "arms" / name / "0"
        found = Arm(name, None, hospitals, place)
        return replace(found, study=Study.from_json(json.dumps(found.record().study)))

    return folder, hospitals, arm


def test_each_hospital_wears_its_own_norms_and_nobody_else_does(own):
    _, hospitals, arm = own
    arm = arm("federation_private")
    common, worn = arm.state(), {name: arm.worn(name) for name in hospitals}
    norms = {key for key in common if ".N." in key}
    assert norms
    for name, state in worn.items():
        assert {key for key in common if not torch.equal(state[key], common[key])} == norms, name
    assert all(not torch.equal(worn["donau"][key], worn["rhein"][key]) for key in norms)
    assert all(torch.equal(arm.worn("limmat")[key], tensor) for key, tensor in common.items())


def test_its_patients_are_scored_with_them(own, tiny):
    folder, hospitals, arm = own
    arm = arm("federation_private")
    task = settings_of([*tiny.overrides, *CHANGES]).task
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    differ = 0
    for name, hospital in hospitals.items():
        for patient in hospital.test_patients:
            (row,) = (r for r in rows if (r["arm"], r["hospital"], r["patient"]) == (arm.name, name, patient))
            for state, same in ((arm.worn(name), True), (arm.state(), False)):
                _, scores = score_patient(dict(task), [state], hospital.cohort_folder, patient, False)
                apart = max(abs(row["scores"][key] - value) for key, value in scores.items() if key in row["scores"])
                assert not same or apart < 1e-6
                differ += not same and apart > 1e-6
    assert differ


def test_one_hospital_with_everybodys_patients_learns_all_parameters(own):
    _, _, arm = own
    study = arm("pooled").study
    assert study.training.personal == ()
    assert arm("federation_private").study.training.personal == ("*.N.*",)
