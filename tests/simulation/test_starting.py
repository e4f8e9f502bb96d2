"""A study on generated hospitals that begins with another model: late enhancement goes on from what cine taught."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from fl_server.__main__ import main as konsil_study
from fl_server.house import House
from fl_server.registry.card import card_of
from fl_server.registry.learned import of_run
from simulation.__main__ import main, settings_of
from simulation.starting import start
from tasks.fingerprint import fingerprint

HOSPITALS = ("donau", "rhein")
FEW = [
    *(f"~hospitals.sites.{name}" for name in ("alster", "isar", "spree")),
    *("~hospitals.held_out.limmat", "hospitals.patients=2", "hospitals.oversampling=1", "hospitals.subslices=1", "real=null"),
    *(f"hospitals.sites.{name}.relative_size=1" for name in HOSPITALS),
    *(f"hospitals.sites.{name}.scanner.{key}" for name in HOSPITALS for key in ("matrix=64", "pixel_mm=4")),
    *("task.voxels=32", "task.working_mm=6", "task.channels=[4,8]", "task.strides=[2]", "task.num_res_units=0"),
    *("plain_training.sample_rate=1", "rounds=1", "training.views=2", "evaluate_every=9", "full_scores=none", "workers=0"),
]
"""Two hospitals of two patients, one of them to train on, and a network that learns in milliseconds."""
CINE = [*FEW, "name=cine", "hospitals.series=[cine_ed]", "task.series=[cine_ed]", "pretraining=null", "arms=[federation_plain]"]
LGE = [*FEW, "name=lge", "hospitals.series=[lge]", "task.series=[lge]", "hospitals.first_seed=3000000"]
ENCODER = "body.model.0."


@pytest.fixture(scope="module")
def cine(tmp_path_factory, threads):
    """A folder with a cine study in runs/cine, registered at coordinator/, exported as bundle/, and as a checkpoint."""
    folder = tmp_path_factory.mktemp("transfer")
    assert main([*CINE, f"runs_folder={folder / 'runs'}"]) == 0
    House.create(folder / "coordinator", hosts=["localhost"])
    run = str(folder / "runs" / "cine")
    assert konsil_study(["models", "register", run, "--name", "cine", "--folder", str(folder / "coordinator")]) == 0
    assert konsil_study(["export", run, "--as", "monai", "--to", str(folder / "bundle")]) == 0
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in learned(folder).items()}}, folder / "weights.ckpt")
    return folder


@pytest.fixture(autouse=True)
def inside(cine, monkeypatch):
    monkeypatch.chdir(cine)
    monkeypatch.delenv("KONSIL_COORDINATOR", raising=False)


def learned(folder):
    return torch.load(folder / "runs" / "cine" / "model.pt", weights_only=True)


def refused(capsys, *arguments):
    """What is said about settings that must be refused before anything is written."""
    capsys.readouterr()
    assert main([*LGE, "name=refused", *arguments]) == 2
    assert not Path("runs/refused").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "whose"),
    [
        ("{source: cine, coordinator: coordinator}", "the registered model cine:1"),
        ("bundle", "the MONAI bundle bundle"),
        ("weights.ckpt", "the file weights.ckpt"),
        ("runs/cine", "the model in cine"),
    ],
)
def test_every_source_gives_the_same_weights_and_is_named(cine, tmp_path, source, whose):
    simulation = settings_of([*LGE, f"start_from={source}"])
    state, path = start(simulation, tmp_path, cache=tmp_path, pool=None, advance=None)
    assert fingerprint(state) == fingerprint(learned(cine))
    assert fingerprint(torch.load(path, weights_only=True)) == fingerprint(state)
    said = json.loads((tmp_path / "start.json").read_text())
    assert said["source"] == whose
    assert set(said["matched"]) == set(state)


def test_late_enhancement_goes_on_from_cine_with_a_frozen_encoder_under_privacy(cine):
    settings = ["start_from={source: cine, fresh: [head.*]}", f"training.frozen=['{ENCODER}*']", "arms=[federation_private]"]
    os.environ["KONSIL_COORDINATOR"] = str(cine / "coordinator")
    try:
        assert main([*LGE, *settings, f"runs_folder={cine / 'runs'}"]) == 0
    finally:
        del os.environ["KONSIL_COORDINATOR"]
    run = of_run(cine / "runs" / "lge")
    begin, before = torch.load(run.folder / "start.pt", weights_only=True), learned(cine)
    assert run.record.study["initial_model_sha256"] == fingerprint(begin)
    for name in before:
        assert torch.equal(begin[name], before[name]) != name.startswith("head."), name  # drawn anew, or cine's
        if name.startswith(ENCODER):
            assert torch.equal(run.state[name], before[name]), name
    assert any(name.startswith(ENCODER) for name in before)
    assert not torch.equal(run.state["head.weight"], begin["head.weight"])
    assert [site.epsilon for site in run.record.sites.values()] == pytest.approx([8, 8], abs=0.1)
    page = (run.folder / "report.html").read_text()
    assert "Starting model: the registered model cine:1" in page
    assert "no hospital data" not in page
    card = card_of(run, name="lge", version=1)
    assert card.started_from["source"] == "the registered model cine:1"
    assert card.started_from["fresh"] == ["head.bias", "head.weight"]


def test_what_was_drawn_at_random_is_not_said_to_be_pretrained(cine):
    assert of_run(cine / "runs" / "cine").start["source"] == "nobody's: drawn at random with seed 0"


def test_another_shape_is_refused_with_both_shapes(capsys):
    said = refused(capsys, "start_from=runs/cine", "task.head_channels=8")
    assert "start_from: the source's weights don't fit:" in said
    assert "head.weight: shape (4, 16, 1, 1) in the source, (4, 8, 1, 1) in the study" in said


def test_weights_that_are_no_numbers_are_refused(cine, capsys):
    broken = learned(cine)
    broken["head.bias"][1] = float("nan")
    torch.save(broken, "broken.pt")
    assert "head.bias: numbers that are not finite" in refused(capsys, "start_from=broken.pt")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["training.frozen=[encoder.*]"], r"training.frozen has 'encoder.\*', which is none of the \d+ parameters"),
        (["start_from=mine:2"], "start_from: no model 'mine:2'; there are none"),
        (["start_from=runs/cin"], "start_from: runs/cin: no such file or folder"),
        (["start_from={source: runs/cine, fresh: [decoder.*]}"], r"--fresh decoder.\*: the study's model has no such array"),
        (["start_from={source: runs/cine, freeze: [a]}"], "start_from.freeze: no such setting; there are coordinator, fresh"),
        (["start_from=runs/cine", "name=cine"], "start_from: runs/cine is this run's own folder"),
    ],
)
def test_what_cannot_be_started_from_is_refused_in_words(cine, capsys, settings, said):
    assert re.search(said, refused(capsys, *settings))
    assert (cine / "runs" / "cine" / "model.pt").exists()


def test_the_coordinators_command_refuses_the_same(cine, capsys):
    study = {"name": "lge", "rounds": 1, "sites": ["clinic"], "task": settings_of(LGE).task}
    (cine / "lge.json").write_text(json.dumps(study))
    command = ["start-from", "cine", "lge.json", "--folder", "coordinator", "--to", "new.json"]
    for more, said in (
        (["training.frozen=[encoder.*]"], "training.frozen has 'encoder.*'"),
        (["task.head_channels=8"], "head.weight: shape (4, 16, 1, 1) in the source"),
    ):
        capsys.readouterr()
        assert konsil_study([*command[:3], *more, *command[3:]]) == 1
        assert said in capsys.readouterr().err
        assert not (cine / "new.json").exists()
    assert konsil_study([*command[:3], "training.frozen=[body.model.0.*]", *command[3:]]) == 0
    assert json.loads((cine / "new.json").read_text())["training"] == {"frozen": ["body.model.0.*"]}
