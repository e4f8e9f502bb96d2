"""What a person at the hospital says yes to, in words: what a study runs, on whom, what leaves, at what price, for how long.

Everything here follows from the study's own text, the code that is installed here, and the hospital's settings and ledger. It
is for the hospital's own screen.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import prod

from conf.study import Study
from fl_client.patients import validates
from fl_client.price import matrix_models, planned, validated_rounds
from fl_client.privacy import BudgetSpent, Ledger, epsilon
from fl_client.site import Site
from fl_client.synthetic import how_many
from tasks.secure.plan import circle_of, grid_of
from tasks.task import CountingTask, GradientTask, JudgedTask, load_for, released

SHOWN = 4
"""So many arrays of a release are named in the text; `Leaving.arrays` names them all."""


@dataclass(frozen=True)
class Leaving:
    """One kind of message that leaves: when, and its arrays with shapes and dtypes."""

    when: str
    arrays: Mapping[str, tuple[tuple[int, ...], str]]

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return sum(prod(shape) for shape, _ in self.arrays.values())

    @property
    def bytes(self) -> int:
        """How many bytes these numbers take."""
        return sum(prod(shape) * _SIZES[dtype] for shape, dtype in self.arrays.values())

    def __str__(self) -> str:
        named = [f"{name} {'x'.join(map(str, shape)) or 1} {dtype}" for name, (shape, dtype) in self.arrays.items()]
        more = f", and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        return (
            f"{self.when}: {self.numbers:,} numbers in {len(named)} arrays, {self.bytes:,} bytes "
            f"({', '.join(named[:SHOWN])}{more})"
        )


_SIZES = {"float16": 2, "bfloat16": 2, "uint32": 4, "float32": 4, "float64": 8}


def leaving(site: Site, study: Study) -> tuple[Leaving, ...]:
    """What leaves the house if this study runs to its end. Raises `ValueError` if its task can't be run here."""
    task = load_for(study, models=site.models_folder)
    found = []
    each = f"each of the {study.rounds} rounds" if study.rounds > 1 else "its one round"
    if study.privacy.secure is not None:
        masked = {"masked": ((grid_of(study, task).length,), "uint32")}
        found.append(Leaving(f"{each}, one sum over all patients, under masks, which come off the sum of all alone", masked))
    elif isinstance(task, CountingTask):
        found.append(Leaving(f"{each}, one sum over all patients", _sum(task.length)))
    else:
        found.append(Leaving(f"{each}, the trained parameters", _trained(study, task)))
    if isinstance(task, JudgedTask):
        found += [Leaving(when, _sum(task.judgement_length)) for when in _scores(study)]
    return tuple(found)


def _sum(length: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """A noisy sum, with the variance of its noise, which follows from the study."""
    return {"total": ((length,), "float64"), "noise_variance": ((1,), "float64")}


def _scores(study: Study) -> list[str]:
    """When sums of scores leave, and whose."""
    asked = study.validations
    times = f"after round {validated_rounds(study)[0]}" if asked == 1 else f"{asked} times between rounds"
    return [
        *([f"{times}, one sum over validation patients"] if asked else []),
        *(["once after the last round, one sum over test patients"] if study.privacy.evaluation_share else []),
        *(
            [f"for each of {matrix_models(study)} models after the last round, one sum over validation patients"]
            if study.privacy.matrix_share
            else []
        ),
    ]


def _trained(study: Study, task: GradientTask) -> dict[str, tuple[tuple[int, ...], str]]:
    parameters = dict(task.model().named_parameters())
    return {
        name: (tuple(parameters[name].shape), str(parameters[name].dtype).removeprefix("torch."))
        for name in released(study, task)
    }


def _stays(study: Study) -> list[str]:
    training = study.training
    return [
        *([f"never leaves: what you train for yourself, {', '.join(training.personal)}"] if training.personal else []),
        *([f"stays as it came, and isn't sent back: {', '.join(training.frozen)}"] if training.frozen else []),
    ]


def _filtered(study: Study) -> list[str]:
    free = study.strategy.references_sha256
    if free is None:
        return []
    return [
        f"the coordinator takes noise out of the mean of all by patients who don't exist ({free[:12]}): nothing is asked of you"
    ]


def contract(site: Site, study: Study, *, days: int) -> Iterator[tuple[str, list[str]]]:
    """Heading and lines of each clause. A task that can't be run here says so in its own clause."""
    settings = [f"{name}: {value}" for name, value in study.task.items() if name != "name"]
    yield "Study", [f"{study.name}, {study.hash}", f"together with {', '.join(study.sites)}"]
    at_most = f"a round may take {study.strategy.timeout_s(site.name):g} s here"
    yield (
        "What it runs",
        [
            f"task {study.task['name']} of konsil {study.konsil_version}, as it is installed here; no code comes from outside",
            *([", ".join(settings)] if settings else []),
            f"strategy {study.strategy.name}, {study.rounds} rounds, {at_most}",
            *_filtered(study),
            *_time_boxed(study),
        ],
    )
    yield "On whom", [_whom(study), *_synthetic(site, study), *_held_back(site, study)]
    try:
        sent = [str(one) for one in leaving(site, study)]
    except ValueError as error:
        sent = [f"nothing: it can't be run here: {error}"]
    whose = "this hospital's share of the noise" if study.privacy.secure is not None else "noise"
    length = 1.0 if study.strategy.name == "sum" else study.privacy.max_grad_norm  # of what is counted it is 1 by construction
    protected = (
        f"a patient's share is cut to length {length:g} and {whose} is added before anything leaves"
        if study.privacy.kind == "patient"
        else "NO NOISE: what leaves may tell of single patients"
    )
    yield (
        "What leaves",
        [
            *sent,
            *_stays(study),
            protected,
            *_beside(site, study),
        ],
    )
    yield "Price", [price(site, study), *_shares(study)]
    if study.privacy.secure is not None:
        yield "Together", _together(site, study)
    yield "For how long", [f"until {until(days)} ({days} days), or until its rounds have been answered once"]


def _beside(site: Site, study: Study) -> list[str]:
    """What is said with the answers and in their place: all of it public, or of the ledger."""
    masked = study.privacy.secure is not None
    learned = not masked and study.strategy.name != "sum"
    agreed = "public keys, signatures, shares that one other hospital can read"
    size = f"the size that you declare in public ({site.declared_size})"
    return [
        f"with every answer {size} and the epsilon of your ledger",
        *(["with trained parameters how many steps were taken"] if learned else []),
        *([f"before each sum what its masks are agreed on with: {agreed}"] if masked else []),
        f"before the first round your name, {size}, your konsil's version, whether you take part, and if not, why",
        f"if you take part, also the epsilon that your ledger would come to, and its delta ({site.budget.delta:g})",
        "in place of an answer a refusal in words of konsil's own, or that it failed: memory, disk, books, work, and a number",
    ]


def _held_back(site: Site, study: Study) -> list[str]:
    """Who is asked for scores and not trained on."""
    test, rest = site.test_fraction, site.validation_fraction * (1 - site.test_fraction)
    between = f"validation patients, about {rest:.0%} of your cohort, choose among its models and are not trained on"
    once = f"test patients, about {test:.0%} of your cohort, judge the finished model and are not trained on in any study"
    return [
        *([between] if validates(study) else []),
        *([once] if study.privacy.evaluation_share else []),
    ]


def _shares(study: Study) -> list[str]:
    """How the promise is divided; nothing where the rounds have all of it, or there is none."""
    privacy = study.privacy
    parts = (
        (privacy.validation_share, f"for the {study.validations} scores between rounds"),
        (privacy.evaluation_share, "for the scores of the finished model"),
        (privacy.matrix_share, f"for the {matrix_models(study)} models of the matrix"),
    )
    shared = [f"{share:.0%} {what}" for share, what in parts if share]
    if privacy.kind == "none" or not shared:
        return []
    left = 1 - sum(share for share, _ in parts)
    return [f"this price is for everything that leaves: of it {', '.join(shared)}, and {left:.0%} for the rounds"]


def _together(site: Site, study: Study) -> list[str]:
    """What secure aggregation rests on, and what is left where that does not hold."""
    try:
        circle = circle_of(study)
        cost = planned(site, study, load_for(study, models=site.models_folder), rounds=1, scores=False)[0]
    except ValueError as error:
        return [f"it can't be run here: {error}"]
    alone = epsilon([cost.alone] * study.rounds, delta=site.budget.delta)
    return [
        f"a sum is told if {circle.threshold} of the {len(circle.sites)} hospitals are left at a round's end; nobody's own is",
        f"your price holds as long as no more than {circle.colluding} of the others tell the coordinator what they know",
        f"if more do, the noise of your own answers is left, and the rounds cost epsilon {alone:.4g} at your delta",
        "compare the hospitals' public keys below with what they tell you themselves: who can change them can sit in between",
        *(f"{name}: {_fingerprint(circle.keys[name])}" for name in circle.sites),
    ]


def _fingerprint(line: str) -> str:
    """As `ssh-keygen -l` prints it."""
    blob = base64.b64decode(line.split()[1] if " " in line else "", validate=False)
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _time_boxed(study: Study) -> list[str]:
    if study.training.work_s is None:
        return []
    return [
        f"of the {study.training.steps} steps of a round as many as this machine does in {study.training.work_s:g} s, by its "
        "pace on drawn data; fewer cost less"
    ]


def until(days: int) -> str:
    """The last day of an approval that is given now, as YYYY-MM-DD (UTC)."""
    return f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}"


def price(site: Site, study: Study, *, rounds: int | None = None, scores: bool = True) -> str:
    """What the study says it costs, and where the ledger would stand after `rounds` more (default: all) and its scores."""
    if study.privacy.kind == "none":
        return "no privacy: updates would leave without noise"
    budget = site.budget
    book = Ledger(site.ledger_path, epsilon=budget.epsilon, delta=budget.delta, accept_no_privacy=site.accept_no_privacy)
    promised = f"price epsilon {study.privacy.epsilon:g} (delta {study.privacy.delta:g})"
    try:
        events = planned(site, study, load_for(study, models=site.models_folder), rounds=rounds, scores=scores)
    except ValueError as error:
        return f"{promised}; it can't be run here: {error}"
    after = book.planned(events)
    try:
        book.affords(events)
        over = ""
    except BudgetSpent:
        over = " (over the budget: it will be refused)"
    return (
        f"{promised}; the ledger stands at {book.epsilon:.4g} and would stand at {after:.4g} of {budget.epsilon:g} "
        f"(delta {budget.delta:g}){over}"
    )


def _synthetic(site: Site, study: Study) -> list[str]:
    count = how_many(site)
    if not count or study.strategy.name == "sum":
        return []
    return [
        f"beside them the synthetic cases that you have added ({count}; konsil-site synthetic), as far as its task can use them"
    ]


def _whom(study: Study) -> str:
    everybody = "every training patient of your cohort whom its task can use"
    if study.selection is not None:
        everybody += f", and for whom: {study.selection}"
    if study.quality is not None:
        everybody += f"; of their images it wants {study.quality}"
    return everybody
