"""A run folder read as tables, and the lines on the screen that come straight from them."""

import json

import numpy as np
import pytest
from drawn_run import build

from fl_server.record import Record
from simulation.report import summary_lines, words, write_report
from simulation.report.results import ALONE_ELSEWHERE, ALONE_OWN, Run


def test_local_models_are_told_apart_by_whose_patients_they_met(full_report):
    folder, rows, _ = full_report
    run = Run(folder)
    own = run.values("dice/myocardium", ALONE_OWN, "site")
    assert len(own) == 5 * 10 * 3
    alone = next(r for r in rows if (r["arm"], r["patient"], r["seed"]) == ("alone/Birke", "Bi-002", 2))
    assert own[2, "Birke", "Bi-002"] == alone["scores"]["dice/myocardium"]
    elsewhere = run.values("dice/myocardium", ALONE_ELSEWHERE, "held_out")
    by_hand = np.mean(
        [
            r["scores"]["dice/myocardium"]
            for r in rows
            if r["arm"].startswith("alone/") and r["patient"] == "Ta-004" and r["seed"] == 1
        ]
    )
    assert elsewhere[1, "Tanne", "Ta-004"] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (None, True),
        ({"real": {"name": "Sunnybrook", "labels": "sunnybrook"}, "pretraining": {"steps": 9}}, True),
        ({"real": {"name": "Sunnybrook", "labels": "sunnybrook"}, "pretraining": None}, False),
    ],
    ids=["no settings", "pre-trained", "not pre-trained"],
)
def test_the_page_says_where_the_start_was_tuned_on_patients_of_the_real_hospital(tmp_path, settings, told):
    build(tmp_path, seeds=(0,), patients=2, rounds=1, arms=("federation_private",), overlays=False)
    if settings is not None:
        (tmp_path / "settings.json").write_text(json.dumps(settings))
    text = words.real_patients(Run(tmp_path))
    assert "was in any training" in text
    assert ("SCD0000101 and SCD0000201" in text) == told


def test_another_real_hospital_has_no_part_in_the_tuning(tmp_path):
    build(tmp_path, seeds=(0,), patients=2, rounds=1, arms=("federation_private",), overlays=False)
    lines = (tmp_path / "scores.jsonl").read_text()
    (tmp_path / "scores.jsonl").write_text(lines.replace("Sunnybrook", "Elbe"))
    settings = {"real": {"name": "Elbe", "labels": "cardiac"}, "pretraining": {"steps": 9}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert "Sunnybrook" not in words.real_patients(Run(tmp_path))


def test_a_patient_of_several_seeds_would_have_paid_for_each(tmp_path):
    build(tmp_path, seeds=(0, 1, 2), patients=2, rounds=1, arms=("federation_private",), overlays=False)
    assert "would have paid up to ε = 23.70 at δ = 0.003" in words.privacy(Run(tmp_path))[-1]  # three times 7.90 and 0.001
    build(tmp_path / "one", seeds=(0,), patients=2, rounds=1, arms=("federation_private",), overlays=False)
    assert not any("basic composition" in text for text in words.privacy(Run(tmp_path / "one")))


def test_structures_that_were_missed_altogether_are_counted_beside_the_distance(tmp_path):
    rows = build(tmp_path, seeds=(0, 1), patients=4, rounds=1, arms=("federation_private",), overlays=False, real=False)
    for row in rows:
        missed = (row["hospital"], row["patient"]) == ("Birke", "Bi-002") or (row["hospital"], row["seed"]) == ("Ulme", 1)
        row["scores"] |= {"surface_dice/myocardium": 0.0 if missed else 0.9}
        if missed:
            row["scores"] |= {"dice/myocardium": 0.0}
            del row["scores"]["hd95_mm/myocardium"]  # as the rehearsal leaves out what is not finite
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run(tmp_path)
    found = {site: run.missed("myocardium", "federation_private", "site", site) for site in run.sites}
    assert found == {"Ahorn": 0, "Birke": 2, "Eiche": 0, "Linde": 0, "Ulme": 4}
    page = write_report(tmp_path).read_text()
    assert [page.count(f'<small class="missed">{n} missed</small>') for n in (0, 2, 4)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("profile", "used", "rounds", "seeds", "said"),
    [
        ("standard", 40, 24, 3, ""),
        ("standard", 40, 24, 2, "Too few seeds for a claim: 40 patients per hospital, 24 rounds, 2 seeds; not evidence."),
        ("standard", 4, 24, 3, "Rehearsal-size figures: 4 patients per hospital, 24 rounds, 3 seeds; not evidence."),
        ("standard", 40, 1, 3, "Rehearsal-size figures: 40 patients per hospital, 1 round, 3 seeds; not evidence."),
        ("small", 40, 24, 3, "Rehearsal-size figures: 40 patients per hospital, 24 rounds, 3 seeds; not evidence."),
    ],
)
def test_what_is_no_evidence_is_judged_by_the_run_and_not_by_the_profiles_name(tmp_path, profile, used, rounds, seeds, said):
    build(
        tmp_path, profile=profile, seeds=range(seeds), patients=1, rounds=rounds, arms=("federation_private",), overlays=False
    )
    run = Run(tmp_path)
    for site in run.record.sites.values():
        site.cases_used = used
    assert words.rehearsal_banner(run) == said


def test_a_broken_line_is_named(tmp_path):
    build(tmp_path, rounds=1, arms=(), overlays=False)
    (tmp_path / "scores.jsonl").write_text('{"arm": \n')
    with pytest.raises(ValueError, match=r"scores\.jsonl, line 1 is no JSON object"):
        write_report(tmp_path)


def test_the_last_lines_on_the_screen(full_report):
    folder, rows, _ = full_report
    lines = summary_lines(folder)
    assert lines[0].startswith("Complete:")
    assert lines[-1] == f"Report: {folder / 'report.html'}"
    ahorn = next(line for line in lines if line.strip().startswith("Ahorn"))
    dice = np.mean(
        [r["scores"]["dice/myocardium"] for r in rows if (r["arm"], r["hospital"]) == ("federation_private", "Ahorn")]
    )
    assert f"myocardium {dice:.3f}" in ahorn
    assert ahorn.endswith("ε 7.90")
    assert any(line.strip().startswith("Tanne") and line.endswith("held out") for line in lines)


def test_the_last_lines_tell_of_an_early_end_and_of_the_round_that_was_chosen(tmp_path):
    build(tmp_path, rounds=3, arms=(), overlays=False)
    assert not [line for line in summary_lines(tmp_path) if "chosen" in line or "ended early" in line]
    record = Record.read(tmp_path / "record.json")
    record.selected_round, record.stopped_early = 1, "after round 3: 2 scores in a row were no better"
    record.write(tmp_path / "record.json")
    lines = summary_lines(tmp_path)
    assert "  ended early, after round 3: 2 scores in a row were no better" in lines
    assert "  chosen: the model of round 1" in lines
