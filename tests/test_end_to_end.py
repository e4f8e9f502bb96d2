"""From the archives of two hospitals to a segmentation in the archive of a third, through the code that real ones run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch

from conf.study import LocalTraining, Privacy, Strategy, Study
from fl_client.cohort import Cohort
from fl_client.intake.admit import admit_folder
from fl_client.intake.labels import LabelMap
from fl_client.intake.mask import onto_grid
from fl_client.intake.seg import read_seg
from fl_client.intake.write_back import write_nifti, write_seg
from fl_client.privacy import Ledger
from fl_client.site import Budget, Site
from fl_server.record import Record
from fl_server.rounds import run, versions
from fl_server.weights import initial_state
from simulation.dicom import Identity, write_patient
from simulation.grid import InProcessGrid
from simulation.hospital_case import patient_case
from simulation.reader import Reader
from simulation.scanner import Scanner
from simulation.scoring import restore
from tasks.task import load

TASK = {
    "name": "segmentation",
    "series": ["cine_ed"],
    "voxels": 32,
    "field_mm": 192,
    "roi_mm": None,
    "working_mm": 6,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 0,
    "head_channels": 4,
    "class_weights": [0.2, 1.0, 1.5, 1.0],
}
ROUNDS = 50


def archive(folder: Path, seeds: range, *, vendor: str) -> list[str]:
    """Patients as a hospital's archive holds them. Returns their pseudonyms in the simulator."""
    scanner = Scanner(name=vendor, manufacturer=vendor, matrix=72, pixel_mm=3.5)
    cases = [patient_case(s, scanner, Reader(), {"normal": 1.0}, ("cine_ed",), oversampling=1, subslices=1) for s in seeds]
    for case in cases:
        write_patient(case, folder)
    return [case.patient for case in cases]


def test_archives_become_a_private_model_whose_masks_go_back_into_an_archive(tmp_path: Path, one_thread: None) -> None:
    labels = LabelMap.load("cardiac")
    sites, people = {}, {}
    for number, (name, vendor) in enumerate((("north", "SIEMENS"), ("south", "PHILIPS"))):
        folder = tmp_path / name
        people[name] = archive(tmp_path / "archives" / name, range(100 * number, 100 * number + 4), vendor=vendor)
        key = f"the key of {name}, known to nobody else".encode()
        intake = admit_folder(tmp_path / "archives" / name, Cohort(folder / "cohort"), key=key, labels=labels)
        assert (intake.expected, len(intake.admitted), intake.refused, intake.left_out) == (4, 4, {}, {})
        site = Site(
            name=name,
            folder=folder,
            declared_size=5,
            test_fraction=0.0,
            budget=Budget(epsilon=1000.0, delta=1e-3),
            approve_all=True,
            noise_seed=number,
        )
        site.save(folder / "site.yaml")
        sites[name] = folder / "site.yaml"

    # a promise so weak that eight patients can teach anything; its price is the ledger's business all the same
    study = Study(
        name="end-to-end",
        konsil_version=versions()["konsil"],
        task=TASK,
        rounds=ROUNDS,
        sites=tuple(sites),
        privacy=Privacy(epsilon=900.0, delta=1e-3, max_grad_norm=1.0),
        training=LocalTraining(views=2, learning_rate=1.0),
        strategy=Strategy(
            name="fedadam", server_learning_rate=0.04, server_schedule="cosine", server_warmup=0.1, ema_decay=0.8
        ),
    )
    start = initial_state(study)
    grid = InProcessGrid("fl_client.app:app", [{"site": str(path)} for path in sites.values()], {"study": study.to_json()})
    state, record = run(grid, study, start, folder=tmp_path / "run")

    # every round of both hospitals counts, and each hospital's ledger covers it
    assert (record.verdict, len(record.rounds)) == ("complete", ROUNDS)
    assert Record.read(tmp_path / "run" / "record.json").rounds[-1].arrays_sha256 == record.rounds[-1].arrays_sha256
    for name, path in sites.items():
        site = Site.load(path)
        ledger = Ledger(site.ledger_path, epsilon=site.budget.epsilon, delta=site.budget.delta)
        assert len(ledger.events) == ROUNDS
        assert ledger.epsilon == pytest.approx(record.sites[name].epsilon)
        assert 850 < ledger.epsilon <= 900

    # nothing of a person is in what left the archives
    names = {
        person for name in people for p in people[name] for person in (Identity.invent(p).name, Identity.invent(p).patient_id)
    }
    for path in [*tmp_path.glob("*/cohort/cases/*/case.json"), tmp_path / "run" / "record.json", *sites.values()]:
        text = path.read_text()
        assert not any(person in text for person in names), path

    # the model knows more than it did, and goes to a hospital that took no part
    elsewhere = tmp_path / "archives" / "east"
    (patient,) = archive(elsewhere, range(900, 901), vendor="GE MEDICAL SYSTEMS")
    cohort = Cohort(tmp_path / "east" / "cohort")
    (pseudonym,) = admit_folder(elsewhere, cohort, key=b"the key of the third hospital", labels=labels).admitted
    case = cohort.case(pseudonym)
    volume = case.volumes[0]
    task = load(TASK)
    before, after = (task.score(restore(task, [weights]), case, full=False) for weights in (start, state))
    assert sum(after.values()) > sum(before.values()) + 0.15
    found = task.segment(restore(task, [torch.load(tmp_path / "run" / "model.pt", weights_only=True)]), case)["cine_ed"]
    assert found.mask.shape == volume.image.shape
    assert set(np.unique(found.mask)) - {0}

    # NIfTI: the same voxels, on the places of the original DICOM images
    write_nifti(found.mask, volume, tmp_path / "mask.nii.gz")
    written = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(written), found.mask)
    series = elsewhere / Identity.invent(patient).patient_id / "cine_ed"
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(series.glob("*.dcm"))]
    corners = [written.TransformIndexToPhysicalPoint((0, 0, index)) for index in range(len(images))]
    places = [tuple(map(float, image.ImagePositionPatient)) for image in images]
    assert np.allclose(sorted(corners), sorted(places), atol=1e-3)

    # DICOM SEG: under the patient's own name again, and the intake's reader finds every voxel where it was
    write_seg(found.mask, series, tmp_path / "mask.dcm", labels)
    seg = pydicom.dcmread(tmp_path / "mask.dcm")
    assert seg.PatientName == images[0].PatientName == Identity.invent(patient).name
    assert seg.StudyInstanceUID == images[0].StudyInstanceUID
    returned, resampled = onto_grid(read_seg(seg, labels), volume)
    assert not resampled
    assert np.array_equal(returned, found.mask)
