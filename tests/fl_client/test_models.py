"""`konsil-site add-model`, and the whole of what it is for: a study whose masks a model draws is declined before it."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from test_app import ask, declined

from fl_client.__main__ import main
from fl_client.app import ledger_of
from fl_client.approval import Approvals
from fl_client.cohort import Cohort
from fl_client.privacy import epsilon
from tasks.fingerprint import fingerprint
from tasks.radiomics.features import Extractor, to_image
from tasks.task import load, load_for, settled

PARAMETERS = {"imageType": {"Original": {}}, "featureClass": {"firstorder": ["Mean"]}, "setting": {"minimumROIDimensions": 1}}


@pytest.fixture
def small(hospitals) -> dict[str, object]:
    """The segmentation task at a size that runs in milliseconds."""
    return hospitals.study().task


@pytest.fixture
def model(small) -> dict[str, torch.Tensor]:
    """Weights of a small network that finds something of everything."""
    torch.manual_seed(3)
    network = load(small).model()
    torch.nn.init.normal_(network.head.weight, std=5.0)
    return network.state_dict()


@pytest.fixture
def file(model, tmp_path) -> Path:
    torch.save(model, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def study(hospitals, model, small):
    """A forest that learns from the muscle as the model draws it; every patient here has a label."""
    for number, name in enumerate(hospitals.sites):
        cohort = Cohort(hospitals.site(name).cohort_folder)
        for i in range(4):
            case = cohort.case(f"p{number}-{i}")
            unread = tuple(dataclasses.replace(volume, mask=None) for volume in case.volumes)
            cohort.admit(dataclasses.replace(case, volumes=unread, endpoints={"disease": i % 2}))
    image = {"series": "cine_ed", "regions": "label", "label": 2, "parameters": PARAMETERS}
    task = {
        "name": "radiomics",
        "image": image | {"masks": {"task": small, "sha256": fingerprint(model)}},
        "radiomic": [{"name": "original_firstorder_Mean", "lower": 0, "upper": 200}],
        "label": {"endpoint": "disease"},
        "learner": {"kind": "forest", "trees": 4, "depth": 2},
    }
    return hospitals.study(name="muscle", task=settled(task), rounds=1, training={}, strategy={"name": "sum"})


def add(hospitals, file: Path, name: str = "a") -> int:
    return main(["--site", str(hospitals.sites[name]), "add-model", str(file)])


def test_a_study_of_predicted_masks_is_declined_in_words_until_its_model_is_added(hospitals, study, model, file):
    sha = fingerprint(model)
    for kind in ("query.enroll", "train"):
        reply = ask(hospitals, study, kind=kind, only="a")[0]
        reason = reply.content["enrolment"]["reason"] if kind == "query.enroll" else declined(reply)
        assert f"masks are drawn by the model {sha[:12]}, which this site hasn't got yet (konsil-site add-model FILE)" in reason
    assert ledger_of(hospitals.site("a")).events == ()
    assert add(hospitals, file) == 0
    answers = ask(hospitals, study)
    assert answers[0].has_content()
    assert [declined(reply).startswith("the study's masks") for reply in answers[1:]] == [True, True]  # each site by itself
    (event,) = ledger_of(hospitals.site("a")).events
    assert (event.study, event.kind) == (study.hash, "leaf counts")
    assert epsilon([event], delta=1e-3) <= 8


def test_with_the_model_every_patients_rows_are_those_of_the_masks_it_draws(hospitals, study, small, model, file):
    assert add(hospitals, file) == 0
    site = hospitals.site("a")
    task, network = load_for(study, models=site.models_folder), load(small)
    segmenter = network.model()
    segmenter.load_state_dict(model)
    for case in Cohort(site.cohort_folder):
        mask = network.segment(segmenter, case)["cine_ed"].mask
        volume = case.volume("cine_ed")
        regions = to_image((mask == 2).astype(np.uint8), volume.spacing_mm)
        by_hand = Extractor.of(PARAMETERS).features(to_image(volume.image, volume.spacing_mm), regions)
        assert task.rows(task.prepare(case)).X.tolist() == [[by_hand[1]["original_firstorder_Mean"]]]
        assert by_hand[1]["original_firstorder_Mean"] == pytest.approx(volume.image[mask == 2].mean(), rel=1e-5)


def test_the_table_of_features_has_them_too(hospitals, study, file, tmp_path, capsys):
    site, out = hospitals.sites["a"], tmp_path / "table.csv"
    (tmp_path / "study.json").write_text(study.to_json())
    said = ["--site", str(site), "features", "--study", str(tmp_path / "study.json"), "--out", str(out), "--workers", "1"]
    assert main(said) == 1
    assert "which this site hasn't got yet (konsil-site add-model FILE)" in capsys.readouterr().err
    assert add(hospitals, file) == 0
    assert main(said) == 0
    task = load_for(study, models=hospitals.site("a").models_folder)
    expected = [task.rows(task.prepare(case)).X[0, 0] for case in Cohort(hospitals.site("a").cohort_folder)]
    lines = [line.split(",") for line in out.read_text().splitlines()]
    column = lines[0].index("original_firstorder_Mean")
    assert [float(line[column]) for line in lines[1:]] == expected
    assert f"drawn by the model {fingerprint(torch.load(file, weights_only=True))}" in out.with_suffix(".json").read_text()


def test_the_fingerprint_and_the_studies_that_lean_on_it_are_told(hospitals, study, small, model, file, capsys):
    approvals, sha = Approvals(hospitals.site("a").folder), fingerprint(model)
    assert add(hospitals, file) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"a now has the model {sha} (")
    assert "no study that was put down here leans on it" in said
    masks = study.task["image"]["masks"]
    other, wide = ({**study.task["image"], "masks": masks | more} for more in ({"sha256": "ab" * 32}, {}))
    wide["masks"] = {**masks, "task": {**small, "channels": [8, 8]}}
    waiting = study.model_copy(update={"name": "waiting", "task": {**study.task, "image": other}})
    broken = study.model_copy(update={"name": "broken", "task": {**study.task, "image": wide}})
    for each in (study, waiting, broken, hospitals.study()):
        approvals.put_down(each)
    approvals.decide(study, "approved", who="Dr. Alpha", epsilon=8.0)
    assert add(hospitals, file) == 0
    said = capsys.readouterr().out
    assert f"a has had the model {sha} already" in said
    assert f"study muscle ({study.hash[:12]}) leans on it: approved by Dr. Alpha\n" in said
    assert f"study waiting ({waiting.hash[:12]}) leans on another model, abababababab..., which a hasn't got" in said
    assert f"study broken ({broken.hash[:12]}) leans on it: not decided. WARNING: the study can't use it" in said
    assert "rehearsal" not in said  # its masks are a reader's


def test_the_file_is_named_by_the_weights_and_is_for_this_user_alone(hospitals, model, file, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    file.rename(folder / "model.pt")
    assert add(hospitals, folder) == 0
    (place,) = hospitals.site("a").models_folder.iterdir()
    assert place.name == f"{fingerprint(model)}.pt"
    assert place.stat().st_mode & 0o777 == 0o600
    assert place.parent.stat().st_mode & 0o777 == 0o700
    found = torch.load(place, weights_only=True)
    assert all(torch.equal(found[name], model[name]) for name in model)
    assert found.keys() == model.keys()


def test_a_model_that_was_cut_short_meanwhile_is_written_anew(hospitals, model, file):
    assert add(hospitals, file) == 0
    (place,) = hospitals.site("a").models_folder.iterdir()
    place.write_bytes(place.read_bytes()[:-50])
    assert add(hospitals, file) == 0
    assert fingerprint(torch.load(place, weights_only=True)) == place.stem == fingerprint(model)


class Code:
    """What a pickle can bring along."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.unlink(), "model.pt is missing: a run leaves its model as model.pt in its own folder"),
        (lambda path: path.write_text("weights"), "model.pt holds no weights"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "model.pt holds no weights"),
        (lambda path: path.write_bytes(pickle.dumps(Code(path.with_name("ran")))), "model.pt holds no weights"),
        (lambda path: torch.save({}, path), "model.pt holds no weights: it is empty"),
        (lambda path: torch.save([torch.ones(2)], path), "holds something else than weights by name"),
        (lambda path: torch.save({"epoch": 3}, path), "holds something else than weights by name"),
        (lambda path: torch.save({"w": torch.tensor([1.0, torch.nan])}, path), "holds numbers that are not finite, first in w"),
        (lambda path: torch.save({"w": torch.ones(2, dtype=torch.bfloat16)}, path), "a number type that konsil doesn't know"),
    ],
)
def test_what_is_no_weights_file_is_refused_in_words_and_nothing_is_kept(hospitals, file, capsys, spoil, told):
    spoil(file)
    assert add(hospitals, file) == 1
    assert told in capsys.readouterr().err
    assert not hospitals.site("a").models_folder.exists()
    assert not file.with_name("ran").exists()


def test_a_full_disk_is_told_in_words_and_leaves_nothing(hospitals, file, monkeypatch, capsys):
    real = os.open

    def full(path, flags, *mode, **more):
        return real("/dev/full", os.O_WRONLY) if str(path).endswith(".part") else real(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", full)
    assert add(hospitals, file) == 1
    assert "there is no room left on the disk for" in capsys.readouterr().err
    assert not list(hospitals.site("a").models_folder.iterdir())
