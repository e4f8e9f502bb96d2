"""Parameters that stay as they came, parameters that never leave, and a model for one hospital alone."""

import json
import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fl_client import app as hospital
from fl_client import personal
from fl_client import personalise as personalising
from fl_client.__main__ import main
from fl_client.approval import Approvals
from fl_client.cohort import Cohort
from fl_client.contract import contract, leaving
from fl_client.decision import decline
from fl_client.privacy.clip import clipped_sum
from fl_client.trained import load_trained
from fl_client.withdrawal import withdraw
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.task import load, load_for, moving, released
from tasks.weights import save

HEAD = ("head.*",)
NORMS = ("*.adn.N.*",)


@pytest.fixture
def house(new_hospitals):
    houses = new_hospitals("one")
    houses.add("a", noise_seed=3)
    return houses


def ask(houses, study, *, number=1, scale=1.0):
    grid = InProcessGrid("fl_client.app:app", houses.nodes, {"study": study.to_json()})
    arrays = {n: Array((scale * t.numpy()).astype(np.float32)) for n, t in initial_state(study).items()}
    config = ConfigRecord({"study-hash": study.hash, "server-round": number})
    content = RecordDict({"arrays": ArrayRecord(arrays), "config": config})
    (reply,) = grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])
    assert reply.has_content(), reply.error.reason
    return {name: torch.from_numpy(array.numpy()) for name, array in reply.content["arrays"].items()}


def own(houses, study):
    """The hospital's own parameters, as a model that comes now would wear them."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in initial_state(study).items()}
    worn = personal.worn(houses.site("a"), study, zeros)
    return {name: tensor for name, tensor in worn.items() if bool(tensor.any())}


def names_of(study, *ends):
    return {name for name in initial_state(study) if any(end in name for end in ends)}


def trained_from(monkeypatch):
    """The weights that each training begins with and ends with."""
    seen, real = [], hospital.dp_sgd

    def spy(model, *args, **settings):
        begin = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        report = real(model, *args, **settings)
        seen.append((begin, {name: tensor.clone() for name, tensor in model.state_dict().items()}, settings))
        return report

    monkeypatch.setattr(hospital, "dp_sgd", spy)
    return seen


def test_what_is_frozen_does_not_move_and_does_not_travel_back(house, monkeypatch):
    seen = trained_from(monkeypatch)
    study = house.study(training={"views": 2, "frozen": ("body.*", "activation.*")})
    answer = ask(house, study)
    ((begin, end, _),) = seen
    assert set(answer) == names_of(study, "head.")
    assert {name for name in begin if not torch.equal(begin[name], end[name])} == set(answer)


def test_what_is_personal_is_trained_kept_here_and_never_leaves(house, monkeypatch):
    seen = trained_from(monkeypatch)
    study = house.study(training={"views": 2, "personal": NORMS})
    first = ask(house, study)
    norms = names_of(study, ".adn.N.")
    assert len(norms) >= 4
    assert set(first) == set(initial_state(study)) - norms == set(released(study, load(study.task)))
    after_one = own(house, study)
    assert set(after_one) == norms
    second = ask(house, study, number=2)
    (begin_1, end_1, settings), (begin_2, end_2, _) = seen
    assert all(torch.equal(begin_1[name], tensor) for name, tensor in initial_state(study).items())  # those that came
    assert all(torch.equal(begin_2[name], end_1[name]) and torch.equal(end_1[name], after_one[name]) for name in norms)
    assert all(torch.equal(begin_2[name], initial_state(study)[name]) for name in second)
    assert all(not torch.equal(end_2[name], end_1[name]) for name in norms)
    assert len(settings["parameters"]) == len(initial_state(study))  # one clipping over all that is trained


def test_a_personal_parameter_has_the_noise_that_all_others_have(house, monkeypatch):
    seen = trained_from(monkeypatch)
    study = house.study(training={"views": 2, "personal": HEAD, "learning_rate": 1.0}, privacy={"max_grad_norm": 1e-6})
    ask(house, study)
    ((begin, end, settings),) = seen
    moved = torch.cat([(end[name] - begin[name]).flatten() for name in names_of(study, "head.")])
    std = settings["noise_multiplier"] * 1e-6 / (study.training.sample_rate * 5)
    assert float(moved.std()) == pytest.approx(std, rel=0.6)  # 4 + 16 numbers or so


def test_one_patient_moves_personal_and_other_parameters_together_by_one_bound_at_most(house):
    study = house.study(training={"views": 2, "personal": NORMS})
    task, site = load(study.task), house.site("a")
    torch.manual_seed(0)
    model, cohort = task.model(), Cohort(site.cohort_folder)
    parameters = dict(model.named_parameters())
    used = [parameters[name] for name in moving(study, task, model)]
    rows = [task.example(cohort.prepared(task, p), 2, np.random.default_rng(0)) for p in cohort.patients]
    whole = clipped_sum(model, used, rows, task.loss, max_grad_norm=1e-3).gradients
    without = clipped_sum(model, used, rows[1:], task.loss, max_grad_norm=1e-3).gradients
    distance = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(whole, without, strict=True)))
    assert 0 < distance <= 1e-3 * (1 + 1e-9)


def test_a_question_worked_on_twice_because_of_a_crash_begins_with_the_same_personal_parameters(house, monkeypatch):
    seen = trained_from(monkeypatch)
    study = house.study(training={"views": 2, "personal": NORMS}, rounds=3)
    ask(house, study)
    first = ask(house, study, number=2)
    after = own(house, study)
    (house.site("a").folder / "sent" / f"{study.hash}.train").unlink()  # killed before the answer was kept
    again = ask(house, study, number=2)
    assert len(seen) == 3
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(after[name], own(house, study)[name]) for name in after)


def test_personal_parameters_that_cannot_be_read_begin_anew_with_those_that_come(house, monkeypatch):
    seen = trained_from(monkeypatch)
    study = house.study(training={"views": 2, "personal": NORMS})
    ask(house, study)
    path = house.site("a").folder / "personal" / f"{study.hash}.pt"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes()[:100])
    ask(house, study, number=2)
    assert all(torch.equal(seen[1][0][name], tensor) for name, tensor in initial_state(study).items())


def test_a_declined_study_leaves_no_personal_parameters(house):
    study = house.study(training={"views": 2, "personal": NORMS})
    ask(house, study)
    decline(house.site("a"), study, who="Dr. Alpha")
    assert list((house.site("a").folder / "personal").iterdir()) == []


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"frozen": ("encoder.*",)}, r"training.frozen has 'encoder.\*', which is none of the \d+ parameters that task segm"),
        ({"personal": ("head.*", "tail.*")}, r"training.personal has 'tail.\*', which is none"),
        ({"frozen": ("*",)}, "training.frozen names all"),
        ({"personal": ("*",)}, "nothing would leave"),
        ({"personal": ("head.*",), "frozen": ("body.*", "activation.*")}, "nothing would leave"),
        (
            {"frozen": ("head.*",), "personal": ("head.bias",)},
            "'head.bias' is named by training.frozen and by training.personal",
        ),
    ],
)
def test_patterns_that_name_nothing_everything_or_the_same_are_refused_in_words(house, training, words):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=words):
        load_for(house.study(training=training))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_counting_task_has_no_parameters_to_name(house):
    counted = {"name": "count", "tables": [{"axes": [{"field": "endpoint.age", "edges": [40, 60]}]}]}
    study = house.study(task=counted, training={"frozen": HEAD}, strategy={"name": "sum"}, rounds=1)
    with pytest.raises(ValueError, match="is counted and has no parameters"):
        load_for(study)


def test_the_contract_says_what_never_leaves_and_counts_only_what_does(house):
    study = house.study(training={"views": 2, "personal": NORMS, "frozen": ("activation.*",), "steps": 9, "work_s": 30.0})
    (sent,) = leaving(house.site("a"), study)
    assert set(sent.arrays) == set(initial_state(study)) - names_of(study, ".adn.N.") - {"activation.weight"}
    text = "\n".join(line for _, lines in contract(house.site("a"), study, days=9) for line in lines)
    assert "never leaves: what you train for yourself, *.adn.N.*" in text
    assert "stays as it came, and isn't sent back: activation.*" in text
    assert "of the 9 steps of a round as many as this machine does in 30 s" in text


# -- a model for this hospital alone --------------------------------------------------------------------------------------


@pytest.fixture
def finished(house, tmp_path):
    """A study that the hospital knows, and its finished model."""
    study = house.study(training={"views": 2, "learning_rate": 0.5, "personal": HEAD})
    Approvals(house.site("a").folder).put_down(study)
    ask(house, study)
    save(initial_state(study), tmp_path / "model.pt")
    return study, tmp_path / "model.pt"


def personalise(house, study, file, *more):
    return main(["--site", str(house.sites["a"]), "personalise", study.hash[:12], str(file), *more])


def test_a_personalised_model_learns_from_the_hospitals_patients_and_nothing_is_paid_or_leaves(house, finished, capsys):
    study, file = finished
    site = house.site("a")
    books = {name: (site.folder / name).read_bytes() for name in ("ledger.jsonl", "audit.jsonl")}
    assert personalise(house, study, file, "--steps", "15") == 0
    said = capsys.readouterr().out
    first, last = (float(text) for text in said.split("loss ")[1].splitlines()[0].split(" -> "))
    assert last < first
    (folder,) = (site.models_folder / "personalised").iterdir()
    assert folder.name == f"rehearsal-{study.hash[:12]}-15"
    made = torch.load(folder / "model.pt", weights_only=True)
    assert all(not torch.equal(made[name], tensor) for name, tensor in initial_state(study).items())
    told = json.loads((folder / "note.json").read_text())
    assert (told["steps"], len(told["patients"])) == (15, 4)
    assert "must not leave the house" in told["note"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    trained = load_trained(folder, None, site)  # as `segment` takes it
    assert (trained.study_name, trained.is_recorded) == ("rehearsal", False)
    assert all((site.folder / name).read_bytes() == book for name, book in books.items())


def test_who_was_held_back_is_scored_before_and_after(house, finished, capsys):
    study, file = finished
    site = house.site("a")
    site.model_copy(update={"test_fraction": 0.5}).save(house.sites["a"])
    held = Cohort(site.cohort_folder).split("test", test_fraction=0.5)
    assert 0 < len(held) < 4
    assert personalise(house, study, file, "--steps", "30") == 0
    said = capsys.readouterr().out
    assert f"On {len(held)} patient" in said
    told = {line.split()[0]: [float(n) for n in line.split()[1::2]] for line in said.splitlines() if line.startswith("  ")}
    task = load(study.task)
    (folder,) = (site.models_folder / "personalised").iterdir()
    for column, state in enumerate((personal.worn(site, study, initial_state(study)), torch.load(folder / "model.pt"))):
        model = task.model().eval()
        model.load_state_dict(state)
        rows = [task.score(model, Cohort(site.cohort_folder).case(patient), full=False) for patient in held]
        for name, values in told.items():
            known = [row[name] for row in rows if np.isfinite(row.get(name, math.nan))]
            assert values[column] == pytest.approx(np.mean(known), abs=6e-4), name
    assert told


def test_where_nobody_is_held_back_it_says_so(house, finished, capsys):
    assert personalise(house, *finished, "--steps", "1") == 0
    assert "Nobody is held back from training here" in capsys.readouterr().out


def test_it_begins_with_the_hospitals_own_parameters(house, finished):
    study, file = finished
    quiet = study.model_copy(update={"training": study.training.model_copy(update={"learning_rate": 1e-30})})
    Approvals(house.site("a").folder).put_down(quiet)
    kept = house.site("a").folder / "personal"
    (kept / f"{study.hash}.pt").rename(kept / f"{quiet.hash}.pt")
    assert personalise(house, quiet, file, "--steps", "1") == 0
    (folder,) = (house.site("a").models_folder / "personalised").iterdir()
    made = torch.load(folder / "model.pt", weights_only=True)
    heads = own(house, quiet)
    assert set(heads) == names_of(study, "head.")
    for name, tensor in initial_state(study).items():
        assert torch.allclose(made[name], heads.get(name, tensor), rtol=0, atol=1e-12)


def test_no_study_may_have_its_masks_drawn_by_it(house, finished, capsys):
    study, file = finished
    personalise(house, study, file, "--steps", "2")
    (folder,) = (house.site("a").models_folder / "personalised").iterdir()
    assert main(["--site", str(house.sites["a"]), "add-model", str(folder)]) == 1
    assert "a study whose masks it drew would let them out unprotected" in capsys.readouterr().err
    assert list(house.site("a").models_folder.glob("*.pt")) == []


def test_who_withdraws_takes_along_the_models_that_were_trained_on_them(house, finished):
    study, file = finished
    site = house.site("a").model_copy(update={"key_file": house.folder / "key"})
    (house.folder / "key").write_bytes(bytes(16))
    (house.folder / "key").chmod(0o600)
    pseudonym = "P" + "0" * 16
    assert personalise(house, study, file, "--steps", "2") == 0
    assert withdraw(site, pseudonym, who="Dr. Alpha").models == 0  # who was not among them takes along nothing
    (note,) = (site.models_folder / "personalised").glob("*/note.json")
    told = json.loads(note.read_text())
    note.write_text(json.dumps(told | {"patients": [*told["patients"], pseudonym]}))
    assert withdraw(site, pseudonym, who="Dr. Alpha").models == 1
    assert list((site.models_folder / "personalised").iterdir()) == []


def test_who_withdraws_while_a_model_is_trained_on_them_is_in_none(house, finished, monkeypatch, capsys):
    cohort = Cohort(house.site("a").cohort_folder)
    train = personalising.dp_sgd

    def and_one_withdraws(*said, **more):
        report = train(*said, **more)
        cohort.withdraw(cohort.patients[0])
        return report

    monkeypatch.setattr(personalising, "dp_sgd", and_one_withdraws)
    assert personalise(house, *finished, "--steps", "1") == 1
    assert "withdrew meanwhile, so no model was kept; personalise again" in capsys.readouterr().err
    assert list((house.site("a").models_folder / "personalised").iterdir()) == []


@pytest.mark.parametrize(("steps", "words"), [("0", "--steps must be at least 1"), ("2", "is not a model of study rehearsal")])
def test_what_cannot_be_personalised_is_refused_in_words(house, finished, tmp_path, capsys, steps, words):
    study, _ = finished
    save({"head.bias": torch.zeros(4)}, tmp_path / "other.pt")
    assert personalise(house, study, tmp_path / "other.pt", "--steps", steps) == 1
    assert words in capsys.readouterr().err
    assert not (house.site("a").models_folder / "personalised").exists()
