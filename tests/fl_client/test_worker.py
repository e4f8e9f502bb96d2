"""The warm worker against Flower's own SuperNode state and Runtime API, in one process and over TLS on loopback."""

import json
import threading
import time

import httpx
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from node_in_process import Node, bundle

from fl_client import app as hospital
from fl_client.audit import AuditLog
from fl_client.halt import halt
from fl_client.loopback import Loopback
from fl_client.release import DECLINED, FAILED
from fl_client.supernode import runtime_folder
from fl_client.worker import STOPPED, Leave, Worker
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid


def question(study, *, arrays=None, number=1):
    config = ConfigRecord({"study-hash": study.hash, "server-round": number})
    return RecordDict({"arrays": arrays or ArrayRecord(dict(initial_state(study))), "config": config})


@pytest.fixture
def node(hospitals):
    with Node(Loopback.make(runtime_folder(hospitals.site("a")))) as node:
        yield node


@pytest.fixture
def worker_of(hospitals):
    """Makes workers of hospital `a` and hangs up for them at the end."""
    made = []

    def make(app=None):
        made.append(Worker(hospitals.sites["a"], app))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def small_app():
    """An app that answers with the run's seed, without training or planning anything."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        answer = ConfigRecord({"seed": json.loads(context.run_config["study"])["seed"]})
        return Message(RecordDict({"answer": answer}), reply_to=message)

    return app


def serve_one(worker):
    """Have the worker take and answer the message that waits."""
    end = time.monotonic() + 20
    while not (token := worker._acquire()):
        assert time.monotonic() < end, "no message came"
        time.sleep(0.05)
    worker.answer(token)


def ask_and_answer(worker, node, study, content=None):
    node.ask(content or question(study), "train", study=study.to_json())
    serve_one(worker)
    return node.answer()


def test_the_answer_is_the_one_that_the_same_hospital_gives_without_a_network(
    hospitals, new_hospitals, node, worker_of, one_thread
):
    twin = new_hospitals("twins")
    twin.add("a", declared_size=5)  # the same patients, the same seed of its noise
    study = hospitals.study()
    grid = InProcessGrid("fl_client.app:app", twin.nodes[:1], {"study": study.to_json()})
    (alone,) = grid.send_and_receive([Message(question(study), grid.get_node_ids()[0], "train")])
    carried = ask_and_answer(worker_of(), node, study)
    assert carried.content["metrics"] == alone.content["metrics"]
    for name, array in alone.content["arrays"].items():
        np.testing.assert_array_equal(carried.content["arrays"][name].numpy(), array.numpy())


def test_what_the_coordinator_sends_as_code_is_neither_unpacked_nor_run(hospitals, tmp_path, monkeypatch, worker_of):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    marker = tmp_path / "marker"
    with Node(Loopback.make(runtime_folder(hospitals.site("a"))), fab=bundle(str(marker))) as node:
        worker = worker_of()
        reply = ask_and_answer(worker, node, hospitals.study(konsil_version="0.0.7"))
        worker.close()  # or the end of the node waits for it
    assert "was made for konsil 0.0.7" in reply.error.reason  # the words of the konsil that is installed here
    assert not marker.exists()
    assert not list(tmp_path.rglob("evil.py"))
    (asked,) = [line for line in AuditLog(hospitals.site("a").folder / "audit.jsonl").lines if line["happening"] == "asked"]
    assert (asked["bundle_ran"], len(str(asked["bundle"]))) == (False, 64)


def test_one_worker_serves_several_runs_one_after_the_other(hospitals, node, worker_of):
    worker = worker_of(small_app())
    for run_id, seed in ((21, 1), (22, 2), (21, 1)):
        study = hospitals.study(seed=seed)
        node.ask(question(study), "train", study=study.to_json(), run_id=run_id)
        serve_one(worker)
        assert node.answer().content["answer"]["seed"] == seed


def test_no_text_of_an_exception_leaves_and_the_log_has_it_under_the_same_number(hospitals, node, worker_of):
    app = ClientApp()

    @app.train()
    def train(message, context):
        raise RuntimeError("patient 1234 in /data/secret.dcm")

    reply = ask_and_answer(worker_of(app), node, hospitals.study())
    assert reply.error.code == FAILED
    assert "1234" not in reply.error.reason
    number = reply.error.reason.rpartition("number ")[2].rstrip(")")
    log = (hospitals.site("a").folder / "log" / "failures.log").read_text()
    assert number in log
    assert "patient 1234" in log


def test_a_question_whose_time_is_over_is_declined_and_costs_nothing(hospitals, node, worker_of):
    study = hospitals.study()
    worker = worker_of()
    node.ask(question(study), "train", study=study.to_json(), ttl=0.2)
    time.sleep(0.3)
    serve_one(worker)
    reply = node.answer()
    assert (reply.error.code, "time for this question was over" in reply.error.reason) == (DECLINED, True)
    assert not hospital.ledger_of(hospitals.site("a")).events


def test_weights_that_are_no_numbers_are_declined(hospitals, node, worker_of):
    study = hospitals.study()
    state = {name: torch.full_like(tensor, torch.nan) for name, tensor in initial_state(study).items()}
    reply = ask_and_answer(worker_of(), node, study, question(study, arrays=ArrayRecord(state)))
    assert (reply.error.code, "is not finite" in reply.error.reason) == (DECLINED, True)


def test_a_study_of_another_version_is_declined_in_words(hospitals, node, worker_of):
    study = hospitals.study(konsil_version="0.0.7")
    reply = ask_and_answer(worker_of(), node, study)
    assert (reply.error.code, "was made for konsil 0.0.7" in reply.error.reason) == (DECLINED, True)


def test_a_paused_hospital_declines_and_pays_nothing(hospitals, node, worker_of):
    site = hospitals.site("a")
    halt(site.folder, "paused", who="Dr. Alpha")
    reply = ask_and_answer(worker_of(), node, hospitals.study())
    assert (reply.error.code, "paused" in reply.error.reason) == (DECLINED, True)
    assert not hospital.ledger_of(site).events


def test_a_stopped_hospital_takes_no_message(hospitals, node, worker_of):
    halt(hospitals.site("a").folder, "stopped", who="Dr. Alpha")
    study = hospitals.study()
    node.ask(question(study), "train", study=study.to_json())
    assert worker_of().run() == STOPPED


def test_what_was_being_worked_on_when_the_hospital_stopped_does_not_leave(hospitals, node, worker_of):
    site, app = hospitals.site("a"), ClientApp()

    @app.train()
    def train(message, context):
        halt(site.folder, "stopped", who="Dr. Alpha")
        arrays = ArrayRecord({"secret": Array(np.ones(3))})
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    reply = ask_and_answer(worker_of(app), node, hospitals.study())
    assert (reply.has_error(), reply.error.code) == (True, DECLINED)


def test_a_worker_that_is_told_to_end_while_it_works_says_so(hospitals, node, worker_of):
    app = ClientApp()

    @app.train()
    def train(message, context):
        raise Leave

    worker = worker_of(app)
    study = hospitals.study()
    node.ask(question(study), "train", study=study.to_json())
    serve_one(worker)
    assert node.answer().error.code == FAILED
    assert worker.stop.is_set()


def test_the_worker_goes_on_with_a_supernode_that_was_started_anew(hospitals, worker_of):
    study, worker = hospitals.study(), worker_of(small_app())
    for run_id in (31, 32):
        with Node(Loopback.make(runtime_folder(hospitals.site("a")))) as node:
            node.ask(question(study), "train", study=study.to_json(), run_id=run_id)
            serve_one(worker)
            assert not node.answer().has_error()
            worker.close()
        assert worker._acquire() == ""  # nobody there is no error


def forget(node):
    """Be as a SuperNode whose run has ended, or that was started anew."""
    node.state.task_token_store.clear()
    node.state.task_token_to_task_id.clear()


@pytest.fixture
def said(caplog):
    """What the worker has logged, in one piece, with any traceback."""
    caplog.set_level("INFO", logger="konsil.worker")
    return lambda: "\n".join(record.getMessage() + str(record.exc_text or "") for record in caplog.records)


def test_a_question_whose_run_has_ended_is_told_in_words_and_without_a_traceback(hospitals, node, worker_of, said):
    study, worker = hospitals.study(), worker_of(small_app())
    node.ask(question(study), "train", study=study.to_json())
    token = worker._acquire()
    forget(node)
    worker.answer(token)
    assert "a message was not answered: the SuperNode waits for it no longer: its run has ended" in said()
    assert "Traceback" not in said()
    assert AuditLog(hospitals.site("a").folder / "audit.jsonl").lines == ()  # nothing was done for it


def test_an_answer_whose_parts_nobody_takes_any_more_is_told_in_words(hospitals, node, worker_of, said, monkeypatch):
    study = hospitals.study()

    def refused(objects, push_object_fn, **given):
        raise ObjectPushError("4f2e", 11, "session")

    monkeypatch.setattr("flwr.supernode.runtime.run_clientapp.push_objects", refused)
    node.ask(question(study), "train", study=study.to_json())
    serve_one(worker_of(small_app()))
    assert "a message was not answered: the SuperNode has no place for its parts any more, as when its run has ended" in said()
    assert "Traceback" not in said()


def test_a_supernode_that_goes_away_meanwhile_is_told_in_words(hospitals, worker_of, said):
    study, worker = hospitals.study(), worker_of(small_app())
    with Node(Loopback.make(runtime_folder(hospitals.site("a")))) as node:
        node.ask(question(study), "train", study=study.to_json())
        token = worker._acquire()
        worker.close()  # a SuperNode that ends waits until callers have hung up
    worker.answer(token)
    assert "a message was not answered: the SuperNode is gone or out of order (ConnectError" in said()
    assert "Traceback" not in said()


def test_an_answer_that_the_supernode_no_longer_waits_for_is_lost_and_nothing_else(hospitals, node, worker_of, said):
    study, app = hospitals.study(), ClientApp()

    @app.train()
    def train(message, context):
        forget(node)
        return Message(RecordDict(), reply_to=message)

    worker = worker_of(app)
    node.ask(question(study), "train", study=study.to_json())
    serve_one(worker)
    assert "waits for it no longer" in said()
    worker.app = small_app()
    node.ask(question(study), "train", study=study.to_json(), run_id=12)
    serve_one(worker)
    assert node.answer().content["answer"]["seed"] == study.seed


def test_another_user_of_the_machine_can_not_take_messages(hospitals, node):
    study = hospitals.study()
    node.ask(question(study), "train", study=study.to_json())
    stranger = RuntimeHttpClient.from_server_address(
        server_address=node.door.address,
        insecure=False,
        root_certificates=node.door.certificate.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
    )
    with stranger, pytest.raises(httpx.HTTPStatusError) as refused:
        stranger.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
    assert refused.value.response.status_code == 401
    assert all(path.stat().st_mode & 0o077 == 0 for path in (node.door.folder, *node.door.folder.iterdir()))


def test_another_user_of_the_machine_can_not_hand_messages_in(hospitals, tmp_path, worker_of):
    own = Loopback.make(runtime_folder(hospitals.site("a")))
    impostor = Loopback.make(tmp_path / "impostor")
    impostor = Loopback(impostor.folder, own.port)  # who took our port, with a certificate of its own
    impostor.secret_file.write_bytes(own.secret_file.read_bytes())
    study = hospitals.study()
    with Node(impostor) as node:
        node.ask(question(study), "train", study=study.to_json())
        assert worker_of()._acquire() == ""


def test_what_the_worker_does_can_be_read(hospitals, node, worker_of):
    told, app = [], ClientApp()
    file = runtime_folder(hospitals.site("a")) / "worker.json"

    @app.train()
    def train(message, context):
        told.append(json.loads(file.read_text())["doing"])
        return Message(RecordDict(), reply_to=message)

    ask_and_answer(worker_of(app), node, hospitals.study())
    assert [*told, json.loads(file.read_text())["doing"]] == ["working", "waiting"]


def test_a_running_worker_ends_when_it_is_told_to(hospitals, node, worker_of):
    worker = worker_of()
    running = threading.Thread(target=worker.run)
    running.start()
    worker.stop.set()
    running.join(5)
    assert not running.is_alive()
