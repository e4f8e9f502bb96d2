import json

import pytest
import torch
from learned_runs import write_run
from small import SMALL_TASK

from fl_server.__main__ import main
from fl_server.house import House
from tasks.task import load


@pytest.fixture
def house(tmp_path, monkeypatch):
    house = House.create(tmp_path / "house", hosts=["localhost"])
    monkeypatch.setenv("KONSIL_COORDINATOR", str(house.folder))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    write_run(house.runs / "pilot", SMALL_TASK, dict(load(SMALL_TASK).model().state_dict()))
    return house


def told(capsys):
    return json.loads(capsys.readouterr().out)


def test_a_study_by_name_is_registered_listed_shown_and_withdrawn(house, capsys):
    assert main(["models", "register", "pilot", "--name", "heart", "--remark", "of spring"]) == 0
    assert "heart:1 is registered" in capsys.readouterr().out
    assert main(["models", "list", "--json"]) == 0
    (row,) = told(capsys)
    assert (row["name"], row["version"], row["standing"]) == ("heart", 1, "registered")
    assert main(["models", "withdraw", "heart", "--reason", "a newer one is right"]) == 0
    capsys.readouterr()
    assert main(["models", "show", "heart"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("WITHDRAWN: a newer one is right\n")
    assert "- Remark: of spring" in page
    assert main(["export", "heart", "--as", "torchscript"]) == 1
    assert "heart:1 was withdrawn: a newer one is right" in capsys.readouterr().err


def test_verify_ends_with_one_when_a_file_was_changed(house, capsys):
    main(["models", "register", "pilot"])
    assert main(["models", "verify"]) == 0
    (house.folder / "registry" / "pilot" / "1" / "card.md").write_text("A perfect model.")
    capsys.readouterr()
    assert main(["models", "verify", "--json"]) == 1
    assert told(capsys) == {"pilot:1": ["card.md was changed"], "the log": []}


def test_an_exported_folder_is_verified_with_the_public_key_alone(house, tmp_path, capsys):
    main(["models", "register", "pilot"])
    capsys.readouterr()
    assert main(["export", "pilot:1", "--as", "torchscript", "--to", "out", "--json"]) == 0
    assert told(capsys)["signed"] is True
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["name"], card["version"]) == ("pilot", 1)
    main(["models", "key"])
    printed = capsys.readouterr().out
    (tmp_path / "public.pem").write_text(printed.partition("SHA-256")[0])
    assert main(["models", "verify", "out", "--key", "public.pem", "--folder", str(tmp_path)]) == 0


def test_a_run_of_somebody_without_a_coordinator_is_exported_unsigned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "rehearsal", SMALL_TASK, dict(load(SMALL_TASK).model().state_dict()))
    assert main(["export", "runs/rehearsal", "--as", "monai"]) == 0
    assert "not signed" in capsys.readouterr().out
    assert (tmp_path / "rehearsal-monai" / "configs" / "inference.json").exists()


def test_what_is_nowhere_is_said_to_be_nowhere(house, capsys):
    assert main(["export", "spring", "--as", "onnx"]) == 1
    assert "no model 'spring' is registered; no study 'spring'; there are pilot" in capsys.readouterr().err
    assert main(["models", "show", "spring"]) == 1
    assert "no model 'spring'; there are none" in capsys.readouterr().err


def test_start_from_writes_the_study_that_hospitals_approve(house, tmp_path, capsys):
    main(["models", "register", "pilot"])
    settings = {"name": "fine", "rounds": 1, "sites": ["clinic"], "task": SMALL_TASK}
    (tmp_path / "study.json").write_text(json.dumps(settings))
    capsys.readouterr()
    command = ["start-from", "pilot", "study.json", "seed=3", "training.frozen=[body.*]", "--fresh", "head.*"]
    assert main([*command, "--to", "fine.json", "--json"]) == 0
    said = told(capsys)
    study = json.loads((tmp_path / "fine.json").read_text())
    assert study["initial_model_sha256"] == said["initial_model_sha256"]
    assert study["training"] == {"frozen": ["body.*"]}
    assert (house.models / f"{said['initial_model_sha256']}.pt").exists()
    assert said["fresh"] == ["head.bias", "head.weight"]
    assert main(["show", "fine.json"]) == 0
    assert main([*command, "--to", "fine.json"]) == 1
    assert "exists already" in capsys.readouterr().err
