"""What the benchmark of uncertainty makes of patients whom it can't look at."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALL_TASK

from fl_client.cohort import Cohort
from simulation.uncertainty import Examinee
from tasks.case import Case, Volume
from tasks.task import gradient_task

HERE = Path(__file__).parent.parent.parent


@pytest.fixture
def kinds(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE / "benchmarks"))
    return runpy.run_path(str(HERE / "benchmarks" / "uncertainty.py"))


def disc(patient, radius, series):
    rows, columns = np.mgrid[:32, :32] - 16
    distance = np.hypot(rows, columns)
    mask = np.stack([np.where(distance < radius, 1, np.where(distance < radius + 3, 2, 0)).astype(np.uint8)] * 3)
    image = (100.0 + 100 * (mask == 1) - 50 * (mask == 2)).astype(np.float32)
    return Case(patient, (Volume(series, image, np.diag([8.0, 3.0, 3.0, 1.0]), mask),))


def a_run(folder, tested):
    """A run's folder with a model that finds something of everything, and a cohort; the examinees of it."""
    torch.manual_seed(3)
    model = gradient_task(SMALL_TASK).model()
    torch.nn.init.normal_(model.head.weight, std=5.0)
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "record.json").write_text(json.dumps({"study": {"task": SMALL_TASK}}))
    cohort = Cohort(folder / "cohort")
    for number, series in enumerate(tested):
        cohort.admit(disc(f"P{number}", 4 + number, series))
    return [Examinee("site", "north", cohort.folder, patient) for patient in cohort.patients]


def test_a_patient_without_a_series_that_the_model_reads_is_left_out(kinds, tmp_path):
    tested = a_run(tmp_path, ["cine_ed", "scout", "cine_ed", "cine_es"])
    found = kinds["_kind"]("dropout", tmp_path, tested)
    assert found == kinds["_kind"]("dropout", tmp_path, [tested[0], *tested[2:]])
    assert found["looked"] == kinds["triage"].first_of(3)


def test_where_nobody_is_left_it_says_so(kinds, tmp_path):
    with pytest.raises(SystemExit, match="none of the 1 test patients has a series that the model reads"):
        kinds["_kind"]("dropout", tmp_path, a_run(tmp_path, ["scout"]))


def test_what_is_no_run_is_refused_in_words_before_anything_is_copied(kinds, tmp_path, capsys, monkeypatch):
    def refused(run):
        monkeypatch.setattr("sys.argv", ["uncertainty.py", str(run), "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as ended:
            kinds["main"]()
        assert ended.value.code == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "nothing is no folder of a run that has ended: it has no settings.json and no record.json" in refused(
        tmp_path / "nothing"
    )
    a_run(tmp_path, [])
    (tmp_path / "settings.json").write_text("{}")
    torch.save({"total": torch.zeros(12)}, tmp_path / "model.pt")
    assert "its model.pt is no model that draws masks" in refused(tmp_path)
