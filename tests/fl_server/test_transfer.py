import json
import pickle

import pytest
import torch
from learned_runs import HEART, generated, learn, write_run
from small import SMALL_TASK

from conf.study import LocalTraining, Study
from fl_server.app import start_of
from fl_server.registry.card import card_of
from fl_server.registry.export import export
from fl_server.registry.learned import of_run
from fl_server.registry.shelf import Shelf
from fl_server.rounds import run
from fl_server.transfer import prepare, read_source, renaming, transfer
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.fingerprint import fingerprint
from tasks.task import load


def weights(settings=SMALL_TASK, seed=0):
    torch.manual_seed(seed)
    return dict(load(settings).model().state_dict())


def equal(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def study(**settings):
    return Study(
        **{"name": "next", "konsil_version": "0.3.0", "task": SMALL_TASK, "rounds": 1, "sites": ("clinic",), **settings}
    )


# -- names and shapes -------------------------------------------------------------------------------------------------


def test_equal_names_are_taken_over_bit_for_bit():
    assert equal(transfer(weights(), weights(seed=1)).state, weights())


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.", "backbone.", "module.model."])
def test_what_training_scripts_put_before_names_is_no_obstacle(prefix):
    source = {prefix + name: tensor for name, tensor in weights().items()}
    made = transfer(source, weights(seed=1))
    assert equal(made.state, weights())
    assert made.matched["head.weight"] == f"{prefix}head.weight"


def test_a_plain_monai_unet_becomes_the_body():
    own = weights()
    body = {name.removeprefix("body."): tensor for name, tensor in own.items() if name.startswith("body.")}
    assert "model.0.conv.unit0.conv.weight" in body
    made = transfer(body, weights(seed=1), renamed=renaming(["model.*=body.model.*"]), fresh=["head.*", "activation.*"])
    assert all(torch.equal(made.state[name], own[name]) for name in own if name.startswith("body."))
    assert made.fresh == ("activation.weight", "head.bias", "head.weight")


def test_another_number_of_classes_is_named_and_drawn_anew_on_request():
    two = {**SMALL_TASK, "structures": {"blood_pool": 1}}
    with pytest.raises(
        ValueError, match=r"head.weight: shape \(2, 4, 1, 1\) in the source, \(4, 4, 1, 1\) in the study"
    ) as told:
        transfer(weights(two), weights(seed=1))
    assert "head.bias: shape (2,) in the source, (4,) in the study" in str(told.value)
    assert "body" not in str(told.value).partition("\nthe source has")[0]
    made = transfer(weights(two), weights(seed=1), fresh=["head.*"])
    assert torch.equal(made.state["head.weight"], weights(seed=1)["head.weight"])
    assert torch.equal(made.state["body.model.0.conv.unit0.conv.weight"], weights(two)["body.model.0.conv.unit0.conv.weight"])
    assert set(made.unused) == {"head.weight", "head.bias"}


def test_another_number_of_channels_of_the_input_is_named():
    source = weights()
    name = "body.model.0.conv.unit0.conv.weight"
    source[name] = source[name].repeat(1, 3, 1, 1)
    with pytest.raises(ValueError, match=r"shape \(4, 3, 3, 3\) in the source, \(4, 1, 3, 3\) in the study"):
        transfer(source, weights())


def test_missing_arrays_and_idle_patterns_are_named():
    source = weights()
    del source["activation.weight"]
    with pytest.raises(ValueError, match=r"activation\.weight: the source has no such array"):
        transfer(source, weights())
    with pytest.raises(ValueError, match="--fresh decoder: the study's model has no such array"):
        transfer(weights(), weights(), fresh=["decoder"])


def test_numbers_that_are_not_finite_are_refused():
    source = weights()
    source["head.bias"][0] = float("nan")
    with pytest.raises(ValueError, match=r"head\.bias: numbers that are not finite"):
        transfer(source, weights())


def test_two_arrays_for_one_place_are_told_apart_first():
    source = {**weights(), "module.head.bias": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"head\.bias and module\.head\.bias of the source both match"):
        transfer(source, weights())


@pytest.mark.parametrize("text", ["a", "=b", "a=", "a.*=b", "*a=*b"])
def test_a_mapping_that_says_nothing_clear_is_refused(text):
    with pytest.raises(ValueError, match="--map"):
        renaming([text])


# -- where weights come from ------------------------------------------------------------------------------------------


class Thief:
    ran = False

    def __reduce__(self):
        return (setattr, (Thief, "ran", True))


def test_a_pickle_is_refused_and_not_run(tmp_path):
    torch.save({"head.weight": torch.zeros(1), "more": Thief()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="could run code of whoever wrote it"):
        read_source(str(tmp_path / "model.pt"), folder=tmp_path)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Thief()))
    with pytest.raises(ValueError, match=r"plain\.pkl"):
        read_source(str(tmp_path / "plain.pkl"), folder=tmp_path)
    assert not Thief.ran


def test_a_checkpoint_is_looked_into(tmp_path):
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, "state_dict": weights()}, tmp_path / "model.ckpt")
    assert equal(read_source(str(tmp_path / "model.ckpt"), folder=tmp_path).state, weights())
    torch.save({"epoch": 3, "layers": [1]}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no state dict: its keys are epoch, layers"):
        read_source(str(tmp_path / "other.pt"), folder=tmp_path)


def test_what_is_no_file_of_weights_is_said_to_be_none(tmp_path):
    (tmp_path / "notes.pt").write_text("not weights")
    with pytest.raises(ValueError, match=r"notes\.pt holds no weights"):
        read_source(str(tmp_path / "notes.pt"), folder=tmp_path)
    (tmp_path / "short.pt").write_bytes(b"PK\x03\x04short")
    with pytest.raises(ValueError, match="damaged, or cut short"):
        read_source(str(tmp_path / "short.pt"), folder=tmp_path)
    with pytest.raises(ValueError, match="no such file or folder"):
        read_source(str(tmp_path / "nowhere.pt"), folder=tmp_path)
    with pytest.raises(ValueError, match="neither a run's folder"):
        read_source(str(tmp_path), folder=tmp_path)


def test_torchscript_is_read_only_where_it_is_trusted(tmp_path):
    run = write_run(tmp_path / "pilot", SMALL_TASK, weights())
    export(of_run(run), "torchscript", tmp_path / "out")
    path = str(tmp_path / "out" / "pilot.ts")
    with pytest.raises(ValueError, match="TorchScript: a program, which loading may run"):
        read_source(path, folder=tmp_path)
    assert equal(transfer(read_source(path, folder=tmp_path, programs=True).state, weights(seed=1)).state, weights())


def test_a_monai_bundle_and_a_registered_model_are_sources(tmp_path):
    run = write_run(tmp_path / "pilot", SMALL_TASK, weights())
    export(of_run(run), "monai", tmp_path / "bundle")
    source = read_source(str(tmp_path / "bundle"), folder=tmp_path)
    assert equal(source.state, weights())
    assert source.facts["source"] == "the MONAI bundle bundle"
    shelf = Shelf(tmp_path)
    shelf.register(of_run(run))
    source = read_source("pilot:1", folder=tmp_path)
    assert equal(source.state, weights())
    assert source.facts["verdict"] == "complete"
    shelf.set_standing("pilot", "withdrawn", "a mistake")
    with pytest.raises(ValueError, match="was withdrawn: a mistake"):
        read_source("pilot:1", folder=tmp_path)


# -- cine, then late enhancement --------------------------------------------------------------------------------------


def test_a_study_of_late_enhancement_starts_from_what_cine_taught(tmp_path, monkeypatch):
    learned = learn(HEART, [generated(5)], steps=5)
    cine = write_run(tmp_path / "cine", HEART, learned)
    Shelf(tmp_path).register(of_run(cine))
    lge = {**HEART, "series": ["lge"], "structures": {"blood_pool": 1, "myocardium": 2, "scar": 3}}
    encoder = ("body.model.0.*", "body.model.1.submodule.0.*")
    asked = study(task=lge, name="lge", seed=7, training={"frozen": encoder})
    source = read_source("cine", folder=tmp_path)
    name, made = prepare(asked, source, models=tmp_path / "models", fresh=["head.*"])

    monkeypatch.setenv("KONSIL_MODELS", str(tmp_path / "models"))
    asked = asked.model_copy(update={"initial_model_sha256": name})
    start = start_of(asked)  # as the study's process reads it
    assert fingerprint(start) == name
    drawn = initial_state(asked)
    for array, tensor in start.items():
        expected = drawn[array] if array.startswith("head.") else learned[array]
        assert torch.equal(tensor, expected), array
    assert load(lge).model().load_state_dict(start)
    frozen = [array for array in start if array.startswith(("body.model.0.", "body.model.1.submodule.0."))]
    assert frozen
    assert set(frozen) <= set(made.matched)

    said = json.loads((tmp_path / "models" / f"{name}.json").read_text())
    assert said["source"] == "the registered model cine:1"
    assert said["source_sha256"] == fingerprint(learned)
    assert said["fresh"] == ["head.bias", "head.weight"]
    ended = write_run(tmp_path / "runs" / "lge", lge, start, initial_model_sha256=name)
    card = card_of(of_run(ended, models=tmp_path / "models"), name="lge", version=1)
    assert card.started_from["source"] == "the registered model cine:1"


def test_hospitals_leave_the_frozen_part_as_it_came(hospitals, tmp_path):
    Shelf(tmp_path).register(of_run(write_run(tmp_path / "cine", SMALL_TASK, weights(seed=5))))
    frozen = ("body.model.0.*",)  # the way down
    asked = hospitals.study(rounds=1, training=LocalTraining(views=2, frozen=frozen))
    name, _ = prepare(asked, read_source("cine", folder=tmp_path), models=tmp_path / "models", fresh=["head.*"])
    asked = asked.model_copy(update={"initial_model_sha256": name})
    start = torch.load(tmp_path / "models" / f"{name}.pt", weights_only=True)
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": asked.to_json()})
    state, record = run(grid, asked, start, folder=tmp_path / "run")
    assert record.verdict == "complete", record.reasons
    for array, tensor in state.items():
        if array.startswith("body.model.0."):
            assert torch.equal(tensor, weights(seed=5)[array]), array
    assert not torch.equal(state["head.weight"], start["head.weight"])
