"""Every internal of Flower that a hospital leans on, by name, signature and behaviour.

konsil pins `flwr>=1.41,<1.42`. Where one of these fails after an update of Flower, the file named in the test has to be looked
at before the pin is moved.
"""

import argparse
import importlib
import inspect
import itertools
import re
import time
from importlib.metadata import version
from types import SimpleNamespace

import httpx
import pytest
from flwr.app import Context, Metadata, RecordDict
from flwr.common import constant
from flwr.common.constant import SubStatus
from flwr.proto import runtime_pb2
from flwr.supercore import constant as supercore_constant
from flwr.supercore import interceptors
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec import run_superexec
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.supernode import start_client_internal as loop
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.nodestate import NodeState
from flwr.supernode.runtime import run_clientapp
from flwr.supernode.servicer.runtime import runtime_handlers

from fl_client import supernode, worker
from fl_client.loopback import Loopback
from fl_client.site import Coordinator

flower_supernode = importlib.import_module("flwr.supernode.cli.flower_supernode")  # a function of the same name hides it


def parameters(function):
    return list(inspect.signature(function).parameters)


def source(thing):
    return re.sub(r"\s+", " ", inspect.getsource(thing))


def test_it_is_the_flower_that_was_read():
    assert version("flwr").startswith("1.41.")


# -- fl_client/supernode.py ------------------------------------------------------------------------------------------------


def test_a_supernode_in_process_isolation_starts_no_app_and_unpacks_no_bundle():
    main_loop = source(loop.start_client_internal)
    assert main_loop.count("subprocess.Popen(command)") == 1
    assert "if isolation == ISOLATION_MODE_SUBPROCESS: runtime_address" in main_loop  # what leads to it
    for module in (loop, flower_supernode, runtime_handlers, inspect.getmodule(NodeState)):
        text = source(module)
        assert not re.search(r"install_from_fab|get_project_dir|extractall|import_module|load_client_app|exec\(", text), module
    assert "store_fab(fab)" in source(loop._pull_and_store_message)  # it is kept, in memory
    assert "install_from_fab" in source(run_clientapp.run_clientapp)  # Flower's own worker unpacks it: we don't use that one


def test_the_loop_of_a_supernode_asks_for_messages_by_the_name_that_we_replace():
    main_loop = source(loop.start_client_internal)
    assert main_loop.count("run_id = _pull_and_store_message(") == 1
    assert "if run_id is None:" in main_loop
    assert "time.sleep(3)" in main_loop  # the pause that ours takes the place of
    asked = parameters(loop._pull_and_store_message)
    assert asked == [
        "state", "object_store", "node_config", "receive", "get_run", "get_fab", "pull_object", "confirm_message_received",
        "trusted_entities",
    ]  # fmt: skip
    named = main_loop.split("run_id = _pull_and_store_message(")[1].split(")")[0]
    assert all(f"{name}=" in named for name in asked)  # by keyword, as `impatient` passes them on


def test_how_long_the_work_took_is_not_told():
    assert parameters(loop._push_messages) == ["state", "object_store", "send", "push_object"]
    text = source(loop._push_messages)
    assert text.count("clientapp_runtime") == 2  # measured, and given to `send`: nowhere else
    assert "send(message, object_tree, clientapp_runtime)" in text
    named = source(loop.start_client_internal).split("_push_messages(")[1].split(")")[0]
    assert all(f"{name}=" in named for name in parameters(loop._push_messages))  # by keyword, as `untimed` passes them on
    sent = []

    def send(message, tree, seconds):
        sent.append(seconds)
        return {"object"}, "session"

    def push(*, state, send):
        assert send("message", "tree", state) == ({"object"}, "session")

    supernode.untimed(push)(state=12.345, send=send)
    assert sent == [0.0]


def test_our_pauses_are_short_while_a_study_runs_and_as_long_as_flowers_when_none_does(monkeypatch):
    now, pauses = [10_000.0], []
    monkeypatch.setattr(supernode.time, "monotonic", lambda: now[0])

    def sleep(seconds):
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(supernode.time, "sleep", sleep)
    answers = iter([None, None, 17, None, 18])
    pull = supernode.impatient(lambda **given: next(answers))
    assert pull() == 17
    assert pauses == [3.0, 3.0]
    assert pull() == 18
    assert pauses == [3.0, 3.0, 0.5]
    now[0] += supernode.BUSY_FOR_S
    answers = iter([None, 19])
    assert supernode.impatient(lambda **given: next(answers))() == 19
    assert pauses[-1] == 3.0


def test_a_part_that_is_still_on_its_way_is_looked_for_again_soon_and_for_as_long_as_flower_would(monkeypatch):
    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        assert pull.__kwdefaults__["max_time"] == supercore_constant.PULL_MAX_TIME >= 3600
        monkeypatch.setattr(pull, "__kwdefaults__", dict(pull.__kwdefaults__))
    for module, name in ((loop, "pull_objects"), (run_clientapp, "pull_and_inflate_object_from_tree")):
        assert getattr(module, name) is getattr(inflatable_utils, name)
        call = source(module).split(f" {name}(", 1)[1].split(")")[0]
        assert not re.search("initial_backoff|backoff_cap|max_tries_per_object", call), module  # it takes the defaults
    supernode.prompt_pulls()
    looked = []

    def part(name):
        looked.append(time.monotonic())
        if len(looked) < 4:
            raise inflatable_utils.ObjectUnavailableError(name)
        return b"it"

    assert inflatable_utils.pull_objects(["part"], part) == {"part": b"it"}
    gaps = [after - before for before, after in itertools.pairwise(looked)]
    assert 0.07 < gaps[0] < 0.5
    assert sum(gaps) < 2.0  # Flower: about seven seconds


def test_flowers_command_takes_all_that_we_give_it(tmp_path):
    parser = flower_supernode._parse_args_run_supernode()
    assert isinstance(parser, argparse.ArgumentParser)
    door = Loopback.make(tmp_path / "a folder")
    whom = Coordinator(address="coordinator.example.org:443", root_certificates=tmp_path / "ca.crt", key=tmp_path / "node.key")
    options = parser.parse_args(supernode.command(None, whom, door)[1:])
    assert (options.isolation, options.host, options.port, options.insecure) == ("process", "127.0.0.1", door.port, False)
    assert options.runtime_dependency_install is False
    assert options.superexec_auth_secret_file == str(door.secret_file)
    local = parser.parse_args(supernode.command(None, Coordinator(address="127.0.0.1:9000"), door)[1:])
    assert (local.insecure, local.auth_supernode_private_key) == (True, None)


def test_the_command_reads_its_arguments_and_environment_where_we_put_them():
    assert "parse_args()" in source(flower_supernode._parse_supernode_lifespan_config)
    assert 'os.getenv("FLWR_TELEMETRY_ENABLED", "1")' in source(inspect.getmodule(flower_supernode.event))
    assert "FLWR_DISABLE_UPDATE_CHECK" in source(inspect.getmodule(flower_supernode.warn_if_flwr_update_available))


def test_a_coordinator_without_tls_is_dialled_on_this_machine_only(tmp_path):
    door = Loopback(tmp_path, 1)
    for address in ("10.0.0.1:80", "coordinator.example.org:443", "127.0.0.1.example.org:80"):
        with pytest.raises(ValueError, match="another machine"):
            supernode.command(None, Coordinator(address=address), door)
    for address in ("127.0.0.1:80", "localhost:80", "[::1]:80"):
        assert "--insecure" in supernode.command(None, Coordinator(address=address), door)


def test_the_question_with_which_a_key_is_tried_changes_nothing():
    asked = source(fleet_handlers.activate_node)
    unknown, interval, change = (
        asked.index(text) for text in ("if node_id is None: raise", "_validate_heartbeat_interval(", "state.activate_node(")
    )
    assert unknown < interval < change
    with pytest.raises(fleet_handlers.InvalidHeartbeatIntervalError):
        fleet_handlers._validate_heartbeat_interval(0.0)
    assert parameters(FleetHttpClient.ActivateNode) == ["self", "request"]


# -- fl_client/worker.py ---------------------------------------------------------------------------------------------------


def test_the_runtime_api_has_the_calls_that_the_worker_makes():
    for call in ("AcquireTask", "SendTaskHeartbeat", "PullTaskInput", "PullMessages", "PushMessages", "PushTaskOutput"):
        assert parameters(getattr(RuntimeHttpClient, call)) == ["self", "request"], call
    assert "supported_task_types" in runtime_pb2.AcquireTaskRequest.DESCRIPTOR.fields_by_name
    assert {"task", "token"} <= set(runtime_pb2.AcquireTaskResponse.DESCRIPTOR.fields_by_name)
    assert supercore_constant.TaskType.CLIENT_APP in list(supercore_constant.TaskType)


def test_the_client_takes_certificates_and_no_retries():
    assert parameters(ProtobufClient.from_server_address) == [
        "server_address", "insecure", "root_certificates", "interceptors", "retry_invoker",
    ]  # fmt: skip
    client = RuntimeHttpClient.from_server_address("127.0.0.1:1", True, None, [], retry_invoker=None)
    with client, pytest.raises(httpx.ConnectError):  # raised at once, not retried
        client.AcquireTask(runtime_pb2.AcquireTaskRequest())


def test_the_worker_signs_the_one_call_that_the_supernode_protects():
    assert {worker._ACQUIRE} == run_superexec._SUPEREXEC_AUTH_METHODS
    assert parameters(interceptors.SuperExecAuthHttpInterceptor.__init__) == ["self", "master_secret", "protected_methods"]
    assert parameters(interceptors.RuntimeTokenHttpInterceptor.__init__) == ["self", "token"]
    assert parameters(interceptors.RuntimeVersionHttpInterceptor.__init__) == ["self", "component_name"]


def test_a_message_is_taken_and_an_answer_handed_over_by_flowers_own_functions():
    assert parameters(run_clientapp.pull_task_input) == ["client"]
    assert parameters(run_clientapp.push_message) == ["client", "message", "context"]
    assert parameters(run_clientapp.push_task_output) == ["client", "context", "sub_status", "details"]
    assert SubStatus.COMPLETED == "completed"
    taken = source(run_clientapp.pull_task_input)
    assert "return message, context, run, fab" in taken
    assert not re.search(r"install_from_fab|import_module|zipfile", taken)  # the bundle comes as bytes and stays bytes


def test_a_claim_lapses_after_a_minute_without_a_heartbeat():
    patience = constant.HEARTBEAT_PATIENCE * constant.HEARTBEAT_DEFAULT_INTERVAL
    assert patience == 60
    assert worker.Heartbeat.EVERY_S * 2 < constant.HEARTBEAT_DEFAULT_INTERVAL + 1  # one lost beat ends nothing


def test_the_settings_of_a_node_can_be_put_in_place_of_what_came():
    context = Context(run_id=1, node_id=1, node_config={"site": "theirs"}, state=RecordDict(), run_config={})
    context.node_config = {"site": "ours"}
    assert context.node_config == {"site": "ours"}


def test_a_message_tells_when_it_was_made_and_how_long_it_is_good_for():
    assert {"created_at", "ttl", "message_type", "message_id"} <= set(dir(Metadata))


def test_a_question_whose_run_has_ended_is_dropped_whole(monkeypatch):
    """Flower's own code, with a SuperLink that says in the middle of a question that its run is over."""
    dropped = []

    class State:
        def get_run(self, run_id):
            return SimpleNamespace(fab_hash="", primary_task_type="")

        def create_task(self, **given):
            return 7

        def store_message(self, message):
            pass

        def delete_messages(self, *, message_ids):
            dropped.append(("message", *message_ids))

        def finish_task(self, task, *, sub_status, details):
            dropped.append(("task", task, sub_status, details))

    class Store:
        def preregister(self, run_id, tree):
            return ["part"]

        def delete(self, object_id):
            dropped.append(("objects", object_id))

    def over(run_id, object_id):
        raise RunNotRunningException

    message = SimpleNamespace(metadata=SimpleNamespace(run_id=1, message_id="m", group_id="", message_type="train"))
    given = dict.fromkeys(inspect.signature(loop._pull_and_store_message).parameters)
    given |= {"state": State(), "object_store": Store(), "receive": lambda: (message, None), "pull_object": over}
    given |= {"node_config": {}, "trusted_entities": None}
    monkeypatch.setattr(loop, "pull_objects", loop.pull_objects)
    assert loop._pull_and_store_message(**given) is None
    assert dropped == []  # which is why
    monkeypatch.setattr(loop, "pull_objects", supernode.dropping(loop.pull_objects))
    assert loop._pull_and_store_message(**given) is None
    assert [what for what, *_ in dropped] == ["message", "objects", "task"]
    assert dropped[-1][1:] == (7, SubStatus.FAILED, "Pulling message objects failed: its run has ended")
