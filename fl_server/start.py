"""What is asked before a study is started on the running coordinator: is it one, is there room, are its weights there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.study import Study
from fl_server.house import House
from fl_server.run_lock import in_use

if TYPE_CHECKING:  # seconds that `konsil-study --help` need not wait
    import torch


def study_of(
    settings: Mapping[str, Any], *, registered: list[str], models: Path | None, keys: Mapping[str, str] | None = None
) -> Study:
    """The study of these settings, made for the installed konsil, with whatever its task settles by itself.

    Without `sites` every registered hospital is asked. Secure aggregation without keys has those that the hospitals are
    registered with (`keys`, by name). `models` is where a model must lie that the task leans on; None: it isn't looked for.
    Raises `ValidationError` or `ValueError` in words for what can't be run.
    """
    from fl_server.strategies import require_protection  # imports torch, which takes seconds
    from tasks.task import load_for, settled

    given = {name: value for name, value in settings.items() if name != "plain_strategy"}  # the rehearsal's comparison
    if given.get("sites") is None:
        if not registered:
            raise ValueError("no hospital is registered yet: konsil-study join-token NAME; or name them: sites=[a,b]")
        given["sites"] = registered
    given = with_keys(given, keys or {})
    study = Study.from_json(json.dumps({"konsil_version": version("konsil"), **given}))
    study = study.model_copy(update={"task": settled(study.task)})
    load_for(study, models=models)
    require_protection(study)
    return study


def filtering_by(references: Path | None, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings, with the free patients of this file as those that a fedwiener study filters by if it names none."""
    strategy = settings.get("strategy")
    if references is None or not isinstance(strategy, Mapping) or strategy.get("references_sha256") is not None:
        return settings
    from tasks.fingerprint import fingerprint

    found = fingerprint(_arrays_in(references))
    return {**settings, "strategy": {**strategy, "references_sha256": found}}


def with_keys(given: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """The settings, with the hospitals' public keys (by name) if they ask for secure aggregation and bring none.

    Raises `ValueError` naming the hospitals whose key is missing.
    """
    privacy = given.get("privacy")
    secure = privacy.get("secure") if isinstance(privacy, Mapping) else None
    if not isinstance(privacy, Mapping) or not isinstance(secure, Mapping) or secure.get("keys"):
        return dict(given)
    if not keys:
        raise ValueError(
            "secure aggregation needs the public key of every hospital; `start` takes them from the register and leaves the "
            "whole study in runs/NAME/study.json, else name them as privacy.secure.keys"
        )
    if unknown := [name for name in given["sites"] if not keys.get(name)]:
        raise ValueError(
            f"secure aggregation needs the public key of {', '.join(unknown)}: register each hospital first, or name the keys "
            "yourself as privacy.secure.keys"
        )
    return {**given, "privacy": {**privacy, "secure": {**secure, "keys": {name: keys[name] for name in given["sites"]}}}}


def require_room(house: House, study: Study, *, replace: bool) -> None:
    """Raise `ValueError` if the study would take the place of an earlier one's results, unless that is wanted."""
    folder = house.runs / study.name
    if (folder / "record.json").exists() and not replace:
        raise ValueError(f"{folder} holds the results of an earlier study; name=ANOTHER keeps them, --replace does not")


def put_away(house: House, study: Study) -> Path | None:
    """Put an earlier study's results aside; where they are then, or None if there were none."""
    folder = house.runs / study.name
    if not folder.exists():
        return None
    if in_use(folder):
        raise ValueError(f"a process still runs a study in {folder}; konsil-study stop {study.name}, and try again")
    aside = house.runs / f".{study.name}.replaced"
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    return aside


def require_weights(house: House, study: Study, given: Path | None) -> None:
    """Put the weights that the study starts from where its process finds them.

    Raises `ValueError` if they are other ones than the study names, or are not there.
    """
    wanted = study.initial_model_sha256
    if wanted is None:
        if given is not None:
            raise ValueError("the study names no weights to start from (initial_model_sha256)")
        return
    _require_file(house, wanted, given, what="weights", use="the study starts from", option="--initial")


def require_references(house: House, study: Study, given: Path | None) -> None:
    """The same of the free patients by whose gradients the study filters."""
    wanted = study.strategy.references_sha256
    if wanted is None:
        if given is not None:
            raise ValueError("the study names no free patients to filter by (strategy.references_sha256)")
        if study.strategy.name == "fedwiener":
            raise ValueError(
                "fedwiener filters by free patients: --references FILE says where they are, such as the references.pt of a "
                "rehearsal with this task"
            )
        return

    def usable(found: Mapping[str, torch.Tensor]) -> None:  # told here, and not in a process of its own
        from fl_server.references import References
        from fl_server.weights import initial_state

        References(study, found, initial_state(study))

    _require_file(house, wanted, given, what="references", use="the study filters by", option="--references", require=usable)


def _require_file(
    house: House,
    wanted: str,
    given: Path | None,
    *,
    what: str,
    use: str,
    option: str,
    require: Callable[[Mapping[str, torch.Tensor]], None] = lambda _: None,
) -> None:
    """Keep the file `given` as `wanted`, if that is its fingerprint and it passes what is required of its arrays."""
    place = house.models / f"{wanted}.pt"
    if given is not None:
        import torch

        from tasks.fingerprint import fingerprint

        state = _arrays_in(given)
        found = fingerprint(state)
        if found != wanted:
            raise ValueError(f"{given} holds the {what} {found}; {use} {wanted}")
        if broken := [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]:
            raise ValueError(f"{given}: {broken[0]} holds numbers that are not finite; every hospital would decline the study")
        require(state)
        house.models.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(given, place)
    if not place.exists():
        raise ValueError(f"{use} {what} {wanted}; {option} FILE says where they are")


def _arrays_in(path: Path) -> dict[str, torch.Tensor]:
    """The arrays of a file, by name. Raises `ValueError` in words for a file that holds anything else."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # torch raises whatever its readers do, and advises what nobody should follow
        raise ValueError(f"{path} is no file of arrays that torch.load reads with weights_only=True") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(array, torch.Tensor) for name, array in state.items()
    ):
        raise ValueError(f"{path} holds something else than arrays by name")
    return state
