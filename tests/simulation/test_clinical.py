"""What a rehearsal knows of single test patients: collected from its scores, or measured by asking the model again."""

import json
import shutil
from math import isfinite

import numpy as np
import pytest
import torch
from drawn_radiomics import build as build_radiomics
from monai.networks.nets import UNet

from fl_client.cohort import Cohort
from fl_server.record import Record
from fl_server.report.measured import Measured
from simulation.__main__ import settings_of
from simulation.clinical import classified
from simulation.clinical.__main__ import main
from simulation.clinical.dropout import dropout, has_dropout
from simulation.clinical.one import Origin, _pairwise, sizes, unexposed
from simulation.hospital import seeds_of
from simulation.phantom import draw_patient
from simulation.reader import read
from simulation.scanner import scan
from tasks.case import UNKNOWN, Volume
from tasks.segmentation.settings import Settings


def network():
    torch.manual_seed(0)
    return UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), norm=("group", {"num_groups": 2}))


# -- dropout ------------------------------------------------------------------------------------------------------------


def test_passes_differ_within_and_are_as_before_afterwards():
    model, image = network().eval(), torch.randn(3, 1, 16, 16)
    before = model(image)
    with dropout(model, probability=0.3, seed=1):
        first, second = model(image), model(image)
    assert not torch.equal(first, second)
    assert torch.equal(model(image), before)


def test_equal_seeds_give_equal_passes_and_leave_the_processs_random_numbers_alone():
    model, image = network().eval(), torch.randn(2, 1, 16, 16)
    passes = []
    for _ in range(2):
        state = torch.get_rng_state()
        with dropout(model, probability=0.3, seed=7):
            passes.append(model(image))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*passes)


def test_whole_channels_are_left_out_and_the_others_scaled_up():
    model = torch.nn.GroupNorm(1, 50, affine=False)
    image = torch.randn(4, 50, 3, 3)
    plain = model(image)
    with dropout(model, probability=0.25, seed=3):
        dropped = model(image)
    kept = dropped.abs().amax((2, 3)) > 0
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.75)
    assert kept.float().mean() == pytest.approx(0.75, abs=0.1)


def test_a_model_without_a_norm_is_refused_in_words():
    with pytest.raises(ValueError, match="no norm layer"), dropout(torch.nn.Conv2d(1, 1, 1), probability=0.1, seed=0):
        pass


def test_a_network_tells_whether_it_was_trained_with_dropout():
    assert not has_dropout(network())
    assert has_dropout(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.Dropout2d(0.2)))


# -- one patient --------------------------------------------------------------------------------------------------------


def test_doubt_by_hand():
    one, two, none = (np.array(mask, bool) for mask in ([1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]))
    assert _pairwise([one, two]) == pytest.approx(2 * 1 / 4)
    assert _pairwise([one, two, none]) == pytest.approx((0.5 + 0 + 0) / 3)
    assert _pairwise([none, none]) == 0  # nobody found it: nothing is sure


def test_volumes_by_hand_without_unknown_voxels():
    mask = np.zeros((1, 2, 4), np.uint8)
    mask[0, 0] = [1, 1, 2, UNKNOWN]
    predicted = np.zeros_like(mask)
    predicted[0, 0] = [1, 2, 2, 1]
    image = Volume("cine_ed", np.zeros(mask.shape, np.float32), np.diag([10.0, 10.0, 10.0, 1.0]), mask)  # 1 ml a voxel
    found = {one.structure: (one.drawn_ml, one.predicted_ml) for one in sizes(image, predicted, Settings())}
    assert found == {"blood_pool": (2.0, 1.0), "myocardium": (1.0, 2.0), "right_ventricle": (None, 0.0)}


def test_a_reader_draws_the_same_without_the_image(tiny):
    every = settings_of(tiny.overrides).hospitals
    profile = every.sites["rhein"]
    seed = next(iter(seeds_of("rhein", every).values()))
    person = draw_patient(seed, profile.case_mix)
    origin = Origin(seed, profile.scanner, profile.case_mix, (profile.reader,), every.oversampling, every.subslices)
    taken = scan(person, profile.scanner, "cine_es", seed=seed, oversampling=1, subslices=1)
    drawn = read(unexposed(person, origin, "cine_es"), person, profile.reader, seed=seed).mask
    assert np.array_equal(drawn, read(taken, person, profile.reader, seed=seed).mask)


# -- a whole run --------------------------------------------------------------------------------------------------------


def test_a_rehearsal_ends_with_the_patients_and_the_report(tiny):
    found = Measured.read(tiny.folder / "clinical.json")
    assert found.study_hash == tiny.record.study_hash
    assert found.generated
    assert found.seeds == [0, 1]
    rows = {(r["hospital"], r["patient"], r["seed"]): r["scores"] for r in tiny.scores if r["arm"] == "federation_private"}
    assert {(p.hospital, p.patient) for p in found.patients} == {key[:2] for key in rows}
    for patient in found.patients:
        assert patient.sex in ("F", "M")
        assert 18 <= patient.age <= 89
        assert patient.doubt is None
        for name, values in patient.dice.items():
            assert values == [rows[patient.hospital, patient.patient, seed].get(f"dice/{name}") for seed in (0, 1)]
    page = (tiny.folder / "clinical_report.html").read_text()
    assert "Complete: every hospital was used in every round." in page
    assert "This was not measured in this run" in page
    assert (tiny.folder / "clinical_report.pdf").read_bytes().startswith(b"%PDF-")


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    """The tiny run in a folder of its own, its patients measured."""
    runs = tmp_path_factory.mktemp("measured")
    shutil.copytree(tiny.folder, runs / "rehearsal", symlinks=True)
    shutil.copytree(tiny.folder.parent / "cache", runs / "cache", symlinks=True)
    assert main([str(runs / "rehearsal"), "--workers", "0"]) == 0
    return runs / "rehearsal"


def test_every_test_patient_is_measured_in_every_way(measured, tiny):
    before, after = (Measured.read(folder / "clinical.json") for folder in (tiny.folder, measured))
    assert [p.patient for p in after.patients] == [p.patient for p in before.patients]
    assert [p.dice for p in after.patients] == [p.dice for p in before.patients]
    assert after.methods.rescans
    for patient in after.patients:
        assert 0 <= patient.doubt <= 1
        assert 0 <= patient.entropy <= 1
        assert set(patient.readers) == set(after.structures)
        assert all(agree.readers > 0.6 for agree in patient.readers.values())
        assert all(len(table) == 10 and sum(row[0] for row in table) > 0 for table in patient.reliability.values())
        for volume in patient.volumes:
            assert isfinite(volume.drawn_ml)
            assert isfinite(volume.predicted_again_ml)
            assert volume.drawn_again_ml == pytest.approx(volume.drawn_ml, rel=0.5)


def test_the_drawn_volume_is_that_of_the_cohorts_mask(measured):
    found = Measured.read(measured / "clinical.json")
    patient = next(one for one in found.patients if one.role == "site")
    link = measured / "arms" / "federation_private" / "0" / "sites" / patient.hospital / "cohort"
    volume = Cohort(link.resolve()).case(patient.patient).volume("cine_ed")
    ml = np.prod(volume.spacing_mm) / 1000
    drawn = next(v for v in patient.volumes if (v.series, v.structure) == ("cine_ed", "myocardium"))
    assert drawn.drawn_ml == pytest.approx((np.asarray(volume.mask) == 2).sum() * ml)


def test_the_measured_report_fills_every_section(measured):
    page = (measured / "clinical_report.html").read_text()
    assert "This was not measured" not in page
    for text in (
        "Monte Carlo dropout",
        "Readers among themselves",
        "coefficient (95%)",
        "Ejection fraction",
        "Calibration error",
    ):
        assert text in page


def test_what_was_measured_already_is_not_measured_again(measured):
    path = measured / "arms" / "measured.json"
    kept = json.loads(path.read_text())
    kept["patients"][0]["doubt"] = 0.125
    path.write_text(json.dumps(kept))
    assert main([str(measured), "--workers", "0"]) == 0
    assert Measured.read(measured / "clinical.json").patients[0].doubt == 0.125
    kept["identity"] = "of other weights"
    path.write_text(json.dumps(kept))
    assert main([str(measured), "--workers", "0"]) == 0
    assert Measured.read(measured / "clinical.json").patients[0].doubt != 0.125


def test_a_folder_that_is_no_run_is_refused_in_words(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "settings.json" in capsys.readouterr().err


def test_a_classifiers_areas_and_calibration_come_from_the_study_of_radiomics(tmp_path):
    build_radiomics(tmp_path)
    facts = json.loads((tmp_path / "radiomics.json").read_text())["arms"]["forest_private"]
    found = classified(Record.read(tmp_path / "record.json"), tmp_path)
    assert found.arm == "forest_private"
    assert found.classifier.auc.value == facts["auc"]["value"]
    assert {name: area.value for name, area in found.classifier.by_hospital.items()} == {
        name: area["value"] for name, area in facts["by_hospital"].items()
    }
    assert len(found.classifier.calibration) == len(facts["calibration"])
