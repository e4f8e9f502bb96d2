"""A study's token is in no process's command, with what this leans on in Flower."""

import inspect
import os
import re
import subprocess
import time

from flwr.common.args import add_args_flwr_app_common
from flwr.supercore.superexec.executor import subprocess_executor

from fl_server.superexec import KEPT_S, confiding


def test_a_token_goes_into_a_file_that_only_its_owner_reads(tmp_path):
    shown = []
    start = confiding(lambda words, **given: shown.append((words, given)), tmp_path)
    old = tmp_path / "1.token"
    old.touch()
    os.utime(old, (time.time() - 2 * KEPT_S,) * 2)
    start(["flwr-serverapp", "--token", "secret", "--insecure"], stdout=subprocess.DEVNULL)
    (((name, option, place, last), given),) = shown
    assert (name, option, last, given) == ("flwr-serverapp", "--token-file", "--insecure", {"stdout": subprocess.DEVNULL})
    (kept,) = tmp_path.iterdir()
    assert (str(kept), kept.read_text(), kept.stat().st_mode & 0o777) == (place, "secret", 0o600)


def test_flower_starts_studies_as_we_replace_it_and_takes_a_file():
    text = inspect.getsource(subprocess_executor)
    assert text.count("subprocess.Popen(") == 2
    assert set(re.findall(r"(?<!import )\bsubprocess\.(\w+)", text)) == {"Popen", "DEVNULL"}
    assert '"--token",\n            spec.token' in text
    assert '"--token-file"' in inspect.getsource(add_args_flwr_app_common)
