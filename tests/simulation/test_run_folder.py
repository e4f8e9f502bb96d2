import json
import subprocess
import sys

import pytest

from simulation.__main__ import main, settings_of
from simulation.run_folder import FolderInUse, settle, to_itself

FILES = ("record.json", "report.html", "scores.jsonl", "metrics.jsonl", "model.pt", "model.ts.pt", "model.ts.json")
FOLDERS = ("overlays", "ledgers")


@pytest.fixture
def folder(tmp_path):
    """The folder of a finished run with the default settings."""
    folder = tmp_path / "runs" / "rehearsal"
    folder.mkdir(parents=True)
    settle(settings_of([]), folder)
    for name in FILES:
        (folder / name).write_text("of the first run")
    for name in FOLDERS:
        (folder / name).mkdir()
        (folder / name / "x").touch()
    (folder / "timings.json").write_text('{"hospitals": 5.0}')
    return folder


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_equal_settings_leave_everything_as_it_is(folder):
    before = names(folder)
    assert not settle(settings_of([]), folder)
    assert not settle(settings_of(["workers=0", "runs_folder=elsewhere"]), folder)  # the numbers don't depend on these
    assert names(folder) == before


@pytest.mark.parametrize("change", ["rounds=3", "repeats=2", "privacy.epsilon=3", "hospitals.patients=11", "full_scores=none"])
def test_results_of_other_settings_are_removed(folder, change):
    assert settle(settings_of([change]), folder)
    assert names(folder) == {"settings.json"}
    assert json.loads((folder / "settings.json").read_text()) == settings_of([change]).model_dump(mode="json")
    assert not settle(settings_of(["rounds=4"]), folder)  # there is nothing left to remove


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_results_of_settings_that_cannot_be_read_are_removed(folder, text):
    (folder / "settings.json").unlink()
    if text is not None:
        (folder / "settings.json").write_text(text)
    assert settle(settings_of([]), folder)
    assert names(folder) == {"settings.json"}


def test_a_run_with_other_settings_that_is_interrupted_leaves_no_mixture_and_says_what_it_removed(folder, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("simulation.rehearsal.open_hospitals", interrupt)
    overrides = [f"runs_folder={folder.parent}", "workers=0"]
    with pytest.raises(KeyboardInterrupt):
        main(overrides)
    assert names(folder) >= {*FILES, *FOLDERS}
    assert "removed" not in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        main([*overrides, "rounds=3"])
    assert names(folder) & {*FILES, *FOLDERS} == set()
    assert "held results of other settings: they are removed" in " ".join(capsys.readouterr().out.split())


HOLDER = """
import sys
from pathlib import Path
from simulation.run_folder import to_itself
with to_itself(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_touches_nothing(folder, capsys):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "in\n"
        assert main([f"runs_folder={folder.parent}", "rounds=3"]) == 2
        said = capsys.readouterr()
        assert f"another konsil-simulate (process {holder.pid}) runs in {folder}; wait until it has ended" in said.err
        assert said.out == ""
        assert names(folder) >= {*FILES, *FOLDERS}
        holder.kill()
        holder.wait()
    with to_itself(folder):  # whoever is killed keeps nobody out
        pass


def test_a_folder_is_free_again_when_the_run_has_ended(tmp_path):
    with to_itself(tmp_path / "new"):
        with pytest.raises(FolderInUse), to_itself(tmp_path / "new"):
            pass
        with to_itself(tmp_path / "other"):
            pass
    with to_itself(tmp_path / "new"):
        pass
