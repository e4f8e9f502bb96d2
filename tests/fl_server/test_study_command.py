import json
import os
import tomllib
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from small import SMALL_TASK

from conf.study import Study
from fl_server import app as coordinator
from fl_server.__main__ import main
from fl_server.record import Record
from simulation.grid import InProcessGrid


def write(path: Path, study: Study) -> Path:
    path.write_text(study.model_dump_json(indent=1))
    return path


def test_show_prints_the_hash_that_sites_approve(hospitals, tmp_path, capsys):
    study = hospitals.study()
    assert main(["show", str(write(tmp_path / "study.json", study))]) == 0
    assert capsys.readouterr().out.startswith(f"{study.hash}  rehearsal: 2 rounds, 3 sites, epsilon 8, delta 0.001")


def test_show_gives_the_file_alone_to_be_sent(hospitals, tmp_path, capsys):
    study = hospitals.study()
    assert main(["show", str(write(tmp_path / "study.json", study)), "--json"]) == 0
    (tmp_path / "sent.json").write_text(capsys.readouterr().out)
    assert Study.read(tmp_path / "sent.json").hash == study.hash


def test_what_can_not_be_composed_is_said_without_inner_workings(tmp_path, capsys):
    assert main(["show", "study=segmentation", "strategy=fedfoo", "sites=[a]"]) == 1
    said = capsys.readouterr().err
    assert "fedfoo" in said
    assert "fedmedian" in said
    assert "provider" not in said
    assert main(["show", "study=segmentation", "rounds=3"]) == 1
    assert "name the hospitals: sites=[a,b]" in capsys.readouterr().err
    assert main(["show", str(tmp_path / "gone.json")]) == 1
    assert f"konsil-study: {tmp_path / 'gone.json'}: No such file or directory\n" == capsys.readouterr().err


def test_a_wrong_key_is_named(tmp_path, capsys):
    (tmp_path / "study.json").write_text('{"task": {}, "rounds": 0, "sites": ["a"], "epsilon": 3}')
    assert main(["show", str(tmp_path / "study.json")]) == 1
    said = capsys.readouterr().err
    assert "rounds: Input should be greater than or equal to 1 (got 0)" in said
    assert "epsilon: no such setting" in said


def test_a_study_file_is_read_as_strictly_as_the_sites_read_it(tmp_path, capsys):
    (tmp_path / "study.json").write_text('{"task": {"name": "segmentation", "field_mm": NaN}, "rounds": "5", "sites": ["a"]}')
    assert main(["show", str(tmp_path / "study.json")]) == 1
    said = capsys.readouterr().err
    assert "rounds: Input should be a valid integer (got '5')" in said
    assert "field_mm is nan; task settings must be finite numbers" in said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "must hold an object of settings"),
        ("[" * 100_000, "is no JSON: too deeply nested"),
        ('{"rounds": 3', "is no JSON: Expecting ',' delimiter"),
        ('{"rounds": 3, "sites": ["a"], "rounds": 30}', "rounds stands there twice"),
        ('{"task": {"name": "segmentatoin"}, "rounds": 3, "sites": ["a"]}', "no task named 'segmentatoin'; tasks/ holds count"),
        ('{"task": {"name": "segmentation", "voxel": 3}, "rounds": 3, "sites": ["a"]}', "voxel: no such setting"),
    ],
)
def test_a_file_that_is_no_study_is_refused_in_one_sentence(tmp_path, capsys, text, told):
    path = tmp_path / "study.json"
    path.write_text(text)
    for change in ([], ["seed=1"]):
        assert main(["show", str(path), *change]) == 1
        said = capsys.readouterr().err
        assert told in said
        assert said.count("\n") == 1
        assert said.startswith(f"{path}")


def test_a_file_that_is_no_text_is_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "study.json").write_bytes(bytes(range(128, 256)))
    assert main(["show", str(tmp_path / "study.json")]) == 1
    assert "study.json is no JSON: 'utf-8' codec can't decode" in capsys.readouterr().err


def test_show_prints_the_hash_that_start_will_run_under(tmp_path, capsys):
    """A radiomics task settles the hash of its extraction by itself: a file without it is another study."""
    assert main(["show", "study=radiomics", "sites=[a,b]", "name=rad", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    written = {key: value for key, value in whole.items() if key != "konsil_version"}
    written["task"] = {**whole["task"], "image": {**whole["task"]["image"], "extraction": ""}}
    (tmp_path / "by_hand.json").write_text(json.dumps(written))
    assert main(["show", str(tmp_path / "by_hand.json"), "--json"]) == 0
    shown, told = capsys.readouterr()
    assert json.loads(shown) == whole
    assert "as it stands is another study" in told
    (tmp_path / "whole.json").write_text(shown)
    assert main(["show", str(tmp_path / "whole.json")]) == 0
    shown, told = capsys.readouterr()
    assert shown.startswith(Study.model_validate(whole).hash)
    assert told == ""


def test_show_of_a_secure_study_without_keys_says_where_they_come_from(tmp_path, capsys):
    settings = {
        "task": SMALL_TASK,
        "rounds": 3,
        "sites": ["a", "b", "c"],
        "privacy": {"epsilon": 4, "delta": 0.001, "secure": {"patients": 30}},
    }
    (tmp_path / "study.json").write_text(json.dumps(settings))
    assert main(["show", str(tmp_path / "study.json")]) == 1
    assert "`start` takes them from the register" in capsys.readouterr().err


def test_run_hands_the_whole_study_to_flower(hospitals, tmp_path, monkeypatch):
    flwr = tmp_path / "bin" / "flwr"
    flwr.parent.mkdir()
    flwr.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/said\nwhile [ "$1" != --run-config ]; do shift; done\ncp "$2" {tmp_path}/run.toml\n'
    )
    flwr.chmod(0o755)
    monkeypatch.setenv("PATH", f"{flwr.parent}:{os.environ['PATH']}")
    study = hospitals.study(privacy={"epsilon": 3.0})
    assert main(["run", str(write(tmp_path / "study.json", study)), "--superlink", "clinic", "--stream"]) == 0
    assert (tmp_path / "said").read_text().startswith("run . clinic --run-config ")
    given = tomllib.loads((tmp_path / "run.toml").read_text())
    assert Study.from_json(given["study"]) == study


@pytest.mark.parametrize(("sites", "code"), [(("a", "b", "c"), 0), (("a", "nowhere"), 3), (("nowhere",), 4)])
def test_the_verdict_is_the_exit_code(hospitals, monkeypatch, capsys, sites, code):
    monkeypatch.setenv("KONSIL_RUNS", str(hospitals.folder / "runs"))
    study = hospitals.study(sites=sites)
    context = Context(1, 1, {}, RecordDict(), {"study": study.to_json(), "enrol-timeout-s": 0})
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    if code == 4:
        with pytest.raises(RuntimeError, match="study rehearsal: failed"):
            coordinator.app(grid, context)
    else:
        coordinator.app(grid, context)
    path = hospitals.folder / "runs" / "rehearsal" / "record.json"
    assert main(["record", str(path)]) == code
    assert Record.read(path).engine == "flower"
    if code == 3:
        assert "rounds 1 to 2: nowhere absent" in capsys.readouterr().out


def test_a_run_without_a_study_is_refused_in_words():
    with pytest.raises(ValueError, match="this run has no study"):
        coordinator.study_of(Context(1, 1, {}, RecordDict(), {}))


def test_weights_that_are_named_by_hash_are_read_and_checked(hospitals, tmp_path, monkeypatch):
    import torch

    study = hospitals.study()
    start = coordinator.start_of(study)
    torch.save(start, tmp_path / "start.pt")
    named = study.model_copy(update={"initial_model_sha256": "0" * 64})
    with pytest.raises(ValueError, match="say where in KONSIL_INITIAL_MODEL"):
        coordinator.start_of(named)
    monkeypatch.setenv("KONSIL_INITIAL_MODEL", str(tmp_path / "start.pt"))
    assert set(coordinator.start_of(named)) == set(start)


def test_no_study_starts_from_weights_that_every_hospital_would_decline(hospitals, tmp_path):
    import torch

    from fl_server.house import House
    from fl_server.start import require_weights
    from tasks.fingerprint import fingerprint

    house = House.create(tmp_path / "house", hosts=["localhost"])
    state = coordinator.start_of(hospitals.study())
    for number in (1.0, float("nan")):
        next(iter(state.values())).fill_(number)
        torch.save(state, tmp_path / "start.pt")
        named = hospitals.study(initial_model_sha256=fingerprint(state))
        if number == 1.0:
            require_weights(house, named, tmp_path / "start.pt")
        else:
            with pytest.raises(ValueError, match="not finite; every hospital would decline"):
                require_weights(house, named, tmp_path / "start.pt")
    assert not (house.models / f"{fingerprint(state)}.pt").exists()


def test_the_repositorys_own_default_study_is_valid_for_this_konsil():
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    study = Study.from_json(settings["tool"]["flwr"]["app"]["config"]["study"])
    assert study.konsil_version == settings["project"]["version"]
    assert json.loads(study.to_json())["task"]["name"] == "segmentation"


def test_show_refuses_a_quorum_that_start_would_refuse(tmp_path, capsys):
    asked = ["show", "study=segmentation", "sites=[a,b,c,d,e]", "strategy=krum"]
    assert main(asked) == 0
    assert main([*asked, "strategy.quorum=3"]) == 1
    assert "strategy.quorum is 3; krum tells 1 wrong of the answers" in capsys.readouterr().err


def test_an_argument_that_can_not_be_read_is_named_before_the_parser_has_its_say(hospitals, tmp_path, capsys):
    file = write(tmp_path / "study.json", hospitals.study())
    for first in ("study=segmentation", str(file)):
        assert main(["show", first, "training.personal=[*.N"]) == 1
        said = capsys.readouterr().err
        assert "training.personal=[*.N can't be read: brackets must be closed, and names with special characters" in said
        assert "https" not in said
    assert main(["show", "study=segmentation", "sites=[a,b]", 'training.personal=["*.norm.*"]']) == 1
    assert "training.personal has '*.norm.*', which is none of the" in capsys.readouterr().err
