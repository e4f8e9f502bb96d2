"""A rehearsal of a generator: it is learned under a promise, draws, is reported on, and fills cohorts."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fl_client.cohort import Cohort
from simulation.__main__ import main, settings_of
from simulation.gate import MOST, _evenly, measure
from simulation.gated import in_a_line, read
from simulation.machine import Immediately
from simulation.rehearsal import open_hospitals
from simulation.report import summary_lines
from simulation.screen import Screen
from simulation.settings import Simulation
from simulation.synthetic import FIRST_SEED, _shown, free_case
from simulation.synthetic import main as draw
from tasks.fingerprint import fingerprint
from tasks.task import load

HOSPITALS = ("sites.donau", "sites.rhein", "held_out.limmat")
GENERATOR = [
    "study=synthesis",
    *(f"~hospitals.sites.{name}" for name in ("alster", "isar", "spree")),
    *(f"hospitals.{name}.relative_size=1" for name in HOSPITALS),
    *(f"hospitals.{name}.scanner.{key}" for name in HOSPITALS for key in ("matrix=64", "pixel_mm=4")),
    *("hospitals.patients=4", "hospitals.oversampling=1", "hospitals.subslices=1", "real=null"),
    *("task.voxels=16", "task.drawn_voxels=24", "task.working_mm=8", "task.channels=[8,16]", "task.attention=[false,true]"),
    *("+task.head_channels=8", "+task.levels=50", "+task.draw_steps=4"),
    *("pretraining={patients:3,steps:30,batch_patients:3,views:2,learning_rate:0.005,subslices:1}",),
    *("rounds=2", "evaluate_every=2", "workers=0", "training={steps:1,views:2,sample_rate:1}", "plain_training.sample_rate=1"),
]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    place = tmp_path_factory.mktemp("generators")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulation.pretraining.THREADS", 1)
        assert main([*GENERATOR, f"runs_folder={place}", "name=generator"]) == 0
    return place / "generator"


def test_it_is_learned_under_the_promise_and_scored_on_test_patients(learned):
    record = json.loads((learned / "record.json").read_text())
    assert (record["verdict"], record["study"]["task"]["name"]) == ("complete", "synthesis")
    start, end = (torch.load(learned / name, weights_only=True) for name in ("start.pt", "model.pt"))
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    task = load(record["study"]["task"])
    assert moved == set(task.trainable(task.model())) == {"tone.learned"}
    with np.load(learned / "overlays" / "tone.npz") as file:
        assert np.allclose(file["curve"][1:-1] - file["at"][1:-1], end["tone.learned"], atol=1e-6)
    rows = [json.loads(line) for line in (learned / "scores.jsonl").read_text().splitlines()]
    assert {row["arm"] for row in rows} == {"pretrained", "federation_private", "federation_plain"}
    assert all(-1 < row["scores"]["explained"] < 1 for row in rows)


def test_the_report_shows_a_patient_and_what_each_model_draws_at_every_hospital(learned):
    with np.load(learned / "overlays" / "synthetic.npz") as pictures:
        assert set(pictures) == {
            f"{name}/{kind}"
            for name in ("donau", "rhein")
            for kind in ("patient", "sketch", "pretrained", "federation_private")
        }
        assert all(pictures[name].shape == (5, 16, 16) and pictures[name].std() > 0 for name in pictures)
        assert not np.array_equal(pictures["donau/pretrained"], pictures["donau/federation_private"])
    page = (learned / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 9
    assert "The tone it has learned" in page
    assert "A test patient of this hospital" in page
    assert "Drawn by: Federation with privacy" in page
    assert "Dice" not in page
    told = summary_lines(learned)
    assert any("Federation with privacy: " in line and "of the noise told on test patients" in line for line in told)
    assert not any("Dice" in line for line in told)


def test_the_generator_for_a_gpu_is_a_matter_of_settings():
    few, many = (load(settings_of(["study=synthesis", f"task={name}"]).task) for name in ("synthesis", "synthesis_large"))
    sizes = [sum(parameter.numel() for parameter in task.model().parameters()) for task in (few, many)]
    assert sizes == [957_578, 22_087_239]  # as docs/synthesis.md says
    look, target = many.example(many.drawn(np.random.default_rng(0)), 1, np.random.default_rng(1))
    with torch.inference_mode():
        assert torch.isfinite(many.loss(many.model()(look), target)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_large_generator_takes_a_step_on_a_gpu():
    task = load(settings_of(["study=synthesis", "task=synthesis_large"]).task)
    model = task.model().cuda()
    look, target = task.example(task.drawn(np.random.default_rng(0)), 4, np.random.default_rng(1))
    task.loss(model(look.cuda()), target.cuda()).sum().backward()
    moved = dict(model.named_parameters())
    assert all(torch.isfinite(moved[name].grad).all() for name in task.trainable(model))


def test_slices_are_shown_from_base_to_apex_whichever_way_the_stack_runs():
    mask = np.zeros((9, 8, 8), np.uint8)
    for n in range(1, 8):
        mask[n, : 8 - n, :4] = 1  # smaller and smaller
    mask[8] = 255  # nothing is known of it
    every = np.ones(9, bool)
    assert _shown(mask, every).tolist() == [1, 3, 4, 5, 7]
    assert _shown(mask[::-1], every).tolist() == [7, 5, 4, 3, 1]


def test_the_gate_is_asked_of_the_run_and_stays_shut_where_too_few_were_held_back(learned):
    found = read(learned)
    assert found["passed"] is False
    assert [one["passed"] for one in found["findings"]] == [None] * 5
    assert "2 patients were held back, and it takes 20" in found["findings"][0]["words"]
    assert "6 patients were trained on, and it takes 20; 2 patients were held back" in found["findings"][2]["words"]
    page = (learned / "report.html").read_text()
    assert page.count('<span class="answer open">can&#39;t tell</span>') == 5
    assert "Not yet: scans may leave when" in page
    assert any("The gate is shut: there were too few patients to tell." in line for line in summary_lines(learned))


def test_with_enough_patients_scans_are_drawn_and_every_question_but_their_use_is_answered(learned, tmp_path, monkeypatch):
    monkeypatch.setattr("simulation.gate.FEWEST", 2)
    monkeypatch.setattr("tasks.synthesis.gate.FEWEST", 2)
    settings = Simulation.model_validate_json((learned / "settings.json").read_text())
    hospitals, _, _ = open_hospitals(settings, learned.parent / "cache", Immediately(), Screen(settings))
    sites = [
        SimpleNamespace(
            name=name,
            cohort=one.cohort,
            cohort_folder=one.cohort_folder,
            training_patients=list(one.cohort.patients)[:2],
            test_patients=list(one.cohort.patients)[2:],
        )
        for name, one in hospitals.items()
    ]
    model, start = (torch.load(learned / name, weights_only=True) for name in ("model.pt", "start.pt"))
    heard = []

    def advance(done, of):
        heard.append((done, of))

    measure(settings, model, start, sites, tmp_path, pool=Immediately(), advance=advance)
    found = read(tmp_path)
    figures = [one["words"] for one in found["findings"]]
    assert heard == [(done, 12) for done in range(1, 13)]  # 4 trained on, 4 held back, 4 drawn
    assert "drawn and real patients are" in figures[0]
    assert "of 4 drawn patients" in figures[1]
    assert "The attack's AUC is" in figures[2]
    assert "at least half of what was wanted was made" in figures[3]
    assert figures[4] == "It wasn't measured."
    assert in_a_line(found).startswith("The gate is shut")


@pytest.mark.parametrize(("hospitals", "each", "together"), [(3, 26, 78), (60, 1, 60), (100, 1, MOST)])
def test_the_gate_looks_at_as_many_of_each_hospital_and_at_no_more_than_it_can(tmp_path, hospitals, each, together):
    patients = [f"p{n}" for n in range(100)]
    chosen = _evenly({f"h{n}": (tmp_path, patients) for n in range(hospitals)})
    assert {len(some) for _, some in chosen.values()} == {each}
    assert sum(len(some) for _, some in chosen.values()) == together


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (None, "The gate was not asked"),
        ([True, None, True], "The gate is shut: there were too few"),
        ([True, False, True], "The gate is shut, for the answer is no: Question 1? See"),
        ([True, True, True], "The gate is open"),
    ],
)
def test_what_the_gate_said_in_a_line(answers, words):
    findings = [{"question": f"Question {n}?", "passed": one} for n, one in enumerate(answers or [])]
    said = None if answers is None else {"passed": all(answers), "findings": findings}
    assert in_a_line(said).startswith(words)


def test_a_cohort_is_filled_with_patients_in_the_hospitals_styles_and_gone_on_with(learned, tmp_path, capsys):
    assert draw([str(learned), str(tmp_path / "made"), "--patients", "2"]) == 0
    assert "The gate is shut" in capsys.readouterr().out
    cohort = Cohort(tmp_path / "made")
    assert list(cohort.patients) == [f"G{FIRST_SEED}", f"G{FIRST_SEED + 1}"]
    cases = [cohort.case(name) for name in cohort.patients]
    assert [case.scanner["manufacturer"] for case in cases] == ["PHILIPS", "PHILIPS"]  # donau's and rhein's
    assert {volume.image.shape[1:] for case in cases for volume in case.volumes} == {(24, 24)}
    assert all((volume.mask == 1).any() for case in cases for volume in case.volumes)
    assert draw([str(learned), str(tmp_path / "made"), "--patients", "3", "--hospital", "rhein"]) == 0
    assert len(Cohort(tmp_path / "made").patients) == 3
    assert "2 of them were there, and stay as they were drawn then" in capsys.readouterr().out
    again = Cohort(tmp_path / "made").case(cases[0].patient)
    assert np.array_equal(again.volumes[0].image, cases[0].volumes[0].image)


def refused(capsys, folder, *words):
    """What is said of a call that leaves the cases in `folder` as they are."""
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert draw([*map(str, words), "--patients", "2"]) == 1
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    return capsys.readouterr().err


def test_a_folder_keeps_to_one_generator_or_none(learned, tmp_path, capsys):
    free, made, other = tmp_path / "free", tmp_path / "made", tmp_path / "other"
    assert draw([str(free), "--patients", "1"]) == 0
    assert "were drawn without a generator, and these would be by generator " in refused(capsys, free, learned, free)
    assert draw([str(learned), str(made), "--patients", "1", "--seed", "1"]) == 0
    assert " and these would be without a generator" in refused(capsys, made, made)
    other.mkdir()
    shutil.copy(learned / "settings.json", other)
    state = torch.load(learned / "model.pt", weights_only=True)
    torch.save({name: value + 1 for name, value in state.items()}, other / "model.pt")
    assert f"were drawn by generator {fingerprint(state)[:12]}" in refused(capsys, made, other, made)
    assert draw([str(learned), str(made), "--patients", "1", "--seed", "2"]) == 0  # more of the same, and none is drawn anew
    assert "1 of them were there, and stay as they were drawn then" in capsys.readouterr().out
    (made / "drawn.json").write_text("[]")
    assert "drawn.json is not what was written there" in refused(capsys, made, learned, made)


def test_a_folder_keeps_to_its_series_also_where_no_note_tells_who_drew_it(tmp_path, capsys):
    out = tmp_path / "made"
    assert draw([str(out), "--patients", "1", "--series", "cine_ed"]) == 0
    said = f"the cases in {out} have cine_ed, and these would have lge: draw them into another folder"
    assert said in refused(capsys, out, out, "--series", "lge")
    (out / "drawn.json").unlink()
    assert said in refused(capsys, out, out, "--series", "lge")
    assert draw([str(out), "--patients", "2", "--series", "cine_ed"]) == 0
    (out / "cases" / f"G{FIRST_SEED}" / "case.json").write_text("{")
    assert "case.json is cut short, or isn't JSON; nothing was drawn" in refused(capsys, out, out, "--series", "cine_ed")


def test_a_drawn_patient_is_nobody_of_a_hospital_and_carries_the_scanners_facts():
    one = free_case(5, ("cine_ed",), {"manufacturer": "CANON"})
    assert one.patient == f"G{FIRST_SEED + 5}"
    assert one.scanner["manufacturer"] == "CANON"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--patients", "0"], "--patients is a number from 1 on, not 0"),
        (["--case-mix", "flu=1"], "--case-mix names unknown diseases ['flu']"),
        (["--hospital", "elbe"], "the run has no hospital elbe; it has donau, rhein"),
    ],
)
def test_mistakes_are_told_in_words(learned, tmp_path, capsys, arguments, words):
    assert draw([str(learned), str(tmp_path / "made"), *arguments]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_folder_without_a_generator_is_refused_in_words(tiny, tmp_path, capsys):
    assert draw([str(tmp_path), str(tmp_path / "made")]) == 1
    assert "is no folder of a finished run" in capsys.readouterr().err
    assert draw([str(tiny.folder), str(tmp_path / "made")]) == 1
    assert "learned task segmentation, which draws no scans; study=synthesis does" in capsys.readouterr().err


def test_what_suits_hearts_at_a_small_size_is_not_told_to_a_generator():
    assert settings_of(["study=synthesis"]).task["channels"] == [32, 48, 64]
    assert settings_of([]).task["channels"] == [12, 24, 48, 96]
    assert settings_of(["size=standard"]).task["channels"] == [16, 32, 64, 128]


@pytest.mark.parametrize("size", ["small", "standard"])
def test_how_a_tone_is_learned_is_said_by_the_study_at_every_size(size):
    asked = settings_of(["study=synthesis", f"size={size}"])
    step = asked.strategy
    assert (step.server_learning_rate, step.server_schedule, step.server_tau) == (0.05, "cosine", 0.003)
    assert asked.privacy.max_grad_norm == 0.01
    assert (
        settings_of(["study=synthesis", f"size={size}", "strategy.server_learning_rate=0.02"]).strategy.server_learning_rate
        == 0.02
    )
    assert settings_of([f"size={size}"]).strategy.server_learning_rate < 0.05
    assert settings_of(["study=synthesis", f"size={size}", "strategy=fedavg"]).strategy.server_tau == 1e-6
    assert settings_of(["study=synthesis", f"size={size}", "privacy=none"]).privacy.kind == "none"


def test_a_folder_is_filled_with_patients_of_one_disease_as_they_are_drawn(tmp_path, capsys):
    out = tmp_path / "made"
    assert draw([str(out), "--patients", "2", "--case-mix", "dcm=1", "--series", "cine_ed"]) == 0
    cases = list(Cohort(out))
    assert [case.patient for case in cases] == [f"G{FIRST_SEED}", f"G{FIRST_SEED + 1}"]
    assert {case.endpoints["disease"] for case in cases} == {"dcm"}
    assert [volume.series for volume in cases[0].volumes] == ["cine_ed"]
    assert "they are nobody's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--case-mix", "dcm"], "a disease and its share, such as dcm=1, not 'dcm'"),
        (["--case-mix", "flu=1"], "--case-mix names unknown diseases ['flu']"),
        (["--case-mix", "dcm=0"], "--case-mix must hold non-negative weights with a positive sum"),
        (["--series", "t1"], "no heart has the series t1"),
        (["--patients", "0"], "a number from 1 on, not 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_a_folder_is_made(tmp_path, capsys, words, told):
    out = tmp_path / "made"
    assert draw([str(out), *words]) == 1
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_patients_of_a_protocol_are_in_its_slices_and_keep_the_rest_of_their_scanner(tmp_path):
    own = ["pixel_mm=2.5", "matrix=96", "slice_thickness_mm=9", "slice_gap_mm=1", "field_strength_t=3", "manufacturer=PHILIPS"]
    arguments = ["--patients", "2", "--series", "cine_ed"]
    assert draw([str(tmp_path / "theirs"), *arguments, "--protocol", *own]) == 0
    assert draw([str(tmp_path / "any"), *arguments]) == 0
    for case, free in zip(Cohort(tmp_path / "theirs"), Cohort(tmp_path / "any"), strict=True):
        (volume,) = case.volumes
        assert volume.image.shape[1:] == (96, 96)
        assert volume.spacing_mm == pytest.approx((10.0, 2.5, 2.5))
        assert (case.scanner["manufacturer"], case.scanner["field_strength_t"]) == ("PHILIPS", 3.0)
        assert [case.endpoints[name] for name in ("disease", "age", "ef")] == [
            free.endpoints[name] for name in ("disease", "age", "ef")
        ]  # the same patient


def test_a_generator_draws_in_a_departments_protocol_too(learned, tmp_path):
    own = ["pixel_mm=2.5", "matrix=96", "slice_thickness_mm=9", "slice_gap_mm=1", "field_strength_t=3"]
    arguments = ["--patients", "1", "--hospital", "rhein"]
    assert draw([str(learned), str(tmp_path / "theirs"), *arguments, "--protocol", *own]) == 0
    assert draw([str(learned), str(tmp_path / "rhein"), *arguments]) == 0
    (theirs,), (rhein,) = Cohort(tmp_path / "theirs"), Cohort(tmp_path / "rhein")
    assert theirs.scanner == {**rhein.scanner, "field_strength_t": 3.0}
    assert [volume.spacing_mm[0] for volume in theirs.volumes] == pytest.approx([10.0, 10.0])  # pixels are the generator's
    assert rhein.volumes[0].spacing_mm[0] != pytest.approx(10.0)
    assert rhein.volumes[0].spacing_mm[1:] == pytest.approx(theirs.volumes[0].spacing_mm[1:])


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("snr=9", "--protocol: no setting named snr; there are manufacturer, "),
        ("pixel_mm=9", "--protocol: pixel_mm: Input should be less than or equal to 4"),
        ("matrix", "--protocol: matrix: Input should be a valid integer"),
        ("field_strength_t=7", "--protocol: field_strength_t: "),
    ],
)
def test_a_protocol_that_no_scanner_has_is_refused_before_a_folder_is_made(tmp_path, capsys, word, reason):
    assert draw([str(tmp_path / "made"), "--protocol", word]) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
