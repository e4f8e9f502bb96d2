"""The example in docs/adding_a_task.md is run as it stands there."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tasks.case import Case, Volume
from tasks.task import GradientTask

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_task.md"


def test_the_pages_whole_task_keeps_the_protocols_promises():
    module = ModuleType("brightness")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(code, module.__dict__)
    task = module.build({})
    assert isinstance(task, GradientTask)
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    case = Case("p", (Volume("cine_ed", image, np.eye(4)),), {"ejection_fraction": 0.6})
    x, y = task.example(task.prepare(case), 3, np.random.default_rng(0))
    loss = task.loss(task.model()(x), y)
    assert loss.shape == (3,)
    assert not torch.equal(x[0], x[1])
    assert list(task.score(task.model(), case)) == ["absolute_error"]
    with pytest.raises(ValueError, match="case p lacks cine_ed or ejection_fraction"):
        task.prepare(Case("p", (), {}))
