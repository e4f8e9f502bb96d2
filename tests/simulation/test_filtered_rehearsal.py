"""A rehearsal whose coordinator filters noise by generated patients, and a study that takes them along."""

import json

import pytest
import torch

from conf.study import Study
from fl_server.__main__ import main as konsil_study
from fl_server.house import House
from fl_server.page.course import read
from fl_server.page.views import facts
from fl_server.record import Record
from fl_server.report.checklist import answers
from fl_server.report.findings import Findings
from fl_server.start import filtering_by, require_references
from simulation.__main__ import main, settings_of
from tasks.fingerprint import fingerprint


@pytest.fixture(scope="module")
def filtered(tiny):
    """The tiny rehearsal's hospitals once more, in a folder of its own beside it: private and plain federation, filtered."""
    overrides = [one for one in tiny.overrides if not one.startswith(("name=", "strategy", "arms="))]
    changes = ["name=filtered", "strategy=fedwiener", "arms=[federation_private,federation_plain]", "evaluate_every=100"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulation.pretraining.THREADS", 1)  # as the tiny rehearsal has it
        assert main([*overrides, *changes]) == 0
    return tiny.folder.parent / "filtered"


def test_its_private_federation_filters_by_the_patients_in_its_folder(filtered):
    free = torch.load(filtered / "references.pt", weights_only=True)
    study = json.loads((filtered / "record.json").read_text())["study"]
    assert study["strategy"]["name"] == "fedwiener"
    assert study["strategy"]["references_sha256"] == fingerprint(free)
    patients = {name.partition("/")[0] for name in free}
    assert all(name.startswith("G5000") for name in patients)  # free ones, of no hospital
    start, end = (torch.load(filtered / name, weights_only=True) for name in ("start.pt", "model.pt"))
    assert any(not torch.equal(start[name], end[name]) for name in start)


def test_the_page_and_the_report_say_by_whom_it_filters(filtered):
    record = Record.read(filtered / "record.json")
    free = record.study["strategy"]["references_sha256"][:12]
    told = dict(facts(read(filtered / "record.json")))
    assert told["Filtered"] == f"noise is taken out of the mean update by generated patients, {free}"
    said = [text for text in answers(Findings(filtered)).values() if "combined by fedwiener" in text]
    assert len(said) == 1
    assert f", noise filtered by generated patients ({free})." in said[0]


def test_without_patients_to_draw_it_is_refused_at_once(tiny):
    changes = ["strategy=fedwiener", "pretraining=null"]
    with pytest.raises(ValueError, match=r"filters by generated patients; pretraining says which, and is null"):
        settings_of([*[one for one in tiny.overrides if not one.startswith(("strategy", "pretraining"))], *changes])


def test_patients_named_beforehand_are_refused_at_once(tiny):
    named = ["strategy=fedwiener", f"strategy.references_sha256={'0' * 64}"]
    with pytest.raises(ValueError, match=r"references_sha256 is left out: a rehearsal draws the free patients"):
        settings_of([*[one for one in tiny.overrides if not one.startswith("strategy")], *named])


def test_a_study_that_trains_no_network_is_refused_at_once():
    with pytest.raises(ValueError, match=r"with masks of reader none is trained"):
        settings_of(["study=radiomics", "size=small", "strategy=fedwiener", "radiomics.masks=[reader]"])
    assert settings_of(["study=radiomics", "size=small", "radiomics.masks=[reader]"]).radiomics is not None


def test_masks_of_two_hospitals_are_refused_at_once(tiny):
    with pytest.raises(ValueError, match="a secure sum needs at least 3 hospitals, not 2"):
        settings_of([*tiny.overrides, "secure={}"])


def test_a_coordinator_takes_them_along(filtered, tmp_path):
    file = filtered / "references.pt"
    given = json.loads((filtered / "record.json").read_text())["study"]
    bare = {**given, "strategy": {**given["strategy"], "references_sha256": None}}
    named = filtering_by(file, bare)
    study = Study.from_json(json.dumps(named))
    assert study.strategy.references_sha256 == given["strategy"]["references_sha256"]
    assert filtering_by(file, given) == given  # what is named stays
    house = House(folder=tmp_path, hosts=("localhost",), public_port=9000, superlink_port=9001)
    with pytest.raises(ValueError, match=r"filters by references .*; --references FILE says where they are"):
        require_references(house, study, None)
    require_references(house, study, file)
    kept = torch.load(house.models / f"{study.strategy.references_sha256}.pt", weights_only=True)
    assert fingerprint(kept) == study.strategy.references_sha256
    require_references(house, study, None)
    with pytest.raises(ValueError, match=r"holds the references .*; the study filters by"):
        require_references(house, study, filtered / "start.pt")
    nameless = Study.from_json(json.dumps(bare))
    with pytest.raises(ValueError, match=r"--references FILE says where they are, such as the references\.pt"):
        require_references(house, nameless, None)
    plain = Study.from_json(json.dumps({**bare, "strategy": {"name": "fedavg"}}))
    with pytest.raises(ValueError, match="names no free patients"):
        require_references(house, plain, file)


def test_a_file_of_something_else_is_refused_before_the_study_starts(filtered, tmp_path):
    given = json.loads((filtered / "record.json").read_text())["study"]
    bare = {**given, "strategy": {**given["strategy"], "references_sha256": None}}
    house = House(folder=tmp_path, hosts=("localhost",), public_port=9000, superlink_port=9001)
    weights = filtered / "start.pt"
    study = Study.from_json(json.dumps(filtering_by(weights, bare)))
    with pytest.raises(ValueError, match="each array is called PATIENT/ARRAY"):
        require_references(house, study, weights)
    assert not list(house.models.glob("*.pt"))
    (tmp_path / "words.pt").write_text("no arrays")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, said in (("words.pt", "is no file of arrays"), ("list.pt", "something else than arrays by name")):
        with pytest.raises(ValueError, match=said):
            filtering_by(tmp_path / name, bare)


def test_show_takes_the_same_file_and_says_so_when_it_lacks_one(filtered, tmp_path, capsys):
    given = json.loads((filtered / "record.json").read_text())["study"]
    bare = {**given, "strategy": {**given["strategy"], "references_sha256": None}}
    (tmp_path / "study.json").write_text(json.dumps(bare))
    assert konsil_study(["show", str(tmp_path / "study.json"), "--json"]) == 0
    assert "give `show` the same file" in capsys.readouterr().err
    assert konsil_study(["show", str(tmp_path / "study.json"), "--json", "--references", str(filtered / "references.pt")]) == 0
    said = capsys.readouterr()
    shown = Study.from_json(said.out)
    assert shown.strategy.references_sha256 == given["strategy"]["references_sha256"]
    assert "same file" not in said.err
