import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("KONSIL_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.skipif(not (DATA / "ibsi").is_dir(), reason=f"the IBSI phantoms are not at {DATA}; set KONSIL_DATA")
def test_the_digital_phantom_has_its_reference_values_but_for_three_departures_that_are_known():
    command = [sys.executable, str(ROOT / "benchmarks" / "ibsi.py"), "--data", str(DATA)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    result = json.loads(said[-1])
    assert result["features_compared"] == result["agree_without_deviations"] == 102
    assert result["within_tolerance"] == 99
    assert result["not_explained"] == []
    assert {line.split(":")[0].removeprefix("original_") for line in said[:-1]} == {
        "firstorder_Kurtosis",
        "shape_MinorAxisLength",
        "shape_LeastAxisLength",
    }
