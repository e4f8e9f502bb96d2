"""Patients whom the coordinator may look at: generated, or public. What their gradients look like says what is no noise.

They come as one file of arrays, `PATIENT/ARRAY` for each array that the study's task prepares of a case, and are known by its
fingerprint, which the study names (`strategy.references_sha256`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from conf.study import Study
from fl_server.weights import State
from tasks.fingerprint import fingerprint
from tasks.promise import round_multiplier
from tasks.secure.plan import grid_of
from tasks.task import GradientTask, PacedTask, load, load_for, moving

MOST_BYTES = 2 * 2**30
"""Of all references' gradients together, which are in memory at once."""


class References:
    """Gradients of free patients at any weights of a study: what `fl_server.wiener` filters by.

    Raises `ValueError`, in words, for a study that names other references, for arrays that its task doesn't prepare, and for
    gradients that wouldn't fit in memory.
    """

    def __init__(self, study: Study, arrays: Mapping[str, torch.Tensor], start: State) -> None:
        wanted = study.strategy.references_sha256
        if wanted is None:
            raise ValueError(f"study {study.name} names no free patients to filter by (strategy.references_sha256)")
        if fingerprint(arrays) != wanted:
            raise ValueError(f"the study filters by references {wanted}, but was given {fingerprint(arrays)}")
        task = load_for(study)
        if not isinstance(task, GradientTask):
            raise ValueError(f"task {study.task['name']} has no gradients that references could have, too")
        self.study, self.task = study, task
        self.patients = _by_patient(arrays)
        _require_fit(task, self.patients)
        self.state = dict(start)  # of which some arrays are trained
        with torch.random.fork_rng(devices=[]):
            self.model = task.model()
        moved = set(moving(study, task, self.model))
        numbers = sum(parameter.numel() for name, parameter in self.model.named_parameters() if name in moved)
        if 4 * numbers * len(self.patients) > MOST_BYTES:
            raise ValueError(
                f"gradients of {len(self.patients)} references with {numbers:,} numbers each don't fit in "
                f"{MOST_BYTES / 2**30:.3g} GiB; fewer references or trained parameters do"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def gradients(self, trained: Mapping[str, npt.NDArray[Any]], number: int) -> npt.NDArray[np.float32]:
        """One row per patient, (patients, numbers): the gradient at these weights, clipped like a hospital's patient's."""
        self.state |= {name: torch.from_numpy(np.array(array)) for name, array in trained.items()}
        self.model.load_state_dict(self.state)
        self.model.to(self.device).train()
        known = dict(self.model.named_parameters())
        parameters = [known[name] for name in trained]
        rows = np.empty((len(self.patients), sum(parameter.numel() for parameter in parameters)), np.float32)
        for index, arrays in enumerate(self.patients.values()):
            rows[index] = self._one(arrays, parameters, np.random.default_rng([self.study.seed, number, index]))
        return rows

    def _one(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        parameters: Sequence[torch.nn.Parameter],
        rng: np.random.Generator,
    ) -> npt.NDArray[np.float32]:
        x, y = (part.to(self.device) for part in self.task.example(dict(arrays), self.study.training.views, rng))
        loss = self.task.loss(self.model(x), y).mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
        gradient = torch.cat([part.detach().flatten() for part in parts])
        privacy = self.study.privacy
        bound = privacy.max_grad_norm if privacy.kind == "patient" else math.inf
        clipped: npt.NDArray[np.float32] = (gradient * (bound / gradient.norm()).clamp(max=1.0)).nan_to_num(0.0).cpu().numpy()
        return clipped


def noise_of_mean(study: Study, sizes: Sequence[float]) -> float:
    """Standard deviation of the noise on each number of the mean update of hospitals that declare these sizes.

    Of a study whose rounds are one step of sgd each. 0 without privacy.
    """
    privacy, training = study.privacy, study.training
    if privacy.kind == "none" or not sizes:
        return 0.0
    if privacy.secure is None:
        each = round_multiplier(study) * privacy.max_grad_norm / training.sample_rate
    else:
        grid = grid_of(study, load(study.task))
        each = grid.share_std * grid.step
    return training.learning_rate * each * math.sqrt(len(sizes)) / sum(sizes)


def _by_patient(arrays: Mapping[str, torch.Tensor]) -> dict[str, dict[str, npt.NDArray[Any]]]:
    found: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for key in sorted(arrays):
        patient, _, name = key.partition("/")
        if not name:
            raise ValueError(f"references hold {key!r}; each array is called PATIENT/ARRAY")
        found.setdefault(patient, {})[name] = arrays[key].numpy()
    if not found:
        raise ValueError("the references hold no patient")
    return found


def _require_fit(task: GradientTask, patients: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
    """Raise `ValueError` for arrays of other names, sizes or types than the task prepares, as far as it can tell.

    A network takes images of another size without a word, but their gradients are those of another study.
    """
    if not isinstance(task, PacedTask):
        return
    wanted = {name: (array.shape[1:], array.dtype) for name, array in task.drawn(np.random.default_rng(0)).items()}
    for patient, arrays in patients.items():
        if missing := sorted(set(wanted) - set(arrays)):
            raise ValueError(f"reference {patient} has no {missing[0]}, which the study's task prepares of every patient")
        for name, (shape, dtype) in wanted.items():
            if (arrays[name].shape[1:], arrays[name].dtype) != (shape, dtype):
                raise ValueError(
                    f"reference {patient} was prepared for another task: its {name} is {arrays[name].shape[1:]} "
                    f"{arrays[name].dtype}, that of the study's task {shape} {dtype}"
                )
