from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from fl_client.intake.deidentify import Deidentifier
from fl_client.site import Budget, Site
from simulation import hospital
from simulation.dicom import Identity
from simulation.hospital import KEY, dealt, drawn, pooled, real
from simulation.machine import Immediately
from simulation.scanner import Scanner
from simulation.settings import FolderHospitals, GeneratedHospital, GeneratedHospitals, RealHospital

SUNNYBROOK = Path(__file__).parents[1] / "data" / "sunnybrook"


class Progress(list):
    def __call__(self, done, total):
        self.append((done, total))


def generated(*, patients=5, test_fraction=0.2, dicom=False, name="a", snr=30):
    scanner = Scanner(name=name, matrix=64, pixel_mm=4, snr=snr)
    kind = GeneratedHospital(scanner=scanner, case_mix={"normal": 1.0}, through_dicom=dicom)
    return kind, GeneratedHospitals(
        source="generated",
        patients=patients,
        series=("cine_ed",),
        oversampling=1,
        subslices=1,
        test_fraction=test_fraction,
        sites={name: kind},
    )


def draw(cache, *, index=0, advance=lambda done, total: None, **settings):
    kind, every = generated(**settings)
    return drawn(kind.scanner.name, index, kind, every, cache=cache, pool=Immediately(), advance=advance)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Hospitals with the same scanner draw the same patients, so that tests may share what they drew."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def drawing(monkeypatch):
    """Seeds of the patients that are really drawn."""
    seeds, draw_one = [], hospital.patient_case

    def counted(seed, **settings):
        seeds.append(seed)
        return draw_one(seed, **settings)

    monkeypatch.setattr(hospital, "patient_case", counted)
    return seeds


@pytest.mark.parametrize(
    ("patients", "test_fraction", "tested"), [(2, 0.2, 1), (4, 0.2, 1), (5, 0.4, 2), (6, 0.5, 3), (2, 0.9, 1)]
)
def test_exactly_the_stated_share_and_at_least_one_on_either_side(cache, patients, test_fraction, tested):
    found = draw(cache, patients=patients, test_fraction=test_fraction)
    assert len(found.cohort) == found.cases_expected == patients
    assert len(found.test_patients) == tested
    assert len(found.cohort.split("train", test_fraction=test_fraction)) == patients - tested


def test_the_second_call_draws_nothing_and_a_larger_hospital_only_the_new_patients(tmp_path, drawing):
    first = draw(tmp_path, patients=3)
    assert len(drawing) == 3
    progress = Progress()
    again = draw(tmp_path, patients=3, advance=progress)
    assert len(drawing) == 3
    assert progress == [(3, 3)]
    assert (again, again.identity) == (first, first.identity)
    larger = draw(tmp_path, patients=5)
    assert len(drawing) == 5
    assert set(first.cohort.patients) < set(larger.cohort.patients)


def test_a_larger_hospital_in_the_cache_does_not_lend_its_patients_to_a_smaller_one(tmp_path, drawing):
    larger = draw(tmp_path, patients=5)
    drawing.clear()
    smaller = draw(tmp_path, patients=3)
    assert drawing == []
    assert (len(smaller.cohort), len(smaller.test_patients)) == (3, 1)
    assert len(larger.cohort) == 5
    assert smaller.identity != larger.identity


def test_a_draw_that_was_killed_goes_on_with_the_missing_patients(tmp_path, drawing, monkeypatch):
    admit = hospital.Cohort.admit

    def dies_at_the_third(cohort, case):
        if len(drawing) == 3:
            raise KeyboardInterrupt
        admit(cohort, case)

    with monkeypatch.context() as patch:
        patch.setattr(hospital.Cohort, "admit", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path, patients=5)
    progress = Progress()
    found = draw(tmp_path, patients=5, advance=progress)
    assert len(drawing) == 3 + 3  # two were there, the third is drawn a second time
    assert progress == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert len(found.cohort) == 5


def test_other_scanners_and_other_places_in_the_list_have_other_patients(cache):
    here, noisy, second = draw(cache, patients=2), draw(cache, patients=2, snr=10), draw(cache, index=1, patients=2)
    assert here.cohort.patients == noisy.cohort.patients  # the same people ...
    patient = here.cohort.patients[0]
    images = [h.cohort.case(patient).volumes[0].image for h in (here, noisy)]
    assert not np.array_equal(*images)  # ... seen by another scanner
    assert set(here.cohort.patients).isdisjoint(second.cohort.patients)
    assert len({here.identity, noisy.identity, second.identity}) == 3


def test_patients_who_come_in_as_dicom_are_those_handed_over_under_other_names(cache):
    direct, through = draw(cache, patients=2), draw(cache, patients=2, dicom=True)
    assert (len(through.cohort), through.refused) == (2, {})
    assert (len(direct.test_patients), len(through.test_patients)) == (1, 1)
    pseudonym = Deidentifier(KEY).pseudonym
    everyone = draw(cache, patients=12)  # the split goes by pseudonym, so that other seeds may fill the two hospitals
    names = {pseudonym(Identity.invent(patient).patient_id): patient for patient in everyone.cohort.patients}
    assert set(through.cohort.patients) <= set(names)
    for case in through.cohort:
        expected = everyone.cohort.case(names[case.patient])
        assert np.array_equal(case.volumes[0].image, expected.volumes[0].image)
        assert np.array_equal(case.volumes[0].mask, expected.volumes[0].mask)
        assert np.allclose(case.volumes[0].affine, expected.volumes[0].affine, atol=1e-8)
        assert case.endpoints == expected.endpoints


def test_the_settings_file_that_a_hospital_writes_loads_and_leads_to_its_cohort(cache, tmp_path):
    found = draw(cache, patients=2)
    path = found.settle(tmp_path / "study", budget=Budget(epsilon=3.0, delta=1e-4), private=True, noise_seed=5)
    site = Site.load(path)
    assert (site.name, site.declared_size, site.test_fraction, site.noise_seed) == ("a", 5, 0.2, 5)
    assert site.budget == Budget(epsilon=3.0, delta=1e-4)
    assert (site.approve_all, site.accept_no_privacy) == (True, False)
    assert hospital.Cohort(site.cohort_folder).patients == found.cohort.patients
    assert not site.ledger_path.exists()
    assert found.settle(tmp_path / "study", budget=Budget(), private=False, noise_seed=5) == path
    assert Site.load(path).accept_no_privacy


def test_the_declared_size_is_a_round_number_of_training_patients():
    sizes = {n: hospital.Hospital("a", Path("x"), 0.2, "", n, {}).declared_size for n in (4, 10, 48, 60)}
    assert sizes == {4: 5, 10: 10, 48: 40, 60: 50}


def test_pooled_holds_everyone_once_and_forgets_who_is_no_longer_there(cache, tmp_path):
    first, second, third = (draw(cache, index=i, patients=2) for i in range(3))
    both = pooled("pooled", {"a": first, "b": second}, tmp_path)
    assert both.cohort.patients == tuple(sorted(first.cohort.patients + second.cohort.patients))
    assert both.cases_expected == 4
    assert both.test_patients == tuple(sorted(first.test_patients + second.test_patients))
    again = pooled("pooled", {"a": first, "b": second}, tmp_path)
    assert again.identity == both.identity
    other = pooled("pooled", {"a": first, "c": third}, tmp_path)
    assert other.cohort.patients == tuple(sorted(first.cohort.patients + third.cohort.patients))
    noisy = pooled("pooled", {"a": draw(cache, patients=2, snr=10), "c": third}, tmp_path)
    patient = first.cohort.patients[0]
    expected = draw(cache, patients=2, snr=10).cohort.case(patient).volumes[0].image
    assert np.array_equal(noisy.cohort.case(patient).volumes[0].image, expected)


# -- images in folders ------------------------------------------------------------------------------------------------


def write_pair(folder, stem, *, image=True, mask=True):
    rng = np.random.default_rng(sum(map(ord, stem)))
    values = np.zeros((4, 12, 12), np.uint8)
    values[1:3, 3:6, 3:9], values[1:3, 6:9, 3:9] = 1, 2
    for kind, wanted, array in (
        ("images", image, rng.integers(0, 200, values.shape).astype(np.int16)),
        ("masks", mask, values),
    ):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        if wanted:
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / kind / f"{stem}.nii.gz"))


def folders(folder, **settings):
    fields = {"images": str(folder / "images"), "masks": str(folder / "masks"), "labels": "hippocampus", "series": ("t1",)}
    return FolderHospitals.model_validate({"source": "folders", "sites": ("east", "west"), **fields, **settings})


def deal(settings, cache):
    return dealt(settings, cache=cache, advance=Progress())


def test_folders_are_dealt_out_like_cards_and_no_patient_lies_in_two_hospitals(tmp_path):
    for i in range(7):
        write_pair(tmp_path, f"p{i}")
    sites, held_out = deal(folders(tmp_path, held_out=("island",)), tmp_path / "cache")
    assert (list(sites), list(held_out)) == (["east", "west"], ["island"])
    counts = [len(h.cohort) for h in (*sites.values(), *held_out.values())]
    assert counts == [3, 2, 2]
    pseudonym = Deidentifier(KEY).pseudonym
    assert set(sites["east"].cohort.patients) == {pseudonym(f"p{i}") for i in (0, 3, 6)}
    # with one hospital fewer the hands are other ones; nothing of the former deal may stay
    sites, _ = deal(folders(tmp_path), tmp_path / "cache")
    assert [len(h.cohort) for h in sites.values()] == [4, 3]
    assert set(sites["east"].cohort.patients).isdisjoint(sites["west"].cohort.patients)
    sites, _ = deal(folders(tmp_path, patients=2), tmp_path / "cache")
    assert [len(h.cohort) for h in sites.values()] == [2, 2]


def test_an_image_without_a_mask_and_a_mask_without_an_image_are_refused_in_words(tmp_path):
    for stem, parts in (("p0", {}), ("p1", {}), ("p2", {"image": False}), ("p3", {"mask": False})):
        write_pair(tmp_path, stem, **parts)
    sites, _ = deal(folders(tmp_path), tmp_path / "cache")
    assert [len(h.cohort) for h in sites.values()] == [1, 1]
    assert [h.cases_expected for h in sites.values()] == [2, 2]
    assert list(sites["east"].refused.values()) == ["a mask without an image"]
    assert list(sites["west"].refused.values()) == ["an image without a mask"]


def test_files_that_changed_are_let_in_again(tmp_path):
    write_pair(tmp_path, "p0")
    write_pair(tmp_path, "p1", mask=False)
    first, _ = deal(folders(tmp_path), tmp_path / "cache")
    assert len(first["west"].cohort) == 0
    write_pair(tmp_path, "p1")
    second, _ = deal(folders(tmp_path), tmp_path / "cache")
    assert len(second["west"].cohort) == 1
    assert second["west"].identity != first["west"].identity


def test_a_folder_without_images_is_said_to_be_one(tmp_path):
    with pytest.raises(ValueError, match=r"hospitals\.images: no \*\.nii\.gz in"):
        deal(folders(tmp_path), tmp_path / "cache")


# -- real patients ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SUNNYBROOK.is_dir(), reason="the Sunnybrook patients are not in tests/data")
def test_four_real_patients_are_let_in_the_fifth_is_refused_and_none_is_trained_on(tmp_path):
    settings = RealHospital(name="sunnybrook", folder=str(SUNNYBROOK), labels="sunnybrook")
    found = real(settings, cache=tmp_path)
    assert (found.cases_expected, len(found.cohort), len(found.refused)) == (5, 4, 1)
    assert found.test_patients == found.cohort.patients
    written = max(path.lstat().st_mtime_ns for path in tmp_path.rglob("*"))
    assert real(settings, cache=tmp_path) == found
    assert max(path.lstat().st_mtime_ns for path in tmp_path.rglob("*")) == written


def test_a_real_hospital_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(ValueError, match=r"real\.folder: there is no folder nowhere"):
        real(RealHospital(name="x", folder="nowhere", labels="sunnybrook"), cache=tmp_path)
