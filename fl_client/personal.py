"""The parameters that this hospital trains for itself under `training.personal`: kept here between rounds, never sent.

    <site>/personal/<study hash>.pt    what the last question began with, what it ended with, and which question that was

They are trained under the same clipping and noise as all others. A question that is worked on twice, because of a crash, begins
both times with the same values: the file is written whole before the answer leaves, and knows which question it belongs to.
After Li et al. 2021 (FedBN): norm layers stay local, because they adapt to a scanner.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from conf.study import Study
from fl_client.sent import Asked
from fl_client.sharing import file_mode, make_folder
from fl_client.site import Site
from fl_client.trained import read_weights
from tasks.weights import save

log = logging.getLogger("konsil.personal")

State = Mapping[str, torch.Tensor]

_BEFORE, _AFTER, _ASKED = "before/", "after/", "asked"


def begin(site: Site, asked: Asked) -> dict[str, torch.Tensor]:
    """What this hospital's own parameters are when the question is worked on; empty before the first round."""
    found = _read(_place(site, asked.study))
    side = _BEFORE if found is not None and bytes(found[_ASKED].tolist()).hex() == asked.digest else _AFTER
    return _side(found, side)


def worn(site: Site, study: Study, state: State) -> dict[str, torch.Tensor]:
    """A model's weights with this hospital's own parameters in the place of those that came, as far as it has any."""
    own = _side(_read(_place(site, study.hash)), _AFTER)
    return {name: own.get(name, tensor) for name, tensor in state.items()}


def keep(site: Site, asked: Asked, before: State, after: State) -> None:
    """Put them on the disk, whole or not at all. Where that fails (a full disk) the log says so, and the old ones stay."""
    path = _place(site, asked.study)
    values = {_BEFORE + name: tensor.detach().cpu().clone() for name, tensor in before.items()}
    values |= {_AFTER + name: tensor.detach().cpu().clone() for name, tensor in after.items()}
    values[_ASKED] = torch.tensor(list(bytes.fromhex(asked.digest)), dtype=torch.uint8)
    try:
        make_folder(path.parent)
        save(values, path, mode=file_mode(path.parent))
    except OSError as error:
        log.warning("this hospital's own parameters of study %s stay as they were: %s", asked.study[:12], error.strerror)


def forget(site: Site, study: str) -> None:
    """Take away what is kept of a study (its hash)."""
    _place(site, study).unlink(missing_ok=True)


def _place(site: Site, study: str) -> Path:
    return site.folder / "personal" / f"{study}.pt"


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    if not path.exists():
        return None
    try:
        return read_weights(path)
    except (OSError, ValueError) as error:
        log.warning("this hospital's own parameters can't be read and begin anew with those that come: %s", error)
        return None


def _side(found: State | None, side: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(side): tensor for name, tensor in (found or {}).items() if name.startswith(side)}
