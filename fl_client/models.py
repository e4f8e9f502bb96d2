"""Models that later studies lean on: called by `konsil-site add-model`.

    <site>/models/<fingerprint>.pt    weights, named by what they are

A radiomics study may have its masks drawn by a trained model. It names the model by its fingerprint, and a site that hasn't
got it declines. What a person puts here is read as numbers only and written anew, so that nothing else of the file comes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from conf.study import Study
from fl_client.approval import Approvals
from fl_client.every_feature import FULL
from fl_client.personalise import made_here
from fl_client.sharing import file_mode, make_folder
from fl_client.site import Site
from fl_client.trained import read_weights
from tasks import segmentation
from tasks.fingerprint import fingerprint
from tasks.weights import save

State = Mapping[str, torch.Tensor]


def add_model(site: Site, file: Path) -> int:
    """Put the weights of `file` (a run's `model.pt`, or the run's folder) where studies look for them; print who leans on them.

    Raises `ValueError` and `OSError` in words, having written nothing, for a file that holds no weights and for a full disk.
    """
    file = file / "model.pt" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: a run leaves its model as model.pt in its own folder")
    state = read_weights(file)
    if not state:
        raise ValueError(f"{file} holds no weights: it is empty")
    if "noise_variance" in state:
        raise ValueError(f"{file} is what a counting study has learned, such as a forest: no study's masks are drawn by it")
    try:
        sha = fingerprint(state)
    except TypeError as error:
        raise ValueError(f"{file} holds weights of a number type that konsil doesn't know ({error})") from None
    if made_here(site, sha):
        raise ValueError(
            f"{file} was trained without noise on this hospital's own patients (konsil-site personalise): a study whose masks "
            "it drew would let them out unprotected"
        )
    place = site.models_folder / f"{sha}.pt"
    if _holds(place, sha):
        print(f"{site.name} has had the model {sha} already")
    else:
        _write(state, place)
        numbers = sum(tensor.numel() for tensor in state.values())
        print(f"{site.name} now has the model {sha} ({numbers} numbers)")
    _tell_studies(site, sha, state)
    return 0


def leans_on(study: Study) -> tuple[str, dict[str, object]] | None:
    """The fingerprint of the model that draws a study's masks, and its task's settings; None if readers draw them."""
    image = study.task.get("image", study.task)
    masks = image.get("masks") if isinstance(image, dict) else None
    if not isinstance(masks, dict):
        return None
    task = masks.get("task")
    return str(masks.get("sha256")), dict(task) if isinstance(task, dict) else {}


def _holds(place: Path, sha: str) -> bool:
    """Whether these very weights stand there, whole."""
    try:
        return place.is_file() and fingerprint(read_weights(place)) == sha
    except (OSError, TypeError, ValueError):
        return False


def _write(state: State, place: Path) -> None:
    """A crash at any instant leaves the model whole or leaves none."""
    make_folder(place.parent)
    try:
        # copies: a view would bring along all that it is a view of
        save({name: tensor.detach().clone() for name, tensor in state.items()}, place, mode=file_mode(place.parent))
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(
            f"there is no room left on the disk for {place.parent}: the model was not added; free some space"
        ) from None


def _tell_studies(site: Site, sha: str, state: State) -> None:
    """Which of the studies that were put down here lean on this model, and which on others that aren't here."""
    approvals = Approvals(site.folder)
    decisions, leaning = approvals.decisions, 0
    for key, study in approvals.studies.items():
        wanted = leans_on(study)
        if wanted is None:
            continue
        other, task = wanted
        who = f"study {study.name} ({key[:12]})"
        if other == sha:
            leaning += 1
            decision = decisions.get(key)
            said = f"{decision.decision} by {decision.who}" if decision else "not decided"
            print(f"  {who} leans on it: {said}{_doubt(state, task)}")
        elif not (site.models_folder / f"{other}.pt").is_file():
            print(f"  {who} leans on another model, {other[:12]}..., which {site.name} hasn't got")
    if not leaning:
        print("  no study that was put down here leans on it")


def _doubt(state: State, task: Mapping[str, object]) -> str:
    """A warning, if these aren't the weights of the network that the study says they belong to."""
    try:
        network = segmentation.build({name: value for name, value in task.items() if name != "name"}).model()
        network.load_state_dict(dict(state))
    except (RuntimeError, ValueError) as error:
        return f". WARNING: the study can't use it: {str(error).splitlines()[0]}"
    return ""
