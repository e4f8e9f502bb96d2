"""The weights that a study starts from, taken from another model: matched by name, what doesn't fit named, what is new drawn.

The proof of concept of the International Radiomics Platform trained on cine and went on with late enhancement. Weights are
read without running anything that lies in a file: torch's `weights_only`. Freezing is the study's (`training.frozen`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from conf.study import Study
from fl_server.registry.card import privacy_in_words
from fl_server.registry.learned import Learned, of_run, read_weights
from fl_server.registry.shelf import Shelf, now
from fl_server.weights import State, initial_state
from tasks.fingerprint import fingerprint
from tasks.weights import save

PREFIXES = ("module.", "model.", "net.", "network.", "backbone.", "_orig_mod.")
"""What training scripts put before a network's own names; taken away where a name is not the study's as it stands."""
NESTS = ("state_dict", "model_state_dict", "model", "network", "net", "weights")
"""Under which checkpoints keep a state dict beside optimisers and numbers."""


@dataclass(frozen=True, eq=False)
class Source:
    """Weights to start from, and what is known of them."""

    state: State
    facts: dict[str, Any]  # source, source_sha256; of a study's model also its verdict and privacy


@dataclass(frozen=True, eq=False)
class Transferred:
    """A study's first weights, and where each array came from."""

    state: State
    matched: dict[str, str]  # name in the study -> name in the source
    fresh: tuple[str, ...]  # drawn from the study's seed
    unused: tuple[str, ...]  # of the source


def read_source(text: str, *, folder: Path, programs: bool = False) -> Source:
    """The weights that `text` names: a run's folder, a MONAI bundle, a file of weights, or a registered model.

    `folder` is the coordinator's. TorchScript is a program, which loading may run, so it is read only where `programs` allow
    it. Raises `ValueError` in words for what can't be read or may not be.
    """
    path = Path(text)
    if path.is_dir() and (path / "record.json").exists():
        return _of_study(of_run(path), f"the model in {path.name}")
    if path.is_dir() and (path / "configs" / "metadata.json").exists():
        inside = [path / "models" / name for name in ("model.pt", "model.ts") if (path / "models" / name).exists()]
        if not inside:
            raise ValueError(f"{path} is a MONAI bundle without models/model.pt or models/model.ts")
        return _of_file(inside[0], f"the MONAI bundle {path.resolve().name}", programs=programs)
    if path.is_file():
        return _of_file(path, f"the file {path.name}", programs=programs)
    if path.is_dir():
        raise ValueError(f"{path} is neither a run's folder (record.json) nor a MONAI bundle (configs/metadata.json)")
    if path.suffix or len(path.parts) > 1:
        raise ValueError(f"{path}: no such file or folder")
    shelf = Shelf(folder)
    return _of_study(shelf.open(text), f"the registered model {shelf.find(text).label}")


def transfer(
    source: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    *,
    renamed: Mapping[str, str] | None = None,
    fresh: Sequence[str] = (),
) -> Transferred:
    """The study's weights `own`, replaced by the source's wherever names match and `fresh` (patterns) doesn't say otherwise.

    A name matches as it stands, after `renamed` (`{"old.*": "new.*"}` or whole names), or without `PREFIXES`. Raises
    `ValueError` naming every array of the study that the source has in another shape or not at all.
    """
    anew = {name for name in own if any(fnmatch.fnmatchcase(name, pattern) for pattern in fresh)}
    if idle := [pattern for pattern in fresh if not fnmatch.filter(own, pattern)]:
        raise ValueError(f"--fresh {idle[0]}: the study's model has no such array; it has {_some(own)}")
    found: dict[str, str] = {}
    for name in source:
        target = _own_name(_renamed(name, renamed or {}), own)
        if target is None:
            continue
        if target in found:
            raise ValueError(f"{found[target]} and {name} of the source both match {target}; --map OLD=NEW tells them apart")
        found[target] = name
    matched = {target: name for target, name in found.items() if target not in anew}
    problems = [f"{name}: the source has no such array" for name in own if name not in anew and name not in found]
    state = {name: tensor.clone() for name, tensor in own.items()}
    for target, name in matched.items():
        tensor, wanted = source[name], own[target]
        if tensor.shape != wanted.shape:
            problems.append(f"{target}: shape {tuple(tensor.shape)} in the source, {tuple(wanted.shape)} in the study")
        elif tensor.is_floating_point() != wanted.is_floating_point():
            problems.append(f"{target}: {tensor.dtype} in the source, {wanted.dtype} in the study")
        elif not bool(torch.isfinite(tensor).all()):
            problems.append(f"{target}: numbers that are not finite")
        else:
            state[target] = tensor.detach().to(wanted.dtype).clone()
    if problems:
        raise ValueError(
            "the source's weights don't fit:\n  "
            + "\n  ".join(problems)
            + f"\nthe source has {_some(source)}; --map OLD=NEW renames, --fresh 'PATTERN' draws anew"
        )
    unused = tuple(name for name in source if name not in matched.values())
    return Transferred(state, matched, tuple(sorted(anew)), unused)


def prepare(
    study: Study,
    source: Source,
    *,
    models: Path,
    renamed: Mapping[str, str] | None = None,
    fresh: Sequence[str] = (),
) -> tuple[str, Transferred]:
    """Write the study's first weights to `<fingerprint>.pt` in `models`, where it looks, and beside them whence each came.

    Returns the fingerprint, which is the study's `initial_model_sha256`.
    """
    made = transfer(source.state, initial_state(study), renamed=renamed, fresh=fresh)
    name = fingerprint(made.state)
    models.mkdir(mode=0o700, parents=True, exist_ok=True)
    said = {**source.facts, "matched": made.matched, "fresh": list(made.fresh), "unused": list(made.unused), "made": now()}
    (models / f"{name}.json").write_text(json.dumps(said, indent=1))
    save(made.state, models / f"{name}.pt")
    return name, made


def renaming(texts: Sequence[str]) -> dict[str, str]:
    """`OLD=NEW` of the command line. Raises `ValueError` for anything else, and for a star on one side alone."""
    found = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not equals or not old or not new:
            raise ValueError(f"--map {text}: OLD=NEW is wanted, names or prefixes with a star: model.*=body.model.*")
        if old.endswith("*") != new.endswith("*") or "*" in old[:-1] + new[:-1]:
            raise ValueError(f"--map {text}: a star may stand at the end, and then of both")
        found[old] = new
    return found


def _renamed(name: str, renamed: Mapping[str, str]) -> str:
    if name in renamed:
        return renamed[name]
    for old, new in renamed.items():
        if old.endswith("*") and name.startswith(old[:-1]):
            return new[:-1] + name[len(old) - 1 :]
    return name


def _own_name(name: str, own: Mapping[str, torch.Tensor]) -> str | None:
    while name not in own:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return None
        name = name.removeprefix(prefix)
    return name


def _some(state: Mapping[str, torch.Tensor]) -> str:
    names = [f"{name} {tuple(tensor.shape)}" for name, tensor in state.items()]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _of_study(learned: Learned, words: str) -> Source:
    facts = {
        "source": words,
        "source_sha256": learned.sha256,
        "study_hash": learned.record.study_hash,
        "verdict": learned.record.verdict,
        "privacy": privacy_in_words(learned.record),
    }
    return Source(learned.state, facts)


def _of_file(path: Path, words: str, *, programs: bool) -> Source:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if _is_torchscript(path):
        if not programs:
            raise ValueError(
                f"{path} is TorchScript: a program, which loading may run. If you trust whoever made it, --torchscript reads "
                "its weights; a state dict needs no trust"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is frozen, and there is plenty of it
            state = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    else:
        state = _state_dict(read_weights(path), path)
    return Source({str(name): tensor for name, tensor in state.items()}, {"source": words, "source_sha256": digest})


def _is_torchscript(path: Path) -> bool:
    """Whether a zip file holds TorchScript: its code, which torch's own check looks for as constants.pkl."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("/constants.pkl") for name in file.namelist())


def _state_dict(content: object, path: Path) -> State:
    """The state dict in what a file holds, which may be a checkpoint with more."""
    if isinstance(content, Mapping):
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return dict(content)
        for nest in NESTS:
            if isinstance(content.get(nest), Mapping):
                return _state_dict(content[nest], path)
        keys = ", ".join(str(key) for key in list(content)[:8]) or "nothing"
        raise ValueError(f"{path} holds no state dict: its keys are {keys}; one of {', '.join(NESTS)} would be looked into")
    raise ValueError(f"{path} holds a {type(content).__name__}, no state dict")
