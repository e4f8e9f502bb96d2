"""A hospital's first day: settings, key, images in, a study approved before any run; by command line only."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

from conf.study import Study
from fl_client import __main__
from fl_client.__main__ import _parser, main
from fl_client.app import ledger_of
from fl_client.approval import Approvals
from fl_client.cohort import Cohort
from fl_client.intake.write_back import write_nifti
from fl_client.privacy import Event
from fl_client.site import Budget, Site
from fl_server.__main__ import main as coordinator
from simulation.dicom import Identity, write_patient

SUNNYBROOK = Path(__file__).parents[1] / "data" / "sunnybrook"


@pytest.fixture
def clinic(tmp_path):
    """The settings file of a hospital that has just been set up."""
    path = tmp_path / "clinic" / "site.yaml"
    assert (
        main(["--site", str(path), "init", "--name", "clinic", "--declared-size", "50", "--epsilon", "6", "--delta", "1e-4"])
        == 0
    )
    return path


@pytest.fixture
def cases(hospitals):
    """Two patients as a scanner would store them: whole numbers."""
    found = list(Cohort(hospitals.site("a").cohort_folder))[:2]
    return [
        dataclasses.replace(case, volumes=tuple(dataclasses.replace(v, image=v.image.astype(np.int16)) for v in case.volumes))
        for case in found
    ]


def test_a_new_hospital_has_settings_that_load_and_a_key_that_nobody_else_reads(clinic):
    site = Site.load(clinic)
    assert (site.name, site.declared_size, site.budget) == ("clinic", 50, Budget(epsilon=6, delta=1e-4))
    assert (site.approve_all, site.accept_no_privacy, site.noise_seed) == (False, False, None)
    assert site.folder == clinic.parent
    assert len(site.key_file.read_bytes()) == 64
    assert {path.name: path.stat().st_mode & 0o777 for path in clinic.parent.iterdir()} == {
        "site.yaml": 0o600,
        "pseudonym.key": 0o600,
        "node.key": 0o600,
        "node.key.pub": 0o600,
    }
    assert clinic.parent.stat().st_mode & 0o777 == 0o700


def test_the_overview_names_every_command_and_no_other():
    (choices,) = [action.choices for action in _parser()._actions if isinstance(action.choices, dict)]
    told = re.findall(r"^  ([a-z][a-z, -]*?)  ", __main__.__doc__, re.MULTILINE)
    named = {name for part in told for name in part.split(", ")} | set(
        re.findall(r"; (page-token|stop-now): ", __main__.__doc__)
    )
    assert named == set(choices)


def test_a_hospital_is_set_up_once(clinic, capsys):
    key = Site.load(clinic).key_file.read_bytes()
    clinic.unlink()  # even then: a new key would make two people of every patient
    assert main(["--site", str(clinic), "init", "--name", "clinic", "--declared-size", "50"]) == 1
    assert "pseudonym.key stands already" in capsys.readouterr().err
    assert (clinic.parent / "pseudonym.key").read_bytes() == key


def test_wrong_settings_leave_nothing_behind(tmp_path, capsys):
    path = tmp_path / "new" / "site.yaml"
    assert main(["--site", str(path), "init", "--name", "St. Anna", "--declared-size", "0"]) == 1
    said = capsys.readouterr().err
    assert "name: " in said
    assert "declared_size: Input should be greater than or equal to 1 (got 0)" in said
    assert not path.parent.exists()


@pytest.mark.parametrize("missing", ["the table", "the columns"])
def test_where_a_named_file_is_missing_nothing_is_left_behind(tmp_path, capsys, missing):
    command = ["--site", str(tmp_path / "clinic" / "site.yaml")]
    assert main([*command, "init", "--name", "clinic", "--declared-size", "5"]) == 0
    (tmp_path / "rules").mkdir()
    if missing == "the columns":
        (tmp_path / "none.csv").write_text("patient,age\nA1,60\n")
    before = set((tmp_path / "clinic").rglob("*"))
    assert main([*command, "admit", str(tmp_path / "none.csv"), "--columns", str(tmp_path / "rules")]) == 1
    said = capsys.readouterr().err
    assert ("none.csv is missing" if missing == "the table" else "rules: Is a directory") in said
    assert set((tmp_path / "clinic").rglob("*")) == before


def test_dicom_comes_in_and_a_stray_file_is_named_on_the_screen_only(clinic, cases, tmp_path, capsys):
    export = tmp_path / "export"
    for case in cases:
        write_patient(case, export)
    (export / "Müller.txt").write_text("a remark")
    assert main(["--site", str(clinic), "admit", str(export)]) == 0
    said = capsys.readouterr().out
    assert "2 patients: 2 admitted, 0 refused" in said
    assert f"left out: {export / 'Müller.txt'}: not a DICOM file" in said
    assert "Müller" not in (clinic.parent / "cohort" / "refused.jsonl").read_text()
    assert (clinic.parent / "cohort").stat().st_mode & 0o777 == 0o700
    assert main(["--site", str(clinic), "cohort"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 patients in ")
    assert "cine_es: 2 images, 2 with a mask" in said
    assert "1 lines in " in said


@pytest.mark.parametrize("spoil", [lambda case: case.unlink(), lambda case: case.write_text("{")])
def test_a_damaged_folder_is_mended_by_moving_it_away_and_admitting_its_patient_again(clinic, cases, tmp_path, capsys, spoil):
    for case in cases:
        write_patient(case, tmp_path / "export")
    command = ["--site", str(clinic)]
    assert main([*command, "admit", str(tmp_path / "export")]) == 0
    damaged = next((clinic.parent / "cohort" / "cases").iterdir())
    spoil(damaged / "case.json")
    assert main([*command, "cohort"]) == 1
    capsys.readouterr()
    main([*command, "admit", str(tmp_path / "export")])  # replaces nobody of whom more may be known
    assert "2 patients: 1 admitted, 1 refused" in capsys.readouterr().out
    damaged.rename(clinic.parent / "cohort" / "damaged" / damaged.name)  # as the remedy says
    assert main([*command, "cohort"]) == 1
    assert f"{damaged.name}: this patient is not inside; admit all images" in capsys.readouterr().err
    assert main([*command, "admit", str(tmp_path / "export")]) == 0
    assert "2 patients: 2 admitted, 0 refused" in capsys.readouterr().out
    assert main([*command, "cohort"]) == 0
    said = capsys.readouterr().out
    assert "cine_es: 2 images, 2 with a mask" in said
    assert f"1 damaged folders lie in {clinic.parent / 'cohort' / 'damaged'}; delete them" in said


def test_series_rules_choose_what_a_hospital_calls_otherwise(clinic, cases, tmp_path, capsys):
    write_patient(cases[0], tmp_path / "export")
    rules = tmp_path / "series.yaml"
    rules.write_text("rules:\n  - {name: cine_ed, words: [cine, es]}\n")
    assert main(["--site", str(clinic), "admit", str(tmp_path / "export"), "--series-rules", str(rules)]) == 0
    (case,) = Cohort(clinic.parent / "cohort")
    assert [volume.series for volume in case.volumes] == ["cine_ed"]
    np.testing.assert_array_equal(case.volumes[0].image, cases[0].volume("cine_es").image)


@pytest.mark.parametrize(("option", "text"), [("--series-rules", "rules: cine"), ("--labels", "structures: 3")])
def test_wrong_rules_and_label_maps_are_told_under_their_own_name(clinic, tmp_path, capsys, option, text):
    (tmp_path / "wrong.yaml").write_text(text)
    assert main(["--site", str(clinic), "admit", str(tmp_path), option, str(tmp_path / "wrong.yaml")]) == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'wrong.yaml'}: {text.split(':')[0]}: Input should be")


def test_pairs_come_in_and_a_folder_without_any_patient_is_an_error(clinic, cases, tmp_path, capsys):
    images, masks = tmp_path / "images", tmp_path / "masks"
    for folder, what in ((images, "image"), (masks, "mask")):
        folder.mkdir()
        for case in cases:
            volume = case.volume("cine_ed")
            sitk.WriteImage(sitk.GetImageFromArray(np.array(getattr(volume, what))), str(folder / f"{case.patient}.nii.gz"))
    command = ["--site", str(clinic), "admit", str(images), "--masks", str(masks)]
    (masks / f"{cases[1].patient}.nii.gz").unlink()
    assert main([*command, "--series", "cine_es"]) == 0
    said = capsys.readouterr().out
    assert "2 patients: 1 admitted, 1 refused" in said
    assert "refused: an image without a mask" in said
    assert [volume.series for case in Cohort(clinic.parent / "cohort") for volume in case.volumes] == ["cine_es"]
    (masks / f"{cases[0].patient}.nii.gz").unlink()
    assert main(command) == 1


def test_the_sunnybrook_layout_is_known_by_its_folders(clinic, capsys):
    assert main(["--site", str(clinic), "admit", str(SUNNYBROOK), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "5 patients: 4 admitted, 1 refused" in said
    assert "the contours are displaced against each other" in said


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda key: key.unlink(), "pseudonym.key is missing"),
        (lambda key: key.chmod(0o640), "has mode 0640, so others may read it; do: chmod 600"),
        (lambda key: key.write_bytes(b"short"), "the pseudonym key has 5 bytes"),
    ],
)
def test_nothing_comes_in_without_a_sound_key(clinic, cases, tmp_path, capsys, spoil, told):
    write_patient(cases[0], tmp_path / "export")
    spoil(Site.load(clinic).key_file)
    assert main(["--site", str(clinic), "admit", str(tmp_path / "export")]) == 1
    assert told in capsys.readouterr().err
    assert len(Cohort(clinic.parent / "cohort")) == 0


def admit_everybody(hospitals, clinic):
    """The patients of another hospital, and settings that let so few of them take part."""
    for case in Cohort(hospitals.site("a").cohort_folder):
        Cohort(clinic.parent / "cohort").admit(case)
    clinic.write_text(clinic.read_text() + "minimum_cohort: 2\n")


def test_with_fewer_patients_than_the_minimum_nobody_can_say_yes(clinic, hospitals, tmp_path, capsys):
    study = hospitals.study(sites=("clinic",))
    (tmp_path / "study.json").write_text(study.model_dump_json())
    admit_everybody(hospitals, clinic)
    clinic.write_text(clinic.read_text().replace("minimum_cohort: 2", "minimum_cohort: 200"))
    assert main(["--site", str(clinic), "approve", str(tmp_path / "study.json")]) == 1
    assert "fewer than the 200 that this site's minimum_cohort asks for" in capsys.readouterr().err
    assert Approvals(clinic.parent).decisions == {}


def test_a_study_file_is_approved_before_any_run_asks(clinic, hospitals, tmp_path, capsys):
    study = hospitals.study(sites=("clinic",))
    file = tmp_path / "study.json"
    file.write_text(study.model_dump_json())
    admit_everybody(hospitals, clinic)
    assert main(["--site", str(clinic), "approve", str(file), "--who", "Dr. Alpha"]) == 0
    said = capsys.readouterr().out
    assert study.hash in said
    assert "price epsilon 8 (delta 0.001)" in said
    assert "of 6 (delta 0.0001) (over the budget: it will be refused)" in said  # the hospital's own delta and budget
    decision = Approvals(clinic.parent).decisions[study.hash]
    assert (decision.decision, decision.who) == ("approved", "Dr. Alpha")
    assert main(["--site", str(clinic), "studies"]) == 0
    assert "approved by Dr. Alpha" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON: "),
        ("[]", "must hold an object of settings"),
        ('{"rounds": 0}', "rounds: "),
        ('{"rounds": 1, "rounds": 2}', "rounds stands there twice"),
    ],
)
def test_a_file_that_holds_no_study_is_refused_in_words(clinic, tmp_path, capsys, text, told):
    (tmp_path / "study.json").write_text(text)
    assert main(["--site", str(clinic), "show", str(tmp_path / "study.json")]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "study.json") in said
    assert "is no study" in said
    assert told in said


def under(folder):
    """Every file below a folder with what it holds."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_looking_at_a_study_file_leaves_no_trace_and_a_decision_keeps_its_text(clinic, hospitals, tmp_path, capsys):
    file = tmp_path / "study.json"
    strange = hospitals.study(sites=("clinic",), task={"name": "horoscope"})
    before = under(clinic.parent)
    for study, words in (
        (hospitals.study(sites=("clinic",)), "the trained parameters"),
        (strange, "no task named 'horoscope'"),
    ):
        file.write_text(study.to_json())
        assert main(["--site", str(clinic), "show", str(file)]) == 0
        assert words in capsys.readouterr().out
    assert main(["--site", str(clinic), "approve", str(file)]) == 1
    assert "clinic would decline study rehearsal all the same: no task named 'horoscope'" in capsys.readouterr().err
    assert under(clinic.parent) == before
    assert main(["--site", str(clinic), "decline", str(file), "--who", "Dr. Alpha"]) == 0
    assert Approvals(clinic.parent).studies == {strange.hash: strange}
    assert main(["--site", str(clinic), "studies"]) == 0
    assert "declined by Dr. Alpha" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["show"], ["approve"], ["decline"], ["cohort", "--study"], ["ledger", "--study"]])
def test_a_file_that_leaves_open_what_its_task_settles_is_no_study_to_decide_about(clinic, tmp_path, capsys, command):
    task = yaml.safe_load((Path(__file__).parents[2] / "conf" / "task" / "radiomics.yaml").read_text())
    settings = {"name": "lge", "rounds": 1, "sites": ["clinic"], "task": task, "strategy": {"name": "sum"}}
    file = tmp_path / "study.json"
    file.write_text(json.dumps(settings))
    before = under(clinic.parent)
    assert main(["--site", str(clinic), *command, str(file)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "ask the coordinator for what `konsil-study show study.json --json` prints" in said.err
    assert coordinator(["show", str(file), "--json"]) == 0
    file.write_text(capsys.readouterr().out)
    whole = Study.read(file)
    assert coordinator(["show", str(file)]) == 0
    assert capsys.readouterr().out.startswith(whole.hash)
    assert under(clinic.parent) == before
    assert main(["--site", str(clinic), "show", str(file)]) == 0
    assert capsys.readouterr().out.startswith(f"Study           lge, {whole.hash}")


@pytest.mark.parametrize(("said", "told"), [("nowhere.json", "there is no file nowhere.json"), (".", ". is a folder; name a")])
def test_a_study_file_that_is_none_is_told_as_such(clinic, capsys, said, told):
    assert main(["--site", str(clinic), "show", said]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["audit-log", "--last", "-1"], "'-1' is no whole number of at least 0"),
        (["features", "--study", "ab", "--out", "t.csv", "--workers", "0"], "'0' is no whole number of at least 1"),
        (["approve", "ab", "--days", "-1"], "a yes is good for 1 to 3650 days, not '-1'"),
    ],
)
def test_a_number_that_can_not_be_is_refused_before_anything_is_done(clinic, capsys, words, told):
    before = under(clinic.parent)
    with pytest.raises(SystemExit) as ended:
        main(["--site", str(clinic), *words])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert under(clinic.parent) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["join", "token", "--coordinator", "localhost:8443", "--root-certificates", "."], ". is a folder; name the file"),
        (["join", "token", "--coordinator", "localhost:99999", "--root-certificates", "site.yaml"], "not 'localhost:99999'"),
        (["join", "token", "--coordinator", "localhost", "--root-certificates", "site.yaml"], "not 'localhost'"),
        (["count", "--where", "."], ".: Is a directory"),
        (["approve", "."], ". is a folder; name a study's file in it"),
    ],
)
def test_a_folder_for_a_file_and_a_port_that_is_none_are_told_and_nothing_is_written(clinic, monkeypatch, capsys, words, told):
    monkeypatch.chdir(clinic.parent)
    before = under(clinic.parent)
    assert main(["--site", str(clinic), *words]) == 1
    said = capsys.readouterr().err
    assert told in said
    assert "Errno" not in said
    assert said.count("\n") == 1
    assert under(clinic.parent) == before


def test_the_ledger_says_which_releases_protect_nobody(hospitals, capsys):
    book = ledger_of(hospitals.site("a"))
    book.spend(Event(noise_multiplier=2.0, study_name="pilot", round=1, noise="seeded"))
    book.spend(Event(noise_multiplier=2.0, study_name="pilot", round=2))
    assert main(["--site", str(hospitals.sites["a"]), "ledger", "--all"]) == 0
    first, second, _, warning, *_ = capsys.readouterr().out.splitlines()
    assert "repeatable noise" in first
    assert "repeatable noise" not in second
    assert warning.startswith("1 of them with repeatable noise")
    assert json.loads(book.path.read_text().splitlines()[0])["event"]["noise"] == "seeded"


def test_masks_of_their_own_come_in_with_dicom_images(clinic, cases, tmp_path, capsys):
    case = cases[0]
    write_patient(case, tmp_path / "export")
    for path in (tmp_path / "export").rglob("*-mask.dcm"):
        path.unlink()
    number, masks = Identity.invent(case.patient).patient_id, tmp_path / "masks"
    masks.mkdir()
    for volume in case.volumes:
        if volume.mask is not None:
            write_nifti(volume.mask, volume, masks / f"{number}_{volume.series}.nii.gz")
    assert main(["--site", str(clinic), "admit", str(tmp_path / "export"), "--masks", str(masks)]) == 0
    (inside,) = Cohort(clinic.parent / "cohort")
    for volume in case.volumes:
        np.testing.assert_array_equal(inside.volume(volume.series).mask, volume.mask)
    capsys.readouterr()
