"""A study before anybody is asked: `konsil-study plan`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_server.commands import Commands

if TYPE_CHECKING:
    from conf.study import Study
    from fl_server.plan.noise import Asked, Noise, Plan
    from fl_server.plan.utility import Learned, Nearest

_DEFAULTS = {"epsilon": 8.0, "delta": 1e-3, "rounds": 20, "steps": 1, "sample_rate": 1.0}


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The command and its options."""
    planned = commands.add_parser(
        "plan", help="what noise a promise needs with these hospitals, what it leaves of the signal, and what Dice was measured"
    )
    planned.set_defaults(run=plan)
    planned.add_argument("file", nargs="?", type=Path, help="a study file; the options below change what it says")
    planned.add_argument(
        "--size", action="append", default=[], metavar="NAME=PATIENTS", help="a hospital and its declared size"
    )
    planned.add_argument(
        "--patients", type=int, metavar="N", help="the declared size of every hospital that --size doesn't name"
    )
    planned.add_argument("--sites", type=int, metavar="N", help="so many hospitals, where no file and no --size names them")
    planned.add_argument("--epsilon", type=float, help="what a patient is promised (8)")
    planned.add_argument("--delta", type=float, help="(1e-3)")
    planned.add_argument("--rounds", type=int, help="(20)")
    planned.add_argument("--steps", type=int, help="noisy steps of a round (1)")
    planned.add_argument("--sample-rate", type=float, help="share of patients that takes part in a step (1)")
    planned.add_argument("--secure", action="store_true", help="one noise for all hospitals, by secure aggregation")
    planned.add_argument("--noise", type=float, default=0.05, metavar="LEVEL", help="how many patients for this noise (0.05)")
    planned.add_argument(
        "--ledger", action="append", default=[], metavar="NAME=FILE", help="what `konsil-site ledger --json` said at a hospital"
    )
    planned.add_argument("--json", action="store_true", help="for scripts")


def plan(options: argparse.Namespace) -> int:
    """Say what the study would need and leave."""
    from fl_server.plan import noise
    from fl_server.plan.utility import expected, table

    study = _study(options)
    asked = _asked(options, study)
    found = noise.plan(asked, level=options.noise, ledgers=dict(_ledger(said) for said in options.ledger))
    each = asked.patients / len(asked.sizes)
    dice = expected(
        table(),
        epsilon=asked.epsilon,
        patients=each,
        sites=len(asked.sizes),
        secure=asked.secure,
        learned=None if study is None else _learned(study),
    )
    if options.json:
        rows = [one.row._asdict() for one in dice if one.row is not None]
        print(json.dumps(_plain({**asdict(found), "dice": rows, "dice_words": [one.words for one in dice]}), indent=1))
        return 0
    for line in told(found, dice):
        print(line)
    return 0


def told(found: Plan, dice: Sequence[Nearest]) -> Iterator[str]:
    """The plan in sentences and one table."""
    asked, noise = found.asked, found.noise
    hospitals, steps = len(asked.sizes), asked.rounds * asked.steps
    of = f"{noise.together:.3g} of the bound on one patient's gradient"
    yield (
        f"{hospitals} {'hospital' if hospitals == 1 else 'hospitals'}, {asked.patients} patients; "
        f"epsilon {asked.epsilon:g}, delta {asked.delta:g}"
        + (f", {asked.scores_share:.0%} of it for scores" if asked.scores_share else "")
    )
    yield (
        f"{asked.rounds} rounds of {asked.steps} noisy {'step' if asked.steps == 1 else 'steps'} "
        + ("over all patients" if asked.sample_rate == 1 else f"over {asked.sample_rate:.3g} of the patients")
        + (f"; one noise for all, {asked.left} hospitals left at least, {asked.colluding} colluding" if asked.secure else "")
    )
    yield ""
    yield f"noise multiplier   {noise.multiplier:.4g}"
    alone = "" if asked.secure else f"; at one hospital alone {noise.alone:.3g}"
    yield f"mean gradient      noise {of} in each coordinate{alone}"
    yield f"over {steps} steps".ljust(19) + f"{noise.averaged:.3g} in the mean of all steps"
    each = math.ceil(found.patients_needed / hospitals)
    yield f"patients needed    {found.patients_needed} in all, {each} at each hospital, for a noise of {found.level:g}"
    for number, measured in enumerate(dice):
        yield ("" if number else "expected Dice").ljust(19) + measured.words
    if found.own_multiplier is not None and found.epsilon_if_it_fails is not None:
        yield (
            f"if it fails        a hospital's own share of the noise ({found.own_multiplier:.4g}) leaves epsilon "
            f"{found.epsilon_if_it_fails:.3g} in place of {asked.epsilon:g}"
        )
    for one in found.ledgers:
        verdict = "" if one.affordable else ": it would be refused"
        yield (
            f"ledger of {one.site:8} epsilon {one.before:.3g} now, {one.after:.3g} after, of {one.budget:g} "
            f"(delta {one.delta:g}){verdict}"
        )
    if asked.delta * min(asked.sizes.values()) > 0.1:
        small = min(asked.sizes, key=lambda name: asked.sizes[name])
        yield (
            f"careful            delta {asked.delta:g} is much for the {asked.sizes[small]} patients of {small}: "
            f"{1 / asked.sizes[small]:.2g} would permit publishing one of them"
        )
    yield ""
    yield "At the same price"
    yield "  rounds   noise multiplier   noise of the mean gradient   in the mean of all steps"
    for other in found.others:
        yield _row(other, here=other.rounds == asked.rounds)


def _row(noise: Noise, *, here: bool) -> str:
    mark = "  <" if here else ""
    return f"  {noise.rounds:6d}   {noise.multiplier:16.4g}   {noise.together:26.3g}   {noise.averaged:24.3g}{mark}"


def _study(options: argparse.Namespace) -> Study | None:
    """The study in the file. Public keys of hospitals, which are known when it is started, may be missing."""
    if options.file is None:
        return None
    from conf.study import Study, settings_in
    from fl_server.start import with_keys
    from tasks.task import settled

    settings = settings_in(options.file)
    sites = settings.get("sites")
    if sites is None:
        raise ValueError("the study names no sites, and what it takes depends on how many there are")
    names = [name for name in sites if isinstance(name, str)] if isinstance(sites, list) else []
    given = {"konsil_version": version("konsil"), **settings}
    if names:
        given = with_keys(given, dict.fromkeys(names, "known at the start"))
    study = Study.from_json(json.dumps(given))
    return study.model_copy(update={"task": settled(study.task)})


def _learned(study: Study) -> Learned:
    from fl_server.plan.utility import Learned
    from tasks.segmentation import build

    if study.task.get("name") != "segmentation":
        return Learned(frozenset(), study.strategy.name, "all")
    chosen = build({name: value for name, value in study.task.items() if name != "name"}).settings
    return Learned(frozenset(chosen.structures), study.strategy.name, chosen.trainable)


def _asked(options: argparse.Namespace, study: Study | None) -> Asked:
    from fl_server.plan.noise import Asked, asked_of

    sized = [_size(said) for said in options.size]
    sizes = dict(sized)
    if twice := [name for name in sizes if sum(name == other for other, _ in sized) > 1]:
        raise ValueError(f"--size names {twice[0]} twice")
    given = {name: getattr(options, name) for name in _DEFAULTS if getattr(options, name) is not None}
    if study is not None:
        everybody = dict.fromkeys(study.sites, options.patients) if options.patients is not None else {}
        asked = asked_of(study, {**everybody, **sizes})
        return replace(asked, **given, secure=asked.secure or options.secure)
    if options.sites is not None and not sizes:
        if options.patients is None:
            raise ValueError(f"--sites {options.sites} needs --patients N: how many patients each of them declares")
        sizes = {f"site{number}": options.patients for number in range(1, options.sites + 1)}
    return Asked(**{**_DEFAULTS, **given}, sizes=sizes, secure=options.secure)


def _size(said: str) -> tuple[str, int]:
    name, equals, size = said.rpartition("=")
    if not (name and equals and size.isdecimal()):
        raise ValueError(f"--size names a hospital and its declared patients, such as north=40, not {said!r}")
    return name, int(size)


def _ledger(said: str) -> tuple[str, Mapping[str, float]]:
    name, equals, file = said.partition("=")
    if not (name and equals and file):
        raise ValueError(f"--ledger names a hospital and a file, such as north=ledger.json, not {said!r}")
    try:
        known = json.loads(Path(file).read_text())
        numbers = {key: math.inf if known[key] == "infinite" else float(known[key]) for key in ("epsilon", "budget", "delta")}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is not what `konsil-site ledger --json` prints") from None
    return name, numbers


def _plain(value: Any) -> Any:
    """Without infinities, for which JSON has no word."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
