"""Threads that wait for each other sleep soon, unless somebody chose otherwise."""

import os
import subprocess
import sys

import pytest

from conf.threads import SPINS


@pytest.mark.parametrize("package", ["simulation", "fl_client"])
@pytest.mark.parametrize(
    ("chosen", "spins"), [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_whoever_imports_a_package_that_trains_waits_briefly(package, chosen, spins):
    program = f"import os, sys, {package}; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    unset = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    told = subprocess.run([sys.executable, "-c", program], env=unset | chosen, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [spins, "False"]  # torch would have read it already
