"""What is wrong, forged or hostile, met by real processes over a real network.

One coordinator runs for all tests (`konsil-study serve`: gate, SuperLink, SuperExec), and hospitals as they start in earnest:
`north` whole and, in the slow tests, `south` under another user; others only until they are turned away. More gates before the
same SuperLink stand for a coordinator whose certificate has expired, for one of another konsil, and for one that is broken. A
hostile coordinator is this process: it holds the key of the SuperExec, takes the study's task in its place, and says over
Flower's own grid what it likes.
"""

import contextlib
import datetime
import hashlib
import json
import os
import re
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.common.serde import fab_to_proto, message_to_proto, run_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from node_in_process import bundle
from serving import running
from small import SMALL_TASK

from conf.study import LARGEST, Study
from fl_client.__main__ import main as konsil
from fl_client.audit import AuditLog
from fl_client.cohort import Cohort
from fl_client.dialling import REFUSED
from fl_client.joining import join
from fl_client.keys import make_key
from fl_client.loopback import write_private
from fl_client.privacy import Ledger
from fl_client.release import DECLINED
from fl_client.site import Site
from fl_server import certificates, serve
from fl_server.control import control
from fl_server.gate import Gate, Refusal
from fl_server.house import House
from fl_server.prompt_grid import PromptGrid
from fl_server.rounds import run as run_rounds
from fl_server.serve import join as let_in
from fl_server.tokens import Tokens
from fl_server.weights import initial_state
from simulation.federation.programs import Daemon, environment, free_port, konsil_site, konsil_study, run
from tasks.case import Case, Volume

pytestmark = [  # Flower's own: its builder of bundles, and its client with a file of certificates
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.verify=<str>. is deprecated:DeprecationWarning"),
]

NOBODY = 65534
ROOT = Path(__file__).parents[2]
TURNED_AWAY = ("elsewhere", "late", "stranger", "rekeyed")


def disc(patient, radius):
    """A patient with a disc and a ring around it, in two phases."""
    rows, columns = np.mgrid[:32, :32] - 16
    distance = np.hypot(rows, columns)
    mask = np.stack([np.where(distance < radius, 1, np.where(distance < radius + 3, 2, 0)).astype(np.uint8)] * 3)
    image = (100.0 + 100 * (mask == 1) - 50 * (mask == 2)).astype(np.float32)
    frame = np.diag([8.0, 3.0, 3.0, 1.0])
    return Case(patient, tuple(Volume(series, image, frame, mask) for series in ("cine_ed", "cine_es")))


def as_nobody():
    """What stands before a command that another user runs, as a service manager does; empty if that can't be done here.

    Where the interpreter lies in a folder of root's own, the command gets a view of the disk in which only that is open.
    """
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return []
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    home = Path(sys.base_prefix).resolve()
    closed = [folder for folder in (*home.parents[::-1], home) if not folder.stat().st_mode & 0o001]
    if closed:
        opened = 'mount --bind "$1" /mnt && mount -t tmpfs -o mode=755 none "$2" && mkdir -p "$1" && mount --bind /mnt "$1"'
        script = f'{opened} && umount /mnt && shift 2 && exec "$@"'
        become = ["unshare", "--mount", "sh", "-c", script, "sh", str(home), str(closed[0]), *become]
    done = subprocess.run([*become, sys.executable, "-c", ""], capture_output=True, check=False, cwd=ROOT)
    return become if done.returncode == 0 else []


class Town:
    """A coordinator and its hospitals in one folder."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "commands.log"
        self.house_folder = folder / "coordinator"
        self.become = as_nobody()
        self.started = {}

    def settings(self, name):
        return self.folder / name / "site.yaml"

    def site(self, name):
        return Site.load(self.settings(name))

    def found(self, name):
        """A hospital of four patients that asks nobody."""
        folder = self.folder / name
        for number in range(4):
            Cohort(folder / "cohort").admit(disc(f"{name}{number}", 4 + number / 2))
        fields = {"declared_size": 5, "approve_all": True, "test_fraction": 0.0, "minimum_cohort": 1}
        Site(name=name, folder=folder, **fields).save(self.settings(name))
        write_private(folder / "pseudonym.key", secrets.token_bytes(32))

    def joined(self, name, *, port=None):
        """Have its key registered at the coordinator, and let it dial another port from then on."""
        address, token = f"localhost:{self.house.port}", Tokens(self.house.tokens).give(name)
        join(self.settings(name), token=token, address=address, root_certificates=self.house.authority)
        if port is not None:
            text = self.settings(name).read_text()
            self.settings(name).write_text(text.replace(address, f"localhost:{port}"))

    def dial(self, name):
        """Start its SuperNode alone."""
        command = [sys.executable, "-m", "fl_client.supernode", "--site", str(self.settings(name))]
        with open(self.folder / f"{name}.log", "wb") as log:
            self.started[name] = subprocess.Popen(
                command, env=environment(), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT
            )

    def turned_away(self, name):
        """What a hospital's SuperNode said before it gave up."""
        status, said = self.started[name].wait(60), (self.folder / f"{name}.log").read_text()
        assert status == REFUSED, said
        assert "Traceback" not in said
        return said

    def other_user(self, *words):
        """A command of south's, under the user that it belongs to."""
        return [*self.become, "env", f"HOME={self.folder / 'nowhere'}", *konsil_site(self.settings("south"), *words)]

    def ledger(self, name):
        site = self.site(name)
        return Ledger(site.ledger_path, epsilon=site.budget.epsilon, delta=site.budget.delta).events

    def left(self, name, run_id):
        """What left a hospital in a run: the lines of its audit log."""
        lines = AuditLog(self.site(name).folder / "audit.jsonl").lines
        return [line for line in lines if line["happening"] == "egress" and line["run"] == run_id]


class Broken(Gate):
    """A coordinator that lets hospitals in, and has no messages but an error."""

    async def _forward(self, call, scope, receive, send):
        if call == "pull-messages":
            raise Refusal(500, "out of order")
        await super()._forward(call, scope, receive, send)


def gate_before(house, *, about, kind=Gate, **changes):
    """One more gate before the coordinator's SuperLink, in this process; its port."""
    trusted = ssl.create_default_context(cafile=str(house.authority))
    none_idle = httpx.Limits(max_keepalive_connections=0)  # nobody would close them
    upstream = httpx.AsyncClient(base_url=f"https://{house.superlink}", verify=trusted, trust_env=False, limits=none_idle)
    gate = kind(upstream, about=about, join=lambda body: (403, {}), max_body_bytes=2**24, request_timeout_s=60.0)
    config = serve.gate_config(house.model_copy(update=changes), gate)
    config.port = 0
    return running(config)


def expired(house):
    """A certificate of the right authority that was good until yesterday, and its key."""
    authority, key = certificates.read(house.authority), certificates.read_key(house.authority_key)
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=30)
    old, old_key = certificates.make_server(["localhost"], authority, key, start=past, days=29)
    certificates.write(old, house.folder / "old.crt")
    certificates.write_key(old_key, house.folder / "old.key")
    return {"certificate": house.folder / "old.crt", "key": house.folder / "old.key"}


@pytest.fixture(scope="module")
def town():
    town = Town(Path(tempfile.mkdtemp(prefix="konsil-refused-")))
    town.folder.chmod(0o755)  # south's user has to find its own folder
    words = ("init", str(town.house_folder), "--host", "localhost", "--port", str(free_port()))
    run(konsil_study(*words), log=town.log)
    town.house = house = House.load(town.house_folder)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, town.folder)
        serving = konsil_study("serve", "--folder", str(house.folder))
        serving = stack.enter_context(Daemon("serve", serving, log=town.folder / "serve.log"))
        for name in ("north", *TURNED_AWAY, "faithful"):
            town.found(name)
        serving.wait_for("certificate valid until")
        town.serving = psutil.Process(serving._process.pid)
        town.newer = stack.enter_context(gate_before(house, about={**serve.about(house), "konsil": "9.9.9"}))
        town.overdue = stack.enter_context(gate_before(house, about=serve.about(house), **expired(house)))
        town.broken = stack.enter_context(gate_before(house, about=serve.about(house), kind=Broken))
        town.joined("north", port=town.newer)
        stack.enter_context(Daemon("north", konsil_site(town.settings("north"), "start"), log=town.folder / "north.log"))
        town.joined("elsewhere")
        other, _ = certificates.make_authority("somewhere else")
        certificates.write(other, town.folder / "elsewhere" / "coordinator.crt")
        town.joined("late", port=town.overdue)
        join(town.settings("stranger"), address=f"localhost:{house.port}", root_certificates=house.authority)
        town.joined("rekeyed")
        key = town.site("rekeyed").coordinator.key
        key.unlink()
        make_key(key, comment="rekeyed")
        town.joined("faithful", port=town.broken)
        for name in (*TURNED_AWAY, "faithful"):
            town.dial(name)
        stack.callback(end, town.started.values())
        yield town


@pytest.fixture(scope="module")
def south(town):
    """A whole hospital that another user sets up and runs with the commands; the patients are put where it finds them."""
    folder = town.folder / "south"
    folder.mkdir(mode=0o700)
    if town.become:
        os.chown(folder, NOBODY, NOBODY)
    run(town.other_user("init", "--name", "south", "--declared-size", "5"), log=town.log)
    for number in range(4):
        Cohort(folder / "cohort").admit(disc(f"south{number}", 4 + number / 2))
    if town.become:
        for path in (folder / "cohort", *(folder / "cohort").rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    text = town.settings("south").read_text().replace("approve_all: false", "approve_all: true")
    town.settings("south").write_text(text.replace("test_fraction: 0.2", "test_fraction: 0.0"))
    shutil.copy(town.house.authority, town.folder / "ca.crt")
    (town.folder / "ca.crt").chmod(0o644)
    token = Tokens(town.house.tokens).give("south")
    where = ("--coordinator", f"localhost:{town.house.port}", "--root-certificates", str(town.folder / "ca.crt"))
    run(town.other_user("join", token, *where), log=town.log)
    with Daemon("south", town.other_user("start"), log=town.folder / "south.log") as daemon:
        yield daemon


def end(processes):
    for process in processes:
        process.terminate()
        process.wait(30)


def study(**changes):
    """A small study of north, as JSON; a hostile coordinator may change anything in it."""
    fields = {"konsil_version": version("konsil"), "name": "small", "task": SMALL_TASK, "rounds": 2, "sites": ["north"]}
    return json.dumps({**fields, "training": {"views": 2}, **changes})


# -- hospitals that are turned away ----------------------------------------------------------------------------------------


def checked(town, name, capsys):
    """What `konsil-site check` says has to be mended, and what `konsil-site status` asks a person to look at."""
    assert konsil(["--site", str(town.settings(name)), "check"]) == 1
    mend = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mend")]
    assert konsil(["--site", str(town.settings(name)), "status"]) == 1
    look = [line for line in capsys.readouterr().out.splitlines() if line.startswith("LOOK: the line to the coordinator, ")]
    return mend, look


def never_came(town, name):
    """Whether the coordinator has not seen this hospital, or does not know it at all."""
    with control(town.house) as office:
        return all(site.status == "registered" for site in office.sites() if site.name == name)


@pytest.mark.parametrize(
    ("name", "wrong", "mended"),
    [
        ("elsewhere", "its certificate is not good: ", "ask this one's person for its ca.crt"),
        ("late", "its certificate is not good: certificate has expired", "has to renew it (konsil-study renew)"),
        ("stranger", "the coordinator does not know the key", "konsil-site join TOKEN"),
        ("rekeyed", "the coordinator does not know the key", "konsil-study unregister rekeyed"),
    ],
    ids=["another coordinator's authority", "an expired certificate", "a key that never joined", "a key exchanged since"],
)
def test_a_hospital_that_can_not_come_in_says_why_and_what_to_do(town, capsys, name, wrong, mended):
    said = town.turned_away(name)
    mend, look = checked(town, name, capsys)
    for words in (said, *mend, *look):
        assert wrong in words
        assert mended in words
    assert (len(mend), len(look)) == (1, 1)
    assert never_came(town, name)
    assert "Traceback" not in (town.folder / "serve.log").read_text()
    assert "Traceback" not in (town.house.folder / "log" / "superlink.log").read_text()


def test_a_supernode_that_can_not_go_on_ends_and_is_not_left_hanging(town):
    status, said = town.started["faithful"].wait(60), (town.folder / "faithful.log").read_text()
    assert status not in (0, REFUSED), said  # the daemon starts it again
    assert "the coordinator's answer was none to go on from" in said


# -- whole hospitals, and a coordinator that is not what it should be ------------------------------------------------------


class Hostile:
    """A run whose ServerApp is this process, with whatever study text; `with Hostile(town, text) as run:`."""

    def __init__(self, town, text):
        self.house = town.house
        self.marker = town.folder / "the bundle ran"
        self.bundle = bundle(str(self.marker))
        self.text = text
        self.executor = next(one for one in town.serving.children() if "fl_server.superexec" in one.cmdline())

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.executor.suspend()  # else it takes the task
            stack.callback(self.executor.resume)
            fab = Fab(hashlib.sha256(self.bundle).hexdigest(), self.bundle, {})
            config = user_config_to_proto({"study": self.text})
            with control(self.house) as office:
                self.id = office._client.StartRun(StartRunRequest(fab=fab_to_proto(fab), override_config=config)).run_id
            trusted = {"insecure": False, "root_certificates": self.house.authority.read_bytes()}
            secret = SuperExecAuthHttpInterceptor(
                master_secret=self.house.executor_key.read_bytes(), protected_methods={"/flwr.proto.Runtime/AcquireTask"}
            )
            signed = [RuntimeVersionHttpInterceptor(component_name="SuperExec"), secret]
            with RuntimeHttpClient.from_server_address(self.house.superlink, interceptors=signed, **trusted) as talk:
                wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
                end = time.monotonic() + 90
                while not (task := talk.AcquireTask(wanted)).token:  # it starts still, or went to who asked before: that lapses
                    assert time.monotonic() < end, "nobody gave this process the run's task"
                    time.sleep(0.2)
            self.grid = HttpGrid(self.house.superlink, token=task.token, **trusted)
            stack.callback(self.grid.close)
            given = self.grid._runtime_client.PullTaskInput(PullTaskInputRequest())
            TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = given.task_id, self.id, given.context.node_id
            self.grid.set_run(run_from_proto(given.run))
            beat = HeartbeatSender(make_task_heartbeat_fn_http(self.grid._runtime_client))
            beat.start()
            stack.callback(beat.stop)
            stack.callback(self._finish)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._open.close()

    def _finish(self):
        self.grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details=""))

    def node(self, name, *, within_s=90):
        """The number of a hospital's node; waits until it is there."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            for node in self.grid.get_nodes():
                if node.name == name:
                    return node.node_id
            time.sleep(0.2)
        raise AssertionError(f"{name} is not there")

    def ask(self, name, kind, config, arrays=None, *, within_s=90):
        """A hospital's answer to one message."""
        content = {"config": ConfigRecord(config)} | ({} if arrays is None else {"arrays": ArrayRecord(arrays)})
        waiting = self.grid.push_messages([Message(RecordDict(content), self.node(name), kind, ttl=120.0)])
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            for answer in self.grid.pull_messages(waiting):
                return answer
            time.sleep(0.2)
        raise AssertionError(f"{name} did not answer")


def refusal(answer):
    """A hospital's refusal to enrol or to train, in its words."""
    if answer.has_error():
        assert answer.error.code == DECLINED
        return answer.error.reason
    told = answer.content["enrolment"]
    assert told["takes-part"] is False
    return told["reason"]


def test_a_coordinator_of_another_konsil_is_told_before_a_study_and_its_studies_are_declined(town, capsys):
    text = study(konsil_version="9.9.9")
    with Hostile(town, text) as hostile:
        meant = {"study-hash": Study.from_json(text).hash, "server-round": 1}
        answers = [hostile.ask("north", kind, meant) for kind in ("query.enroll", "train")]
    for answer in answers:
        assert refusal(answer) == f"study small was made for konsil 9.9.9; this site runs {version('konsil')}"
    mend, look = checked(town, "north", capsys)
    assert len(mend) == len(look) == 1
    for words in (*mend, *look, (town.folder / "north.log").read_text()):
        assert f"konsil {version('konsil')} here, 9.9.9 there" in words
        assert "both sides need the same" in words
    assert [line["code"] for line in town.left("north", hostile.id)] == [None, DECLINED]
    assert town.ledger("north") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (study(name="x" * LARGEST), f"bytes are no study; at most {LARGEST} are read"),
        (study(name="../../x"), "name: may hold only letters, digits, "),
        (study(sites=["north", "../../south"]), "sites.1: may hold only letters, digits, "),
        ("{" * 100_000, "can't be read"),
    ],
    ids=["too large", "a path for a name", "a path for a hospital", "no JSON"],
)
def test_a_study_that_can_not_be_one_is_declined_and_written_nowhere(town, text, words):
    before = written(town)
    with Hostile(town, text) as hostile:
        reason = refusal(hostile.ask("north", "query.enroll", {"study-hash": "../../x"}))
    assert words in reason
    assert len(reason) < 2000
    assert written(town) == before
    assert not hostile.marker.exists()


def written(town):
    """Every file but logs, databases and books."""
    changing = {"coordinator", "run", "log", "prepared"}
    files = [path for path in town.folder.rglob("*") if not changing & set(path.relative_to(town.folder).parts)]
    return {path for path in files if path.suffix not in (".log", ".jsonl", ".part") and path.name != ".lock"}


def test_names_in_messages_lead_nowhere(town):
    wanted = Study.from_json(study(name="names"))
    hash_of = {"study-hash": wanted.hash, "server-round": 1}
    with Hostile(town, wanted.to_json()) as hostile:
        enrolled = hostile.ask("north", "query.enroll", hash_of)
        assert enrolled.content["enrolment"]["takes-part"] is True
        before = written(town)
        weird = hostile.ask("north", "train", hash_of, {"../../x": Array(np.zeros(3, np.float32))})
        assert "differ in names" in refusal(weird)
        other = hostile.ask("north", "train", {"study-hash": "../../x", "server-round": 1})
        assert "the coordinator means '../../x'" in refusal(other)
        nothing = hostile.ask("north", "query.x", hash_of)
        assert (nothing.has_error(), "Traceback" in str(nothing.error)) == (True, False)
    assert written(town) == before
    studies = [path.name for path in (town.site("north").folder / "studies").iterdir()]
    assert all(re.fullmatch(r"[0-9a-f]{64}\.json", name) for name in studies)
    assert town.ledger("north") == ()
    assert not hostile.marker.exists()


class Poisoning(PromptGrid):
    """Konsil's own grid, but that one hospital gets weights that are no numbers in the first round."""

    def __init__(self, inside, node):
        super().__init__(inside)
        self.node = node

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            config = message.content.config_records["config"]
            if message.metadata.dst_node_id == self.node and config.get("server-round") == 1:
                sent = message.content["arrays"]
                nan = {name: Array(np.full_like(array.numpy(), np.nan)) for name, array in sent.items()}
                message.content = RecordDict({"arrays": ArrayRecord(nan), "config": config})
        return super().push_messages(messages)


@pytest.mark.parametrize("others", [(), pytest.param(("south",), marks=pytest.mark.slow)], ids=["alone", "among others"])
def test_weights_that_are_no_numbers_are_declined_for_nothing_and_nobody_else_minds(town, request, others):
    for other in others:
        request.getfixturevalue(other)
    wanted, before = Study.from_json(study(name="poisoned", sites=["north", *others])), len(town.ledger("north"))
    with Hostile(town, wanted.to_json()) as hostile:
        grid = Poisoning(hostile.grid, hostile.node("north"))
        for other in others:
            hostile.node(other)
        _, record = run_rounds(grid, wanted, initial_state(wanted), folder=town.folder / "poisoned", enrol_timeout_s=60.0)
    first, second = record.rounds
    assert first.sites["north"].answer == "declined"
    assert "is not finite" in first.sites["north"].reason
    assert {second.sites["north"].answer, *(entry.sites[other].answer for entry in (first, second) for other in others)} == {
        "used"  # north is well and goes on, the others were well all the time
    }
    assert (record.verdict, any("north" in reason for reason in record.reasons)) == ("degraded", True)
    left = town.left("north", hostile.id)
    assert [(line["kind"], line["round"], line["code"]) for line in left if line["asked"] == "train"] == [
        ("words", 1, DECLINED),
        ("arrays", 2, None),
    ]
    assert [len(town.ledger("north")) - before, *(len(town.ledger(other)) for other in others)] == [1, *(2 for _ in others)]


# -- hospitals that are not who they say -----------------------------------------------------------------------------------


class Impostor:
    """A registered hospital whose key is held here."""

    def __init__(self, town, name):
        self.house = town.house
        self.key = ec.generate_private_key(ec.SECP384R1())
        line = self.key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        asked = {"token": Tokens(self.house.tokens).give(name), "name": name, "public_key": line.decode()}
        assert let_in(self.house, json.dumps(asked).encode()) == (200, {"name": name})
        with self.talk() as talk:
            mine = public_key_to_bytes(self.key.public_key())
            self.node = talk.ActivateNode(ActivateNodeRequest(public_key=mine, heartbeat_interval=60.0)).node_id

    def talk(self, *, address="", shows=None):
        """Flower's own client, at the gate or elsewhere; `shows` another's public key."""
        return FleetHttpClient.from_server_address(
            server_address=address or f"localhost:{self.house.port}",
            insecure=False,
            root_certificates=self.house.authority.read_bytes(),
            interceptors=[NodeAuthHttpInterceptor(self.key, shows or self.key.public_key())],
        )


def test_an_answer_in_another_hospitals_name_ends_at_the_gate(town):
    victim, forger = Impostor(town, "victim"), Impostor(town, "forger")
    with Hostile(town, study(name="forged")) as run:
        question = Message(RecordDict({"config": ConfigRecord({})}), victim.node, "train", ttl=60.0)
        waiting = list(run.grid.push_messages([question]))
        answer = Message(Error(1, "forged"), reply_to=question)
        answer.metadata.__dict__["_message_id"] = answer.object_id
        forged = PushMessagesRequest(
            node=Node(node_id=forger.node),
            messages_list=[message_to_proto(answer)],
            message_object_trees=[get_object_tree(answer)],
            clientapp_runtime_list=[0.0],
        )
        with forger.talk() as talk, pytest.raises(httpx.HTTPStatusError) as refused:
            talk.PushMessages(forged)
        assert refused.value.response.status_code == 403
        assert refused.value.response.json() == {"reason": "a message in another hospital's name"}
        assert list(run.grid.pull_messages(waiting)) == []
        with forger.talk(address=town.house.superlink) as talk:  # why the gate has to look: the SuperLink takes it
            assert talk.PushMessages(forged).results
    assert "a message in another hospital's name" in (town.folder / "serve.log").read_text()


def test_a_signature_of_another_key_is_no_hospitals(town):
    victim, forger = Impostor(town, "victim2"), Impostor(town, "forger2")
    for shows in (victim.key.public_key(), None):  # the victim's key with a forged signature; the forger's own
        with forger.talk(shows=shows) as talk, pytest.raises(httpx.HTTPStatusError) as refused:
            talk.PullMessages(PullMessagesRequest(node=Node(node_id=victim.node)))
        assert refused.value.response.status_code == 401


# -- another user ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_whole_hospital_runs_as_a_user_without_rights_or_home(town, south):
    if not town.become:
        pytest.skip("only root can become another user, and its interpreter has to be within that user's reach")
    found = run(town.other_user("check"), log=town.log)
    assert found.splitlines()[-1].startswith("0 to mend")
    said = run(town.other_user("status"), log=town.log)
    assert "running: trainer" in said
    assert "LOOK" not in said
    there = list((town.folder / "south").rglob("*"))
    assert {path.stat().st_uid for path in there} == {NOBODY}
    secret = [path for path in there if path.name in ("node.key", "pseudonym.key", "secret")]
    assert [path.stat().st_mode & 0o777 for path in secret] == [0o600] * 3
    log = (town.folder / "south.log").read_text()
    assert not any(word in log for word in ("Traceback", "Permission denied", "temporary cache"))
