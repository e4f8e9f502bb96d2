"""The Study: everything the sites of a federation agree on, as data.

Hydra composes it once, where the study starts. From then on it is frozen, travels as one JSON string, and the SHA-256 of
that JSON is its identity: what a person at a hospital approves is this hash, and nothing else is run under it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import AfterValidator, Field, JsonValue, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from conf.frozen import Frozen as Frozen
from conf.quality import QualityLimits
from conf.selection import Selection

SCHEMA = 1
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""What a study or a hospital is called: it is shown on screens and becomes a folder."""


def _hospitals_own(name: str) -> str:
    if name == "global":
        raise ValueError("no hospital can be called 'global': that is the study's own model among those of the hospitals")
    if name.endswith(".part"):
        raise ValueError(f"'{name}' can't be a hospital's name: files that end in .part are only half written")
    return name


SiteName = Annotated[Name, AfterValidator(_hospitals_own)]
"""What a hospital is called."""
Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.*?\[\]-]{1,200}$")]
"""Parameters of a network by name, as `fnmatch` reads it: `encoder.*`, `*.norm.*`."""

LARGEST_NUMBER = 2**53
"""Whole numbers of a task's settings and of a selection are no larger."""

LARGEST = 256 * 1024
"""Bytes of JSON that a study may have: what a person approves is no larger, and nothing larger is parsed."""

MOST_ERRORS, LONGEST_WORD = 20, 300
"""Of what is wrong with settings, so many sentences are told, and so many characters of each and of a value: a study that can't
be read is the coordinator's, and what a hospital says of it stays short."""


class SecureAggregation(Frozen):
    """Sums over hospitals in which nobody sees a hospital's own numbers, so that they need one noise instead of one each.

    For rounds of one step over all patients, and for counting tasks. The protocol and what it assumes: `tasks/secure`.
    """

    keys: Annotated[dict[SiteName, Annotated[str, Field(max_length=400)]], Field(max_length=1000)]
    # each hospital's public key, as `konsil-site public-key` prints it: nobody can sit between two hospitals
    patients: Annotated[int, Field(ge=1, le=10_000_000)]  # more than what the hospitals declare together is refused
    threshold: Annotated[int, Field(ge=3)] | None = None  # hospitals that must be left at a round's end; None: all but one
    colluding: Annotated[int, Field(ge=0)] = 1  # hospitals that may tell the coordinator all they know, their noise included

    @property
    def least(self) -> int:
        """Hospitals that must be left at a round's end."""
        return max(3, len(self.keys) - 1) if self.threshold is None else self.threshold


class Privacy(Frozen):
    """What a patient is promised. The unit is one patient with all images; adjacency is add or remove one patient.

    `kind: none` promises nothing and runs the same loop with no clipping and no noise. `evaluation_share` is how much of what
    a patient is promised goes to one release of scores after the last round, as a share of the squared ratio of sensitivity to
    noise, which is what adds up; 0 is no such release.
    """

    kind: Literal["patient", "none"] = "patient"
    epsilon: Annotated[float, Field(gt=0)] = 8.0
    delta: Annotated[float, Field(gt=0, lt=0.1)] = 1e-3
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0  # bound on one patient's gradient, L2 over all parameters
    evaluation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the promise, for the scores of patients held back
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the promise, for choosing among rounds; other patients
    matrix_share: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the promise, for every model on every hospital's patients
    secure: SecureAggregation | None = None  # None: each hospital adds all of the noise

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if (shared := self.evaluation_share + self.validation_share + self.matrix_share) >= 1:
            raise ValueError(f"evaluation, validation and matrix take {shared:g} of the promise; the rounds need some of it")
        return self


class LocalTraining(Frozen):
    """What a site does in one round."""

    steps: Annotated[int, Field(ge=1, le=1000)] = 1  # gradient steps per round
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 1.0  # Poisson probability that a patient takes part in one step
    views: Annotated[int, Field(ge=1, le=1000)] = 4  # rows drawn from one patient in one step, inside the clipping
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    work_s: Annotated[float, Field(gt=0)] | None = (
        None  # a site that is too slow for all steps in it does fewer; None: all steps
    )
    frozen: tuple[Pattern, ...] = ()  # parameters that keep the values they came with, and don't travel
    personal: tuple[Pattern, ...] = ()  # parameters that each hospital trains for itself; they never leave it


class Strategy(Frozen):
    """How the coordinator makes one model of the sites' answers."""

    name: Literal["fedavg", "fedprox", "fedadam", "fedavgm", "fedmedian", "fedtrimmed", "krum", "fedwiener", "sum"] = "fedavg"
    # sum is for counting tasks
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0  # fedprox: pull of the global model during local steps
    server_learning_rate: Annotated[float, Field(gt=0)] = 1.0  # fedadam: step along the averaged update; fedwiener: its length
    server_schedule: Literal["constant", "cosine"] = (
        "constant"  # fedadam, fedwiener: cosine lets the steps shrink towards the end
    )
    server_warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0  # the same two: share of the rounds in which the step grows
    server_tau: Annotated[float, Field(gt=0)] = 1e-6  # fedadam: updates well below it are not scaled up to full steps
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # final model = exponential mean of the rounds' models; 0 = last
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # fedavgm, fedwiener: of the averaged update
    # fedwiener: arrays of free patients by whose gradients the coordinator tells updates from noise (docs/strategies.md)
    references_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.2  # fedtrimmed: share of the sites left out at either end, number by number
    malicious: Annotated[int, Field(ge=0)] = 1  # krum: hospitals that may be wrong without being chosen
    outlier_factor: Annotated[float, Field(gt=1)] | None = (
        None  # an update longer than so many medians doesn't count; None: all do
    )
    quorum: Annotated[int, Field(ge=1)] = 1  # a round with fewer usable answers keeps the old model
    round_timeout_s: Annotated[float, Field(gt=0)] = 3600.0  # from the question to the last answer that counts
    site_timeouts_s: dict[SiteName, Annotated[float, Field(gt=0)]] = {}  # the same, of hospitals that have more or less time
    retries: Annotated[int, Field(ge=0, le=10)] = (
        1  # per site and round, where a message or a machine was lost; never after a no
    )

    def timeout_s(self, site: str) -> float:
        """Seconds from the question to this hospital until its answer counts no more."""
        return self.site_timeouts_s.get(site, self.round_timeout_s)

    def server_step(self, number: int, rounds: int) -> float:
        """Step along the averaged update in round `number` of 1..`rounds`: `server_learning_rate`, or less by the schedule."""
        warmup = int(self.server_warmup * rounds)
        if number <= warmup:
            return self.server_learning_rate * number / warmup
        if self.server_schedule == "constant":
            return self.server_learning_rate
        done = (number - 1 - warmup) / (rounds - warmup)
        return self.server_learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Validation(Frozen):
    """Scores between rounds, of patients who are neither trained on nor in the final test: they choose the model.

    Each is a release, so all of them together cost `privacy.validation_share`.
    """

    every: Annotated[int, Field(ge=1)] = 1  # rounds between two of them
    patience: Annotated[int, Field(ge=1)] | None = None  # the study ends after so many without a better one; None: never early
    metric: Annotated[str, Field(max_length=64)] = ""  # of those that the task reads from the sum; "": its first


class Study(Frozen):
    """One federated study: who may differ in nothing that stands here."""

    schema_version: Literal[1] = 1
    name: Name = "rehearsal"
    konsil_version: str
    task: dict[str, JsonValue]  # {"name": folder of tasks/, ...its settings}
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    sites: Annotated[tuple[SiteName, ...], Field(max_length=1000)]  # hospitals asked to take part, by name
    seed: Annotated[int, Field(ge=0)] = 0  # initial weights and sampling order; never the privacy noise
    # of the arrays that round 1 starts from, when they were pre-trained
    initial_model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    privacy: Privacy = Privacy()
    training: LocalTraining = LocalTraining()
    strategy: Strategy = Strategy()
    selection: Selection | None = None  # whom the study is about; None: everybody whom its task can use
    quality: QualityLimits | None = None  # how good their images must be; None: as they are
    validation: Validation | None = None  # None: the model is that of the last round

    @field_validator("task")
    @classmethod
    def _task_is_finite(cls, task: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for path, value in _leaves(task):  # Python's JSON has words for them that no other reader knows
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{_shown(path)} is {value}; task settings must be finite numbers")
            if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
                raise ValueError(f"{_shown(path)} is beyond {LARGEST_NUMBER}, where numbers are no longer exact")
        return task

    @model_validator(mode="after")
    def _can_be_shown(self) -> Self:
        """A person approves what stands on the screen: no letter may move the cursor, hide or imitate a line."""
        for path, value in _leaves(self.model_dump(mode="json")):
            for text in (path, value):
                if isinstance(text, str) and not text.isprintable():
                    raise ValueError(f"{_shown(path)} holds characters that can't be printed")
        return self

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        if len(set(self.sites)) != len(self.sites) or not self.sites:
            raise ValueError(f"sites must name at least one hospital, each once, not {list(self.sites)}")
        if self.strategy.quorum > len(self.sites):
            raise ValueError(f"strategy.quorum is {self.strategy.quorum}, but only {len(self.sites)} sites take part")
        if unknown := sorted(set(self.strategy.site_timeouts_s) - set(self.sites)):
            raise ValueError(f"strategy.site_timeouts_s names {', '.join(unknown)}; the sites are {', '.join(self.sites)}")
        return self

    @model_validator(mode="after")
    def _work_ends_before_its_round(self) -> Self:
        work_s = self.training.work_s
        if late := [name for name in self.sites if work_s is not None and work_s > self.strategy.timeout_s(name)]:
            raise ValueError(
                f"training.work_s is {work_s:g} s, but {late[0]}'s answer counts for {self.strategy.timeout_s(late[0]):g} s "
                "(strategy.round_timeout_s, site_timeouts_s); it must be less, so that the answer comes in time"
            )
        return self

    @model_validator(mode="after")
    def _validation_is_paid_for(self) -> Self:
        if (self.validation is None) != (self.privacy.validation_share == 0):
            raise ValueError("validation and privacy.validation_share come together: each score between rounds has a price")
        return self

    @model_validator(mode="after")
    def _can_be_summed_securely(self) -> Self:
        secure, training, strategy = self.privacy.secure, self.training, self.strategy
        if secure is None:
            return self
        known = ", ".join(sorted(secure.keys)) or "nobody"
        wrong = [
            (
                self.privacy.kind != "patient",
                "privacy.kind must be 'patient': without a bound on a patient nothing can be masked",
            ),
            (training.steps != 1, f"training.steps must be 1, not {training.steps}: one step's sum is what can be masked"),
            (training.sample_rate != 1, f"training.sample_rate must be 1, not {training.sample_rate:g}"),
            (training.work_s is not None, "training.work_s must be empty: a hospital takes its one step"),
            (training.optimizer != "sgd", "training.optimizer must be 'sgd': the coordinator takes the step, for all together"),
            (bool(training.personal), "training.personal must be empty: nobody has an update of its own"),
            (self.privacy.matrix_share > 0, "privacy.matrix_share must be 0: nobody has a model of its own"),
            (strategy.outlier_factor is not None, "strategy.outlier_factor must be empty: nobody's update is seen"),
            (
                strategy.name in ("fedmedian", "fedtrimmed", "krum"),
                f"strategy.name can't be '{strategy.name}': it compares updates, which nobody sees",
            ),
            (
                set(secure.keys) != set(self.sites),
                f"privacy.secure.keys names {known}; the sites are {', '.join(self.sites)}",
            ),
        ]
        for is_wrong, words in wrong:
            if is_wrong:
                raise ValueError(f"with secure aggregation {words}")
        return self

    @property
    def validations(self) -> int:
        """How often the study is validated at most."""
        return 0 if self.validation is None else self.rounds // self.validation.every

    @property
    def quorum(self) -> int:
        """A round with fewer usable answers keeps the old model."""
        return max(self.strategy.quorum, 0 if self.privacy.secure is None else self.privacy.secure.least)

    @property
    def noise_steps(self) -> int:
        """Noisy gradient releases of one site over the whole study."""
        return self.rounds * self.training.steps

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no white space. Equal studies give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Study:
        """Read a study strictly: unknown keys, wrong types and NaN are refused (`pydantic.ValidationError`).

        A whole number is also a float, an array also a tuple; nothing else is converted. More than `LARGEST` bytes are refused
        unread.
        """
        if len(text) > LARGEST or len(text.encode(errors="replace")) > LARGEST:
            _refuse_size(len(text))
        return cls.model_validate_json(text, strict=True)

    @classmethod
    def read(cls, path: Path) -> Study:
        """The study in a JSON file, read as strictly; without `konsil_version` it is made for the installed konsil.

        Raises `pydantic.ValidationError`, `ValueError` in words for a file that holds no object of settings, and `OSError`.
        """
        return cls.from_json(json.dumps({"konsil_version": version("konsil"), **settings_in(path)}))

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits: the study's identity."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def settings_in(path: Path) -> dict[str, Any]:
    """The settings in a JSON file, as they stand there.

    Raises `ValueError` in words for a file that is no JSON or holds no object, and for a setting that stands there twice: which
    of the two is meant, nobody can tell. `pydantic.ValidationError` for more than `LARGEST` bytes, and `OSError`.
    """
    if (size := path.stat().st_size) > LARGEST:
        _refuse_size(size)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is no JSON: too deeply nested") from None
    except _Twice as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold an object of settings")
    return settings


class _Twice(ValueError):
    """A key stands twice in one object."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(f"{_shown(key)} stands there twice")
        found[key] = value
    return found


def _refuse_size(size: int) -> NoReturn:
    problem = PydanticCustomError(
        "study_size", "{size} bytes are no study; at most {largest} are read", {"size": size, "largest": LARGEST}
    )
    raise ValidationError.from_exception_data("Study", [{"type": problem, "input": {}}])


def _shown(path: str) -> str:
    return path if path.isprintable() else repr(path)


def _leaves(value: JsonValue, path: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Every value that holds no others, with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{index}")
    else:
        yield path, value


def words(error: Any) -> str:
    """A pydantic `ValidationError` as sentences: path, what is wrong, the value, what is allowed. Long ones are cut short."""
    found, lines = error.errors(), []
    for item in found[:MOST_ERRORS]:
        path = ".".join(str(part) for part in item["loc"]) or "study"
        plain = item["type"] not in ("missing", "extra_forbidden") and not isinstance(item["input"], dict)
        value = f" (got {_cut(repr(item['input']))})" if plain else ""
        lines.append(_cut(f"{path}: {said(item)}") + value)
    return "\n".join([*lines, f"... and {len(found) - len(lines)} more"] if len(found) > len(lines) else lines)


def said(item: Any) -> str:
    """What one of a pydantic error's `errors()` complains of, without pydantic's own names for it."""
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return "no such setting"
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    if kind == "string_pattern_mismatch" and (rule := _rule(str(context["pattern"]))):
        return f"may hold only {rule}"
    return str(item["msg"])


_RULE = re.compile(r"\^(?:\[(?P<first>[^]]+)\])?\[(?P<rest>(?:\\.|[^]\\])+)\]\{(?P<least>\d+)(?P<open>,(?P<most>\d+))?\}\$")
_RANGES = {"A-Z": "capital letters", "a-z": "small letters", "0-9": "digits", "a-f": "letters from a to f"}


def _rule(pattern: str) -> str:
    """A pattern of one or two sets of characters in words; empty for any other.

    >>> _rule("^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    "letters, digits, '_', '.' and '-', beginning with a letter or digit, 1 to 64 characters"
    """
    found = _RULE.fullmatch(pattern)
    if found is None:
        return ""
    kinds = _characters(found["rest"])
    text = f"{', '.join(kinds[:-1])} and {kinds[-1]}" if len(kinds) > 1 else kinds[0]
    more = 0 if found["first"] is None else 1
    if more:
        text += f", beginning with a {' or '.join(kind.removesuffix('s') for kind in _characters(found['first']))}"
    least, most = int(found["least"]) + more, int(found["most"] or found["least"]) + more
    return f"{text}, {least} characters" if least == most else f"{text}, {least} to {most} characters"


def _characters(inside: str) -> list[str]:
    """What stands between the brackets of a pattern."""
    ranges = [text for text in _RANGES if text in inside]
    for text in ranges:
        inside = inside.replace(text, "")
    named = [_RANGES[text] for text in ranges]
    if named[:2] == ["capital letters", "small letters"]:
        named[:2] = ["letters"]
    return [*named, *(f"'{letter}'" for letter in inside.replace("\\", ""))]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_WORD else f"{text[:LONGEST_WORD]}... and {len(text) - LONGEST_WORD} more characters"
