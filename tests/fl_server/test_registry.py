import json
import shutil
import stat
import subprocess

import pytest
import torch
from learned_runs import write_run
from small import SMALL_TASK

from fl_server.registry import seal
from fl_server.registry.learned import of_run
from fl_server.registry.shelf import Shelf
from tasks.task import load


def weights(seed=0):
    torch.manual_seed(seed)
    return dict(load(SMALL_TASK).model().state_dict())


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs" / "pilot", SMALL_TASK, weights())


@pytest.fixture
def shelf(tmp_path):
    (tmp_path / "house").mkdir()
    return Shelf(tmp_path / "house")


@pytest.fixture
def version(shelf, run):
    return shelf.register(of_run(run))


def test_a_registered_model_is_the_one_that_was_learned(shelf, version):
    assert version.label == "pilot:1"
    assert {path.name for path in version.folder.iterdir()} == {
        *("model.pt", "task.json", "card.md", "card.json", "record.json", "manifest.json", "manifest.sig", "public.pem")
    }
    state = shelf.open("pilot").state
    assert all(torch.equal(state[name], tensor) for name, tensor in weights().items())
    assert shelf.problems(version) == []
    assert shelf.gaps() == []


def test_the_key_is_made_once_and_only_its_owner_reads_it(shelf, run):
    shelf.register(of_run(run))
    path = shelf.folder.parent / "registry.key"
    before = path.read_bytes()
    shelf.register(of_run(run))
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_signature_is_one_that_openssl_takes(version, tmp_path):
    import base64

    (tmp_path / "raw.sig").write_bytes(base64.b64decode((version.folder / "manifest.sig").read_text()))
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin", "-in", "manifest.json", "-sigfile"]
    done = subprocess.run([*command, str(tmp_path / "raw.sig")], cwd=version.folder, capture_output=True, text=True)
    assert "Verified Successfully" in done.stdout, done.stderr


def test_versions_count_up_and_a_removed_number_is_not_given_again(shelf, run):
    for number in (1, 2, 3):
        assert shelf.register(of_run(run)).number == number
    shutil.rmtree(shelf.folder / "pilot" / "3")
    assert shelf.register(of_run(run)).number == 4
    assert shelf.gaps() == [f"pilot:3 was registered on {shelf.find('pilot:1').when[:10]} and is not there"]


@pytest.mark.parametrize("name", ["model.pt", "task.json", "card.md", "card.json", "record.json"])
def test_a_changed_file_is_named(shelf, version, name):
    content = bytearray((version.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (version.folder / name).write_bytes(content)
    assert shelf.problems(version) == [f"{name} was changed"]
    with pytest.raises(ValueError, match=f"{name} was changed"):
        shelf.open("pilot")


def test_missing_and_added_files_and_links_are_named(shelf, version, tmp_path):
    (version.folder / "card.md").unlink()
    (version.folder / "more.txt").write_text("more")
    (version.folder / "model.pt").rename(tmp_path / "model.pt")
    (version.folder / "model.pt").symlink_to(tmp_path / "model.pt")
    found = shelf.problems(version)
    assert "card.md is missing" in found
    assert "more.txt was added" in found
    assert "model.pt is a link; it was a file" in found


def test_an_unsigned_version_and_a_forged_one_are_told_apart(shelf, version):
    signature = (version.folder / "manifest.sig").read_text()
    (version.folder / "manifest.sig").unlink()
    assert shelf.problems(version) == ["unsigned: there is no manifest.sig"]
    (version.folder / "manifest.sig").write_text(signature)
    manifest = (version.folder / "manifest.json").read_text()
    (version.folder / "manifest.json").write_text(manifest.replace('"version": 1', '"version": 2'))
    found = shelf.problems(version)
    assert "manifest.json was changed after it was signed, or manifest.sig was" in found
    assert "its manifest is that of pilot:2" in found


def test_another_houses_signature_is_named_as_such(shelf, version, run, tmp_path):
    (tmp_path / "other").mkdir()
    theirs = Shelf(tmp_path / "other").register(of_run(run))
    shutil.rmtree(version.folder)
    shutil.copytree(theirs.folder, version.folder)
    foreign, own = (seal.fingerprint(Shelf(tmp_path / name).public)[:16] for name in ("other", "house"))
    assert f"signed by another key ({foreign}), not by {own}" in shelf.problems(version)


def test_an_older_version_put_in_a_newer_ones_place_is_found(shelf, version, run):
    newer = shelf.register(of_run(run))
    shutil.rmtree(newer.folder)
    shutil.copytree(version.folder, newer.folder)
    assert "its manifest is that of pilot:1" in shelf.problems(newer)


def test_without_the_key_nothing_is_registered_under_a_new_one(shelf, version, run):
    (shelf.folder.parent / "registry.key").unlink()
    with pytest.raises(ValueError, match="is not there; bring it back"):
        shelf.register(of_run(run))


def test_a_withdrawn_model_says_why_and_is_not_opened(shelf, version):
    shelf.set_standing("pilot", "withdrawn", "north's masks were shifted")
    assert shelf.find("pilot:1").standing == "withdrawn"
    with pytest.raises(ValueError, match="pilot:1 was withdrawn: north's masks were shifted"):
        shelf.open("pilot:1")
    assert shelf.problems(version) == []


def test_the_latest_that_stands_is_found_by_name(shelf, version, run):
    shelf.register(of_run(run))
    shelf.set_standing("pilot:2", "deprecated", "version 1 was better")
    assert shelf.find("pilot").number == 1


def test_a_withdrawal_needs_a_reason(shelf, version):
    with pytest.raises(ValueError, match="a reason is needed"):
        shelf.set_standing("pilot", "withdrawn", " ")


def test_a_withdrawal_that_is_taken_out_of_the_log_leaves_a_gap(shelf, version, run):
    shelf.set_standing("pilot", "withdrawn", "wrong")
    shelf.register(of_run(run))
    log = shelf.folder / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + lines[2])
    assert shelf.gaps() == ["log.jsonl, line 2: a line before it was changed or removed"]
    log.write_text("".join([lines[0], lines[1].replace("wrong", "right"), lines[2]]))
    assert any("line 2: not signed by" in problem for problem in shelf.gaps())


def test_a_version_whose_line_a_crash_took_is_logged_with_the_next(shelf, version, run):
    (shelf.folder / "log.jsonl").unlink()
    assert shelf.problems(version) == ["log.jsonl doesn't know it"]
    assert shelf.register(of_run(run)).number == 2
    assert shelf.problems(version) == []


def test_what_was_half_written_is_removed_and_never_listed(shelf, version, run):
    half = shelf.folder / ".part-killed"
    half.mkdir()
    (half / "model.pt").write_bytes(b"half")
    assert [v.label for v in shelf.versions()] == ["pilot:1"]
    shelf.register(of_run(run))
    assert not half.exists()


def test_a_full_disk_leaves_nothing(shelf, version, run, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(seal, "force", full)
    with pytest.raises(OSError, match="No space"):
        shelf.register(of_run(run))
    assert [v.label for v in shelf.versions()] == ["pilot:1"]
    assert not list(shelf.folder.glob(".part-*"))


def test_a_degraded_study_is_registered_as_such_and_a_failed_one_refused(shelf, tmp_path):
    degraded = write_run(tmp_path / "runs" / "degraded", SMALL_TASK, weights(), answer="failed")
    version = shelf.register(of_run(degraded))
    card = json.loads((version.folder / "card.json").read_text())
    assert (card["verdict"], card["reasons"]) == ("degraded", ["round 1: north failed (the disk was full)"])
    failed = write_run(tmp_path / "runs" / "failed", SMALL_TASK, weights(), answer="failed", sites=("north",))
    with pytest.raises(ValueError, match=r"failed failed \(round 1: north failed"):
        shelf.register(of_run(failed))
    version = shelf.register(of_run(failed), even_failed=True)
    assert "Verdict of the study: **failed**" in (version.folder / "card.md").read_text()


def test_a_model_of_another_run_is_not_taken(run):
    torch.save(weights(seed=1), run / "model.pt")
    with pytest.raises(ValueError, match="is the model of no round in its record"):
        of_run(run)


def test_a_name_that_would_leave_the_registry_is_refused(shelf, run):
    for name in ("../x", "a/b", ".hidden", "x" * 65):
        with pytest.raises(ValueError, match="can't be called"):
            shelf.register(of_run(run), name=name)
