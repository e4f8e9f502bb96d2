"""A model's weights as a study has them: drawn from its seed."""

from __future__ import annotations

import torch

from conf.study import Study
from tasks.task import first_state, load

State = dict[str, torch.Tensor]
"""A model's weights by name, on the CPU: what `torch.nn.Module.state_dict` gives and `load_state_dict` takes."""


def initial_state(study: Study) -> State:
    """Freshly drawn weights of the study's task, or its empty sum; equal for equal seeds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        return first_state(load(study.task))
