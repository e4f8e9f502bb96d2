"""Intake and trainer as two users of one machine: the trainer works on what the intake let in, and reaches no identity."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fl_client.cohort import Cohort

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two other users")

INTAKE, TRAINER, GROUP = 62001, 62002, 62000
ROOT = Path(__file__).parents[2]


PREPARED = """
import json, os, sys, traceback
from conf.imports import import_monai_alone
import_monai_alone()
import monai.networks.nets, numpy, torch
import fl_client.__main__, fl_client.contract, fl_client.ending, fl_client.patients
import fl_client.app, fl_client.intake.quarantine, fl_server.weights, simulation.grid
from conf.study import Study
from tasks.task import load

def run(asked):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(asked[name], os.O_WRONLY), number)
    if asked["warm"]:  # what is imported late has to be there before: the other user may not reach the interpreter's files
        study = Study.from_json(asked["warm"])
        task = load(study.task)
        fl_client.contract.planned(fl_client.contract.Site(name="x", folder="/", declared_size=5), study, task)
        torch.optim.SGD(task.model().parameters())
    os.setgroups([]); os.setgid(asked["group"]); os.setuid(asked["user"]); os.umask(0o007)
    sys.argv = ["-c", *asked["words"]]
    exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__", "os": os, "sys": sys})

for line in sys.stdin:
    process = os.fork()
    if not process:
        status = 1
        try:
            run(json.loads(line))
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""
"""Root's process that has imported what the others need, and forks one of them for each line of its input."""


@pytest.fixture(scope="module")
def prepared():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PREPARED]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def as_user(prepared, tmp_path):
    """Run Python code as this user, in the group that both share: a process of its own."""

    def run(user, code, *words, warm="", group=GROUP):
        told = {name: tmp_path / name for name in ("out", "err")}
        for path in told.values():
            path.write_text("")
        asked = {"user": user, "group": group, "code": code, "warm": warm, "words": [*map(str, words)]}
        print(json.dumps(asked | {name: str(path) for name, path in told.items()}), file=prepared.stdin, flush=True)
        status = int(prepared.stdout.readline())
        return subprocess.CompletedProcess(code, status, *(path.read_text() for path in told.values()))

    return run


@pytest.fixture
def house(hospitals, as_user):
    """A house whose folder belongs to the group, a cohort that the intake's user let in, an identity zone of its own."""
    reachable = Path("/tmp") / f"konsil-two-users-{os.getpid()}"  # tmp_path lies in a folder of root's own
    shutil.rmtree(reachable, ignore_errors=True)
    reachable.mkdir(mode=0o755)
    folder = reachable / "clinic"
    folder.mkdir()
    os.chown(folder, INTAKE, GROUP)
    folder.chmod(0o2770)
    source = reachable / "source"
    shutil.copytree(hospitals.site("a").cohort_folder / "cases", source / "cases")
    for path in (source, *source.rglob("*")):
        os.chown(path, INTAKE, GROUP)
    site = hospitals.site("a").model_copy(update={"folder": folder, "identity_folder": folder / "identity"})
    site.save(folder / "site.yaml")
    os.chown(folder / "site.yaml", INTAKE, GROUP)
    (folder / "site.yaml").chmod(0o640)
    done = as_user(INTAKE, LET_IN, source, folder)
    assert done.returncode == 0, done.stderr
    yield folder
    shutil.rmtree(reachable)


LET_IN = """
import sys
from pathlib import Path
from fl_client.cohort import Cohort
from fl_client.intake.quarantine import Quarantine
for case in Cohort(sys.argv[1]):
    Cohort(Path(sys.argv[2]) / "cohort").admit(case)
identity = Path(sys.argv[2]) / "identity"
identity.mkdir(mode=0o700)
identity.chmod(0o700)
Quarantine(identity / "quarantine").note("x.dcm", "a reason", pseudonym="p0-0")
"""

TRAIN = """
import sys
from pathlib import Path
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from conf.study import Study
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
study = Study.from_json(sys.argv[2])
grid = InProcessGrid("fl_client.app:app", [{"site": sys.argv[1] + "/site.yaml"}], {"study": study.to_json()})
content = {"config": ConfigRecord({"server-round": 1, "study-hash": study.hash}), "arrays": ArrayRecord(initial_state(study))}
(reply,) = grid.send_and_receive([Message(RecordDict(content), grid.get_node_ids()[0], "train")])
failed = Path(sys.argv[1]) / "log" / "failures.log"
print("answered" if reply.has_content() else failed.read_text())
try:
    list((Path(sys.argv[1]) / "identity").iterdir())
    print("it sees the identity zone")
except PermissionError:
    print("the identity zone is closed")
"""

ONCE_MORE = """
import sys
from pathlib import Path
from fl_client.cohort import Cohort
cohort = Cohort(Path(sys.argv[1]) / "cohort")
print(cohort.withdraw("p0-0"), *cohort.patients)
"""


def test_the_trainer_trains_and_writes_the_books_and_the_identity_zone_is_closed_to_it(house, hospitals, as_user):
    study = hospitals.study(sites=("a", "b"))
    done = as_user(TRAINER, TRAIN, house, study.to_json(), warm=study.to_json())
    assert done.stdout.splitlines() == ["answered", "the identity zone is closed"], done.stderr
    assert (house / "ledger.jsonl").stat().st_uid == TRAINER
    assert (house / "ledger.jsonl").stat().st_gid == GROUP
    assert (house / "ledger.jsonl").stat().st_mode & 0o777 == 0o660
    assert list((house / "cohort" / "prepared").iterdir())


def test_the_intake_takes_a_patient_out_after_the_trainer_has_prepared_them(house, hospitals, as_user):
    study = hospitals.study(sites=("a", "b")).to_json()
    assert as_user(TRAINER, TRAIN, house, study, warm=study).returncode == 0
    done = as_user(INTAKE, ONCE_MORE, house)
    assert done.stdout.split() == ["True", "p0-1", "p0-2", "p0-3"], done.stderr
    assert not list((house / "cohort" / "prepared").rglob("p0-0*"))


PAUSE = """
import os
from fl_client.__main__ import main
for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
os.umask(0o022)
status = main(["--site", sys.argv[1] + "/site.yaml", "pause"])
assert os.umask(0o022) == 0o022
sys.exit(status)
"""

GO_ON = """
from pathlib import Path
from fl_client.audit import AuditLog
from fl_client.patients import note
from fl_client.site import Site
site = Site.load(sys.argv[1] + "/site.yaml")
log = AuditLog(site.folder / "audit.jsonl")
log.append("egress", bytes=7)
print(*(line.get("who", "") for line in log.lines))
note(site, patient="p0-1", left_out="nothing")
"""

CLOSED_LOG = """
from pathlib import Path
folder = Path(sys.argv[1]) / "log"
folder.mkdir(exist_ok=True)
(folder / "training.jsonl").touch(mode=0o600)
"""


def test_what_a_person_with_an_ordinary_umask_and_no_name_does_locks_the_trainer_out_of_nothing(house, as_user):
    done = as_user(INTAKE, PAUSE, house)
    assert done.returncode == 0, done.stderr
    done = as_user(TRAINER, GO_ON, house)
    assert done.stdout == f"uid {INTAKE} \n", done.stderr


def test_a_training_log_that_can_not_be_written_stops_no_round(house, as_user):
    assert as_user(INTAKE, CLOSED_LOG, house).returncode == 0
    done = as_user(TRAINER, GO_ON, house)
    assert done.returncode == 0, done.stderr
    assert "training.jsonl can't be written: Permission denied" in done.stderr


def test_nobody_else_reads_anything(house, as_user):
    look = "from pathlib import Path; list((Path(sys.argv[1]) / 'cohort').iterdir())"
    assert as_user(62003, look, house).returncode == 0  # the group's third member
    stranger = as_user(62004, look, house, group=62004)
    assert "PermissionError" in stranger.stderr


def test_without_the_bit_everything_is_for_the_owner_alone(hospitals):
    folder = hospitals.site("a").cohort_folder
    with Cohort(folder)._lock(1):
        assert (folder / ".lock").stat().st_mode & 0o777 == 0o600
