"""`konsil-study report`: where it looks for a study, what it writes, and what it says where there is none."""

import measured_run as runs
import pytest

from fl_server.__main__ import main
from fl_server.house import House


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return House.create(tmp_path / "house", hosts=["localhost"], tls=False)


def test_a_folder_with_a_record_gets_both_files(tmp_path, capsys):
    place = runs.folder(tmp_path / "pilot", runs.record())
    assert main(["report", str(place)]) == 0
    assert capsys.readouterr().out.split() == [str(place / name) for name in ("clinical_report.html", "clinical_report.pdf")]
    assert (place / "clinical_report.pdf").read_bytes().startswith(b"%PDF-")


def test_a_study_is_found_at_the_coordinator_by_its_name_and_written_elsewhere(house, tmp_path):
    runs.folder(house.runs / "pilot", runs.record())
    out = tmp_path / "out"
    assert main(["report", "pilot", "--folder", str(house.folder), "--to", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"clinical_report.html", "clinical_report.pdf"}
    assert {path.name for path in (house.runs / "pilot").iterdir()} == {"record.json"}


def test_a_study_that_is_not_there_is_told_in_words(house, tmp_path, capsys):
    assert main(["report", "nobody", "--folder", str(house.folder)]) == 1
    assert "no study 'nobody'" in capsys.readouterr().err
    assert main(["report", "nobody", "--folder", str(tmp_path)]) == 1
    assert "nobody is no folder with a record.json" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 1
    assert "holds no record.json" in capsys.readouterr().err
