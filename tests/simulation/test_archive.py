"""Patients to try a hospital with: written by one command, let in as the hospital's documentation says."""

import json
import time

import pydicom
import pytest

from fl_client.__main__ import main as konsil_site_main
from fl_client.cohort import Cohort
from fl_client.site import Site
from simulation.dicom import INVENTED
from simulation.federation.archive import main, send
from simulation.federation.programs import CommandFailed, Daemon, free_port, konsil_site


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two patients of the scanner isar."""
    folder = tmp_path_factory.mktemp("archive") / "isar"
    assert main([str(folder), "--scanner", "isar", "--patients", "2", "--seed", "3"]) == 0
    return folder


def founded(folder, *words):
    settings = folder / "site.yaml"
    assert konsil_site_main(["--site", str(settings), "init", "--name", "trial", "--declared-size", "10", *words]) == 0
    return settings


def test_every_header_says_that_nobody_is_meant(archive):
    images = list(archive.rglob("IM*.dcm"))
    masks = list(archive.rglob("*-mask.dcm"))
    assert len({path.relative_to(archive).parts[0] for path in images}) == 2
    assert len(masks) == 4
    for path in images:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        assert header.PatientComments == header.ImageComments == INVENTED
        assert header.StudyDescription.endswith(" (invented)")
        assert len(header.StudyDescription) <= 64
        assert header.ManufacturerModelName == "rehearsal"
    for path in masks:
        assert pydicom.dcmread(path, stop_before_pixels=True).StudyDescription.endswith(" (invented)")


def test_the_same_words_give_the_same_patients_and_another_seed_others(archive, tmp_path, capsys):
    again, other = tmp_path / "again", tmp_path / "other"
    assert main([str(again), "--scanner", "isar", "--patients", "2", "--seed", "3"]) == 0
    assert f"2 patients who do not exist, on the scanner isar: {len(list(again.rglob('*.dcm')))} DICOM files in {again}" in (
        capsys.readouterr().out
    )
    assert main([str(other), "--scanner", "isar", "--patients", "2", "--seed", "4"]) == 0
    rows = [(folder / "endpoints.csv").read_text() for folder in (archive, again, other)]
    assert rows[0] == rows[1] != rows[2]
    assert not {path.name for path in other.iterdir() if path.is_dir()} & {path.name for path in archive.iterdir()}


def test_they_are_let_in_by_hand_with_images_masks_and_endpoints(archive, tmp_path, capsys):
    settings = founded(tmp_path / "trial")
    assert konsil_site_main(["--site", str(settings), "admit", str(archive)]) == 0
    assert "2 patients: 2 admitted" in capsys.readouterr().out
    for case in Cohort(Site.load(settings).cohort_folder):
        assert {volume.series for volume in case.volumes} == {"cine_ed", "lge"}
        assert all(volume.mask is not None for volume in case.volumes)
        assert "call_08" in case.endpoints
    assert "Invented" not in "".join(json.dumps(case.endpoints) for case in Cohort(Site.load(settings).cohort_folder))


def test_they_are_let_in_when_an_archive_sends_them(archive, tmp_path):
    port = free_port()
    settings = founded(tmp_path / "trial", "--peer", "PACS@127.0.0.1", "--listen", f"127.0.0.1:{port}")
    text = settings.read_text()
    assert "quiet_s: 60" in text
    settings.write_text(text.replace("quiet_s: 60", "quiet_s: 1").replace("min_free_gib: 5", "min_free_gib: 0.1"))
    cohort = Cohort(Site.load(settings).cohort_folder)
    with Daemon("intake", konsil_site(settings, "start", "--only", "intake"), log=tmp_path / "intake.log"):
        end = time.monotonic() + 60
        while True:
            try:
                send(archive, port=port, called="KONSIL", calling="PACS", log=tmp_path / "commands.log")
                break
            except CommandFailed:  # the door isn't open yet
                assert time.monotonic() < end, (tmp_path / "intake.log").read_text()
                time.sleep(0.5)
        while len(cohort) < 2:
            assert time.monotonic() < end, (tmp_path / "intake.log").read_text()
            time.sleep(0.3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--scanner", "north"], "no scanner is called 'north'; there are alster, isar, donau, spree, rhein, neckar"),
        (["--patients", "0"], "'0' is no whole number from 1 to 10000"),
        (["--patients", "-3"], "'-3' is no whole number from 1 to 10000"),
        (["--seed", "x"], "'x' is no whole number from 0 to 10000"),
    ],
)
def test_what_there_is_not_is_refused_in_a_sentence(tmp_path, capsys, words, told):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "new"), *words])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_where_there_is_something(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for folder, told in (
        (tmp_path, "is not empty; name a new folder"),
        (tmp_path / "notes.txt", "is a file; name a new folder"),
    ):
        assert main([str(folder)]) == 1
        assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
