"""MONAI is imported without what is around it, and nobody misses that afterwards."""

import subprocess
import sys

REAL = """
import sys
from conf.imports import AROUND, import_monai_alone
import_monai_alone()
from monai.networks.nets import UNet
print([name for name in AROUND if name in sys.modules])
import torch, matplotlib.figure, pandas
from monai.metrics import compute_dice
print(*UNet(2, 1, 2, (2, 4), (2,))(torch.ones(1, 1, 8, 8)).shape, compute_dice(*[torch.ones(1, 2, 4, 4)] * 2).tolist())
"""
STAND_IN = """
import gc
there = []
for name in ("json", "pandas", "matplotlib", "mlflow", "ignite"):
    try:
        __import__(name)
        there.append(name)
    except ImportError:
        pass
collecting = gc.isenabled()
"""


def said(program, **where):
    return subprocess.run(
        [sys.executable, "-c", program], **where, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_networks_and_measures_need_nothing_around_them_and_the_others_can_be_imported_afterwards():
    assert said(REAL) == ["[]", "1 2 8 8 [[1.0, 1.0]]"]


def test_what_somebody_has_imported_stays_and_the_import_itself_is_as_before(tmp_path):
    for name in ("monai", "pandas", "mlflow", "ignite", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(STAND_IN if name == "monai" else "")
    program = """if True:
        import gc, sys
        import pandas
        from conf.imports import import_monai_alone
        finders = list(sys.meta_path)
        import_monai_alone()
        import_monai_alone()
        import monai
        import mlflow
        print(monai.there, monai.collecting, gc.isenabled(), sys.meta_path == finders, sys.modules["pandas"] is pandas)
        import_monai_alone()
        print(sys.meta_path == finders)
    """
    assert said(program, env={"PYTHONPATH": f"{tmp_path}:."}) == ["['json', 'pandas'] False True True True", "True"]
