"""A trained model as the hospital gets it back: `model.pt` of a run, and the study that says which network it belongs to.

The weights alone don't say what they segment. That stands in the study: in `record.json` beside the model, in a file, or among
those that were put down here. A record also tells the fingerprint of the run's result, and other weights are refused: the model
after the last round, or after the round that validation chose.
Weights are read as numbers only (`weights_only`), so that a file can't bring code.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fl_client.approval import Approvals
from fl_client.device import device_of
from fl_client.site import Site
from tasks.fingerprint import fingerprint
from tasks.segmentation import SegmentationTask
from tasks.task import load


@dataclass(frozen=True)
class Trained:
    """A network in eval mode on the hospital's device, and its name for a DICOM SEG (56 characters at most)."""

    model: torch.nn.Module
    task: SegmentationTask
    name: str
    fingerprint: str  # of the weights, as a record tells it; empty for a number type that konsil doesn't save
    study_name: str
    study_hash: str  # as the record tells it; empty where nothing does
    is_recorded: bool  # whether a run's record knows these weights as its result


def load_trained(path: Path, study: str | None, site: Site) -> Trained:
    """Read the model at `path` (a run folder's `model.pt`, or the folder) and the study that it belongs to.

    `study` is a study's file, a `record.json`, or the beginning of the hash of a study that was put down at this site; None
    takes `record.json` beside the model. Raises `FileNotFoundError` for what is missing and `ValueError` in words for a study
    without a segmentation task, for weights that aren't those of its network or not those that the record tells of (the one
    given, or else the one beside the model), and for a device that isn't there.
    """
    path = path / "model.pt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a run leaves its model as model.pt in its own folder")
    name, settings, study_hash = _study(path, study, site)
    task = load(settings)
    if not isinstance(task, SegmentationTask):
        raise ValueError(f"study {name} learns the task {settings['name']}; masks come from the task segmentation")
    model = task.model()
    state = read_weights(path)
    _require_fit(state, model, f"{path} is not a model of study {name}, which segments {', '.join(task.settings.structures)}")
    found, is_recorded = _require_recorded(state, path, study)
    model.load_state_dict(state)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        model.eval().to(device_of(site))
    except (AssertionError, RuntimeError):  # torch raises either, depending on how it was built
        raise ValueError(
            f"site.yaml asks for device {site.device}, which this machine hasn't; auto takes what there is"
        ) from None
    title = f"{name[:36]} model {sha[:12]}"
    return Trained(model, task, title, fingerprint=found, study_name=name, study_hash=study_hash, is_recorded=is_recorded)


def _study(path: Path, said: str | None, site: Site) -> tuple[str, dict[str, Any], str]:
    """The study's name, its task's settings, and its hash as far as it is told. No more is read: records of older konsils
    hold fewer settings elsewhere.
    """
    if said is not None and not Path(said).is_file():
        found = Approvals(site.folder).find(said)
        return found.name, dict(found.task), found.hash
    beside = path.with_name("record.json")
    if not beside.is_file() and path.with_name("study.json").is_file():  # personalised in this house
        beside = path.with_name("study.json")
    file = Path(said) if said is not None else beside
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing, and the weights alone don't say what they segment; pass --study with the study's file or the "
            "beginning of its hash (konsil-site studies), or put the run's record.json beside the model"
        )
    data = _object(file)
    try:
        study = data.get("study", data)
        return str(study["name"]), dict(study["task"]), str(data.get("study_hash", ""))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file} is neither a study nor a run's record: it names no study with a task") from None


def _object(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text())
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise ValueError(f"{file} is neither a study nor a run's record: it holds no JSON object")
    return data


def _require_recorded(state: Mapping[str, torch.Tensor], path: Path, said: str | None) -> tuple[str, bool]:
    """The weights' fingerprint, and whether a record tells it: `ValueError` if a record tells another of its result."""
    try:
        found = fingerprint(state)
    except TypeError:
        found = ""
    given = [Path(said)] if said is not None else []
    for file in (*given, path.with_name("record.json")):
        rounds, chosen = _fingerprints(file) if file.is_file() else ([], None)
        if rounds:
            break
    else:
        return found, False
    number = len(rounds) if chosen is None else chosen
    wanted, which = rounds[number - 1], "last" if chosen is None else "chosen"
    if found == wanted:
        return found, True
    found = found or "no number type that konsil saves"
    after = f"; they are those after round {rounds.index(found) + 1}" if found in rounds else ""
    raise ValueError(
        f"{path} holds other weights than {file} tells of: their fingerprint is {found[:16]}..., and the model after the "
        f"record's {which} round ({number}) has {wanted[:16]}...{after}. Somebody may have changed or exchanged one of "
        "the two, or the run stopped between them; where the weights are known to be right, keep them apart from this record "
        "and name the study with --study"
    )


def _fingerprints(file: Path) -> tuple[list[str], int | None]:
    """The model's fingerprint after each round, and the round that was chosen, as a record tells them; none for a study."""
    record = _object(file)
    rounds, chosen = record.get("rounds"), record.get("selected_round")
    if not isinstance(rounds, list):
        return [], None
    try:
        found = [str(entry["arrays_sha256"]) for entry in rounds]
    except (KeyError, TypeError):
        raise ValueError(f"{file} is not a run's record: a round of it tells no fingerprint of its model") from None
    if chosen is not None and not (isinstance(chosen, int) and 1 <= chosen <= len(found)):
        raise ValueError(f"{file} is not a run's record: it has {len(found)} rounds, and chose the model of round {chosen!r}")
    return found, chosen


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights by name, as numbers only. Raises `ValueError` in words for a file that holds something else, and `OSError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a TorchScript archive before it fails
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises many kinds, in texts of many lines
        raise ValueError(
            f"{path} holds no weights ({type(error).__name__}): this command reads model.pt, which is not model.ts.pt"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError(f"{path} holds something else than weights by name; this command reads model.pt as a run leaves it")
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ValueError(f"{path} holds numbers that are not finite, first in {broken[0]}: this model can't be used")
    return dict(state)


def _require_fit(state: Mapping[str, torch.Tensor], model: torch.nn.Module, sentence: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    there = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [
        f"{name} has shape {there.get(name, 'none')}, and its network's has {expected.get(name, 'none')}"
        for name in dict.fromkeys([*expected, *there])
        if there.get(name) != expected.get(name)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"{sentence}: {wrong[0]}{more}")
