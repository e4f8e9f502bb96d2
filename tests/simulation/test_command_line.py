import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import yaml

from simulation.__main__ import main, settings_of
from simulation.settings import REAL_FOLDER


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every command runs in an empty folder, so that one can see whether it wrote anything."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rehearsed(monkeypatch):
    """Simulations that would have been run, in order; `verdicts` are what each ends with."""

    class Rehearsed(list):
        verdicts = {}

        def during(self, simulation):
            """What happens while it runs."""

        def __call__(self, simulation):
            self.append(simulation)
            self.during(simulation)
            return self.verdicts.get(simulation.seed, "complete")

    stand_in = Rehearsed()
    monkeypatch.setattr("simulation.rehearsal.rehearse", stand_in)
    return stand_in


def refused(capsys, *arguments):
    """What is said about a command that must be refused, and leave nothing behind."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert list(Path.cwd().iterdir()) == []
    first, _, rest = said.err.partition("\n")
    assert first == "konsil-simulate: these settings can't be run:"
    assert "Traceback" not in rest
    return rest.strip()


def test_help_lists_every_choice_and_the_defaults(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "hospitals=five_scanners|heart_disease|hippocampus" in text
    assert "strategy=fedadam|fedavg|fedavgm|fedmedian|fedprox|fedtrimmed|fedwiener|krum" in text
    assert "privacy=none|patient" in text
    assert "epsilon: 8.0" in text
    assert "-m privacy.epsilon=1,3,8" in text


def test_the_installed_command_is_this_one():
    command = Path(sys.executable).with_name("konsil-simulate")
    done = subprocess.run([command, "--show", "rounds=0"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "rounds: Input should be greater than or equal to 1 (got 0)" in done.stderr


def test_show_prints_what_would_be_run_and_runs_nothing(capsys, rehearsed):
    assert main(["--show", "privacy.epsilon=3", "rounds=20", "hospitals=five_scanners", "strategy=fedavg", "seed=7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["privacy"]["epsilon"], shown["rounds"], shown["seed"], shown["strategy"]["name"]) == (3, 20, 7, "fedavg")
    assert list(shown["hospitals"]["sites"]) == ["alster", "isar", "donau", "spree", "rhein"]
    assert rehearsed == []
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("asked", ["--show", "--help"])
def test_who_has_read_enough_may_leave(asked):
    """The reader closes the pipe before anything is written into it."""
    command = Path(sys.executable).with_name("konsil-simulate")
    with subprocess.Popen([command, asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")


def test_a_size_sets_patients_and_rounds_and_an_override_beats_it():
    assert settings_of([]).hospitals.patients == 10
    assert settings_of(["size=standard"]).hospitals.patients == 50
    assert len(settings_of(["size=standard"]).seeds) == 3
    assert settings_of(["size=standard", "hospitals.patients=7", "repeats=1"]).hospitals.patients == 7


def test_settings_that_conf_leaves_at_their_default_can_be_set_without_a_plus():
    assert settings_of(["strategy.quorum=2"]).strategy.quorum == 2
    assert settings_of(["task.groups=2"]).task["groups"] == 2
    assert settings_of(["+task.groups=2"]).task["groups"] == 2
    assert settings_of(["hospitals.held_out.limmat.through_dicom=true"]).hospitals.held_out["limmat"].through_dicom


def test_a_quorum_of_the_federation_does_not_bind_a_hospital_that_trains_alone():
    simulation = settings_of(["strategy.quorum=3"])
    everyone = tuple(simulation.hospitals.sites)
    assert simulation.study(seed=0, private=True, sites=everyone, initial=None).strategy.quorum == 3
    assert simulation.study(seed=0, private=False, sites=("alster",), initial=None).strategy.quorum == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.personal=[*.N", "training.personal=[*.N can't be read: brackets must be closed, and names with special"),
        ("faults.plan=[{fault: slow", "(no viable alternative at input '[{fault: slow')"),
        ("nope=1", "nope: no such setting; there are arms, audit, clinical, engine"),
        ("privacy.epsilonn=1", "privacy.epsilonn: no such setting; there are delta, epsilon, evaluation_share, kind, matrix"),
        ("+privacy.epsilonn=1", "privacy.epsilonn: no such setting; there are delta"),
        (
            "hospitals.sites.alster.snr=9",
            "hospitals.sites.alster.snr: no such setting; there are case_mix, reader, relative_size",
        ),
        ("hospitals.sites.alster.scanner.snrr=9", "hospitals.sites.alster.scanner.snrr: no such setting; there are apex_first"),
        ("real.path=x", "real.path: no such setting; there are folder, labels, name"),
        ("pretraining.step=1", "pretraining.step: no such setting; there are batch_patients"),
        ("task.class_weigths=[1]", "class_weigths: no such setting; there are spatial_dims, structures"),
        ("plain_training.rate=1", "plain_training.rate: no such setting"),
        ("privacy.epsilon=-1", "privacy.epsilon: Input should be greater than 0 (got -1)"),
        ("privacy.kind=most", "privacy.kind: Input should be 'patient' or 'none' (got 'most')"),
        ("plain_training.learning_rate=0", "plain_training.learning_rate: Input should be greater than 0 (got 0)"),
        ("engine=spark", "engine: Input should be 'inprocess' or 'ray' (got 'spark')"),
        (
            "arms=[together]",
            "arms.0: Input should be 'federation_private', 'federation_plain', 'pooled', 'alone' or 'ensemble'",
        ),
        ("arms=[]", "arms: at least one of federation_private"),
        ("name=a/b", "name: may hold only letters, digits, '_', '.' and '-', beginning with a letter or digit, 1 to 64"),
        ("strategy.quorum=6", "strategy.quorum is 6, but only 5 sites take part"),
        ("task.voxels=33", "voxels [33, 33] must be multiples of 8"),
        ("task.name=lesion", "no task named 'lesion'; tasks/ holds count, intensity_scale, radiomics, reference_values, "),
        ("task.series=[lge]", "task.series: the hospitals have cine_ed, cine_es"),
        ("real.name=isar", "each hospital needs a name of its own, and is either a site, held out or real: isar"),
        ("hospitals.sites.isar.case_mix.cold=1", "hospitals.sites.isar.case_mix: no such disease as cold; there are normal,"),
        ("hospitals.sites.isar.relative_size=0.1", "hospitals: isar would have 1 patients; one to train on and one to test on"),
        (
            "hospitals=three_scanners",
            "hospitals: no such choice as three_scanners; hospitals is one of five_scanners, heart_disease, hippocampus, no",
        ),
        ("size=large", "size: no such choice as large; size is one of small, standard"),
        ("rounds=1,2", "rounds=1,2: several values; -m before it makes one run of each"),
        ("rounds", "Error parsing override 'rounds'"),
        ("~nothing", "'nothing' does not exist"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_path_and_what_is_allowed(capsys, rehearsed, override, said):
    assert said in refused(capsys, override)
    assert rehearsed == []


def test_the_words_of_a_refusal_quote_no_page_of_settings(capsys):
    assert len(refused(capsys, "hospitals.source=internet")) < 200
    assert len(refused(capsys, "task.voxels=33")) < 200


def test_folders_that_are_not_there_are_found_before_anything_is_written(capsys, rehearsed):
    said = refused(capsys, "hospitals=hippocampus", "hospitals.images=nowhere/images")
    assert said == "hospitals.images: there is no folder nowhere/images with *.nii.gz in it"
    assert rehearsed == []


def test_tables_that_are_not_there_are_found_before_anything_is_written(capsys, rehearsed):
    radiomics = ["study=radiomics", "task@radiomics.task=heart_disease", "hospitals=heart_disease"]
    said = refused(capsys, *radiomics, "hospitals.sites.cleveland=nowhere.csv")
    assert said == "hospitals: there is no file nowhere.csv, the table of cleveland"
    said = refused(capsys, *radiomics, "hospitals.columns.numbers=[age,age,target,7]")
    assert said.startswith("hospitals.columns.numbers.3: Input should be a valid string (got 7)")
    assert rehearsed == []


@pytest.fixture
def two_folders(tmp_path_factory):
    """Overrides for folders of images and masks that exist; nobody looks into the files."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "x.nii.gz").touch()
    return ["hospitals=hippocampus", f"hospitals.images={folder}", f"hospitals.masks={folder}"]


def test_label_maps_that_are_not_there_are_found_before_anything_is_written(capsys, rehearsed, two_folders):
    known = "no label map nope; conf/labels holds cardiac, hippocampus, nodule, sunnybrook"
    assert refused(capsys, "real.labels=nope") == f"real.labels: {known}"
    assert refused(capsys, *two_folders, "hospitals.labels=nope") == f"hospitals.labels: {known}"
    assert rehearsed == []


def test_a_label_map_that_says_nothing_sensible_is_refused_with_the_place(capsys, rehearsed, two_folders, tmp_path_factory):
    file = tmp_path_factory.mktemp("labels") / "own.yaml"
    file.write_text("structures: {anterior: {value: 0, sources: [1]}}")
    said = refused(capsys, *two_folders, f"hospitals.labels={file}")
    assert f"hospitals.labels: {file}: structures.anterior.value: Input should be greater than or equal to 1 (got 0)" in said
    file.write_text("structures: [")
    assert refused(capsys, *two_folders, f"hospitals.labels={file}").startswith("hospitals.labels: ")
    assert rehearsed == []


def test_real_patients_that_somebody_named_have_to_be_there(capsys, rehearsed, tmp_path_factory, monkeypatch):
    said = refused(capsys, "real.folder=/typo")
    assert said == "real.folder: there is no folder /typo; real=null does without real patients"
    monkeypatch.setenv("KONSIL_SUNNYBROOK", "/also/typo")
    assert "real.folder: there is no folder /also/typo" in refused(capsys)
    other = tmp_path_factory.mktemp("other")
    assert f"real.folder: {other} has no link.csv" in refused(capsys, f"real.folder={other}")
    assert rehearsed == []


def test_the_default_real_patients_are_done_without_where_there_is_no_repository(rehearsed, monkeypatch):
    monkeypatch.delenv("KONSIL_SUNNYBROOK", raising=False)
    assert settings_of([]).real.folder == REAL_FOLDER  # written in conf/ and in settings.py
    assert main([]) == 0
    assert len(rehearsed) == 1


def test_a_sweep_is_one_run_for_each_combination_under_a_name_of_its_own(rehearsed):
    assert main(["-m", "privacy.epsilon=1,3,8", "seed=0,4", "rounds=3", "runs_folder=here"]) == 0
    found = [(s.name, s.privacy.epsilon, s.seed, s.rounds) for s in rehearsed]
    assert found == [
        (f"rehearsal_privacy.epsilon-{epsilon}_seed-{seed}", epsilon, seed, 3) for epsilon in (1, 3, 8) for seed in (0, 4)
    ]


def test_long_and_odd_values_of_a_sweep_still_give_different_names(rehearsed):
    assert (
        main(["-m", "task.channels=[4,8],[48,16]", "task.strides=[2]", "task.voxels=32", f"name={'n' * 60}", "seed=0,1"]) == 0
    )
    names = [s.name for s in rehearsed]
    assert len(set(names)) == 4
    assert all(len(name) <= 64 for name in names)


def test_choices_can_be_swept_and_one_wrong_value_stops_all_before_the_first(capsys, rehearsed):
    assert main(["-m", "strategy=fedavg,fedmedian"]) == 0
    assert [s.strategy.name for s in rehearsed] == ["fedavg", "fedmedian"]
    rehearsed.clear()
    assert "rounds: Input should be greater" in refused(capsys, "-m", "rounds=3,0")
    assert rehearsed == []


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [({}, 0), ({1: "degraded"}, 3), ({1: "failed"}, 1), ({0: "failed", 1: "degraded"}, 1)],
)
def test_the_exit_status_is_that_of_the_worst_run(rehearsed, verdicts, status):
    rehearsed.verdicts = verdicts
    assert main(["-m", "seed=0,1"]) == status
    assert len(rehearsed) == 2


@pytest.fixture
def own_handler():
    """What the program that calls `main` does about SIGTERM."""

    def handler(number, frame):
        raise AssertionError("the caller's handler was called")

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


def test_a_run_that_is_terminated_ends_as_by_ctrl_c_and_the_callers_handler_is_back(rehearsed, own_handler):
    rehearsed.during = lambda simulation: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is own_handler


def test_a_run_that_ends_by_itself_gives_the_callers_handler_back(rehearsed, own_handler):
    found = []
    rehearsed.during = lambda simulation: found.append(signal.getsignal(signal.SIGTERM))
    assert main([]) == 0
    assert found != [own_handler]
    assert signal.getsignal(signal.SIGTERM) is own_handler


def test_a_worker_that_died_ends_the_run_in_words_that_say_how_to_go_on(rehearsed, capsys):
    def die(simulation):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(os._exit, 9).result()

    rehearsed.during = die
    assert main([]) == 1
    said = capsys.readouterr().err
    assert "a worker process died, perhaps for lack of memory" in said
    assert "Running the same command again resumes it" in said
    assert "Traceback" not in said


def test_a_folder_that_cannot_be_written_ends_the_run_in_words(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert main(["runs_folder=file/runs"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("konsil-simulate: this run can't go on: Not a directory (file/runs/rehearsal)\n")
    assert "choose another runs_folder=" in said
    assert "Traceback" not in said


def test_a_full_disk_ends_the_run_in_words(rehearsed, capsys):
    def fill(simulation):
        with open("/dev/full", "w") as file:
            file.write("record")

    rehearsed.during = fill
    assert main([]) == 1
    assert "this run can't go on: No space left on device" in capsys.readouterr().err


def test_who_reads_only_the_beginning_of_the_help_gets_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "simulation", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
