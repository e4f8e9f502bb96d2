import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks.segmentation import build
from tasks.segmentation.export import export_torchscript

LOAD = """
import sys
assert not any("site-packages" in path for path in sys.path)  # -S: nothing that is installed, konsil and MONAI included
sys.path.append(sys.argv[1])
sys.modules["monai"] = sys.modules["tasks"] = None  # importing them now fails
import torch
model = torch.jit.load("model.ts.pt")
torch.save(model(torch.load("rows.pt")), "logits.pt")
"""


THREE = {"spatial_dims": 3, "voxels": [8, 16, 16], "field_mm": 32, "roi_mm": None, "working_mm": 2}


@pytest.mark.parametrize("settings", [{}, THREE], ids=["2D", "3D"])
def test_the_exported_network_runs_without_konsil(tmp_path, settings):
    torch.manual_seed(0)
    task = build(settings)
    model = task.model()
    export_torchscript(model, task.settings, tmp_path / "model.ts.pt")
    rows = torch.randn(5, 1, *task.settings.voxels)  # another number of rows than it was traced with
    torch.save(rows, tmp_path / "rows.pt")
    site = str(Path(torch.__file__).parents[1])
    done = subprocess.run([sys.executable, "-S", "-c", LOAD, site], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), model.eval()(rows), atol=1e-4)


def test_the_sidecar_says_what_goes_in_and_what_comes_out(tmp_path):
    task = build({})
    sidecar = json.loads(export_torchscript(task.model(), task.settings, tmp_path / "model.ts.pt").read_text())
    assert sidecar["input"]["shape"][1:] == [1, 80, 80]
    assert sidecar["looks"]["wide"]["spacing_mm"] == [2.4, 2.4]
    assert sidecar["looks"]["close"]["spacing_mm"] == [1.5, 1.5]
    assert sidecar["classes"] == ["background", "blood_pool", "myocardium", "right_ventricle"]
    assert sidecar["mask_values"]["right_ventricle"] == 3
