"""Every patient that a hospital has heard of stands in exactly one place, with the reason."""

import json

import numpy as np
import pytest

from fl_client.accounting import by_reason, reckoning, summary
from fl_client.admission import cohort as tell_cohort
from fl_client.cohort import Cohort
from fl_client.intake.quarantine import Quarantine
from tasks.case import Case, Volume

LGE = Volume("lge", np.zeros((2, 3, 3), np.int16), np.eye(4), np.ones((2, 3, 3), np.uint8))


def name(number):
    return f"P{number:016X}"


@pytest.fixture
def site(new_hospitals):
    site = new_hospitals("one").add("clinic", patients=0, test_fraction=0.5)
    site = site.model_copy(update={"identity_folder": site.folder / "identity"})
    cohort = Cohort(site.cohort_folder)
    for number in range(4):
        cohort.admit(Case(name(number), (LGE,) if number else (), {"age": 50, "ef": None}))
    (cohort.folder / "cases" / name(3) / "case.json").write_text("{")
    cohort.refuse(name(0), "its first delivery was uneven")  # let in later
    for number, slices in ((4, 12), (5, 9)):
        cohort.refuse(name(number), f"lge: {slices} slices are missing")
    cohort.refuse("F0123456789ABCDEF", "not a DICOM file")
    cohort.refuse(f"{name(1)}-lge-mask", "a newer image without a mask replaces the older one")
    aside = Quarantine(site.identity_folder / "quarantine")
    for file, reason, whose in (
        ("a.dcm", "a secondary capture", name(6)),
        ("b.dcm", "a secondary capture", name(1)),
        ("c.dcm", "it names no patient", ""),
        ("d.dcm", "text is burned into the pixels", name(4)),
    ):
        aside.note(file, reason, pseudonym=whose)
    cohort.admit(Case(name(7), (LGE,)))
    cohort.withdraw(name(7))
    return site


def test_nobody_is_counted_twice_and_nobody_is_lost(site):
    found = reckoning(site)
    assert found.inside == (name(0), name(1), name(2))
    assert set(found.damaged) == {name(3)}
    assert set(found.refused) == {name(4), name(5)}
    assert dict(found.quarantined) == {name(6): "a secondary capture"}
    assert found.withdrawn == 1
    assert found.expected == 8
    assert sorted(found.left_out.values()) == [
        "a newer image without a mask replaces the older one",
        "a secondary capture",
        "it names no patient",
        "not a DICOM file",
        "text is burned into the pixels",
    ]


def test_reasons_that_differ_in_numbers_alone_are_counted_together():
    assert by_reason(["12 slices are missing", "it is empty", "9 slices are missing"]) == [
        (2, "12 slices are missing (and alike)"),
        (1, "it is empty"),
    ]


def test_the_command_tells_numbers_reasons_and_with_list_everybody(site, capsys):
    log = site.folder / "log"
    log.mkdir()
    lines = [{"patient": name(2), "left_out": "no mask"}, {"study": "ab" * 32, "round": 3, "loss": 0.5, "patients": 2}]
    (log / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert tell_cohort(site, everybody=True) == 1  # somebody is damaged
    said = capsys.readouterr().out
    assert "8 patients expected: 3 inside, 1 damaged, 2 refused, 1 in quarantine, 1 withdrawn" in said
    assert "  2 refused: lge: 12 slices are missing (and alike)" in said
    assert "the last round (study abababababab, round 3) used 2 training patients and left out 1" in said
    assert f"  {name(1)} inside, " in said
    assert "lge with a mask; 1 clinical values" in said
    assert f"  {name(6)} quarantined: a secondary capture" in said
    assert name(7) not in said


def test_a_user_who_may_not_see_the_quarantine_is_told_that_it_is_not_counted(site, monkeypatch):
    import fl_client.accounting as accounting

    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(accounting, "lines_of", closed)
    found = reckoning(site)
    assert not found.quarantined
    assert list(summary(found))[-1].endswith("is closed to this user: what lies in quarantine is not counted here")
