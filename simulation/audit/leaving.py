"""What leaves, field by field and byte by byte, against a list of what may.

Every kind of answer is taken apart: names of records and entries, shapes, types, and every number that isn't part of a noisy
sum has to be the public one. Then the bytes of the whole message are searched for what was planted at the hospital: pseudonyms,
patients' values as text and as binary numbers, paths, words of exceptions. Failures and refusals are answers, too.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from conf.study import LocalTraining, Privacy, SecureAggregation, Study
from fl_client import app as hospital
from fl_client import patients as of_hospital
from fl_client.cohort import side_of
from fl_client.price import planned
from simulation.audit.check import Check, Finding, Setting, replaced
from simulation.audit.drawn import COUNT, FOREST, PERCEPTRON, SEGMENTATION, case
from simulation.audit.houses import Answer, Houses, start_of
from simulation.audit.neighbours import without_masks
from tasks.task import CountingTask, GradientTask, load_for, moving

DECLARED = 64
"""Patients are fewer, and no count of them is this."""
_AGE = 47.318205
_NUMBER = 8.4127539e7
_METADATA = {"run_id", "message_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id", "created_at", "ttl"}
_METADATA |= {"message_type", "delivered_at", "src_task_id", "dst_task_id"}
_METRICS = {"num-examples", "epsilon"}
_ENROLMENT = {"site", "declared-size", "konsil-version", "takes-part", "reason", "epsilon", "delta"}
_ERROR = ("the work failed at this site; its log says why (reason: ", "memory", "disk", "books", "work")


def attack(setting: Setting) -> Finding:
    """Each kind of answer, of a hospital whose patients carry marks."""
    found = Finding()
    kinds = _kinds()
    entries = size = 0
    for done, (name, (fields, kind)) in enumerate(kinds.items()):
        houses, study, marks = _house(setting, name, fields, kind)
        answer = _asked(houses, study, kind)
        entries += sum(len(record) for record in answer.records.values())
        size += len(answer.wire)
        _require_listed(found, name, houses, study, answer, kind)
        _require_unmarked(found, name, answer, marks)
        failed = _failing(houses, study, kind)
        if failed is not None:
            found.require(failed.code == 101 and failed.words.startswith(_ERROR[0]), f"{name}: a failure said {failed.words!r}")
            _require_unmarked(found, f"{name}, failed", failed, marks)
            size += len(failed.wire)
        setting.advance(done + 1, len(kinds))
    found.figures = {"kinds_of_answer": len(kinds), "entries_on_the_list": entries, "bytes_searched": size}
    return found


def _kinds() -> dict[str, tuple[dict[str, Any], str]]:
    half = Privacy(epsilon=3.0)  # each question is asked twice
    step: dict[str, Any] = {"training": LocalTraining(views=1), "privacy": half}
    return {
        "enrolment": (step | {"task": SEGMENTATION}, "query.enroll"),
        "gradients, all": (step | {"task": SEGMENTATION}, "train"),
        "gradients, head": (step | {"task": SEGMENTATION | {"trainable": "head"}}, "train"),
        "gradients, norm layers stay": (
            {"task": SEGMENTATION, "training": LocalTraining(views=1, frozen=("body.*",), personal=("activation.*",)),
             "privacy": half}, "train"),
        "leaf counts": ({"task": FOREST, "strategy": {"name": "sum"}, "privacy": half}, "train"),
        "counts": ({"task": COUNT, "strategy": {"name": "sum"}, "privacy": half}, "train"),
        "scores": (step | {"task": PERCEPTRON, "privacy": Privacy(epsilon=3.0, evaluation_share=0.3)}, "evaluate"),
        "gradients, under masks": (step | {"task": PERCEPTRON}, "masked"),
        "keys of a secure sum": (step | {"task": PERCEPTRON}, "query.secure_keys"),
    }  # fmt: skip


def _house(setting: Setting, name: str, fields: dict[str, Any], kind: str) -> tuple[Houses, Study, dict[str, bytes]]:
    houses = Houses(setting.folder / f"planted_{name.replace(',', '').replace(' ', '_')}")
    share = 0.5 if kind == "evaluate" else 0.0
    wanted = "test" if share else "train"
    names = [f"planted-{n}-Grantchester" for n in range(90) if side_of(f"planted-{n}-Grantchester", share) == wanted][:7]
    cases = []
    for n, patient in enumerate(names):
        one = case(patient, n, age=_AGE, remark="Wannseeklinik")
        first = one.volumes[0]
        cases.append(replace(one, volumes=(replace(first, image=(first.image + _NUMBER).astype(np.float32)), *one.volumes[1:])))
    houses.add("a", cases, noise_seed=None, test_fraction=share, declared_size=DECLARED)
    texts = {"pseudonym": "Grantchester", "endpoint": "Wannseeklinik", "path": str(houses.folder), "folder": "planted_"}
    texts |= {"exception": "Schwanenwerder", "value": str(_AGE)}
    marks = {what: text.encode() for what, text in texts.items()}
    marks |= {"value, double": struct.pack("<d", _AGE), "value, float": struct.pack("<f", _AGE)}
    marks |= {"voxel, float": struct.pack("<f", np.float32(_NUMBER)), "voxel, double": struct.pack("<d", np.float32(_NUMBER))}
    if kind in ("masked", "query.secure_keys"):
        for other in ("b", "c"):
            houses.add(other)
        secured = Privacy(epsilon=3.0, secure=SecureAggregation(keys=houses.keys(), patients=2 * DECLARED))
        return houses, houses.study(**{**fields, "privacy": secured, "strategy": {"quorum": 3}}), marks
    return houses, houses.study(**fields), marks


def _asked(houses: Houses, study: Study, kind: str) -> Answer:
    with without_masks():
        if kind in ("masked", "query.secure_keys"):
            return houses.ask(study, "a", kind="train" if kind == "masked" else kind, attempt=0)["a"]
        return houses.ask(study, "a", kind=kind)["a"]


def _failing(houses: Houses, study: Study, kind: str) -> Answer | None:
    """The answer where the work stumbles over a patient, with a text that names everything; None if nothing works on one."""
    if kind.startswith("query"):
        return None
    text = f"patient planted-1-Grantchester of Schwanenwerder in {houses.folder} is {_AGE} years old"

    def stumble(*args: Any, **how: Any) -> Any:
        raise RuntimeError(text)

    for file in (houses.site("a").folder / "sent").glob("*"):
        file.unlink()
    with replaced(of_hospital, "chosen", stumble):
        return _asked(houses, study, kind)


def _require_listed(found: Finding, name: str, houses: Houses, study: Study, answer: Answer, kind: str) -> None:
    """Names, shapes, types and public values of everything in the answer."""
    if answer.code is not None:
        found.problems.append(f"{name}: the answer was {answer.code} {answer.words}")
        return
    strange = set(answer.metadata) - _METADATA
    found.require(not strange, f"{name}: the message says {', '.join(sorted(strange))} of itself")
    found.require(
        not answer.metadata.get("group_id"), f"{name}: the message has a group id {answer.metadata.get('group_id')!r}"
    )
    site, events = houses.site("a"), houses.events("a")
    task = load_for(study)
    arrays, numbers = _expected(study, task, kind)
    allowed = {"arrays": set(arrays), "metrics": set(numbers)} if arrays else {}
    if kind == "query.enroll":
        allowed = {"enrolment": _ENROLMENT}
    elif kind == "query.secure_keys":
        allowed = {"secure": {"keys"}}
    seen = {record: set(entries) for record, entries in answer.records.items()}
    found.require(seen == allowed, f"{name}: there is {_listed(seen, allowed)} beyond what may leave or less than it")
    if seen != allowed:
        return
    for key, (shape, dtype) in arrays.items():
        value = answer.records["arrays"][key]
        found.require(
            (value.shape, str(value.dtype)) == (shape, dtype),
            f"{name}: '{key}' is {value.dtype} {value.shape}, not {dtype} {shape}",
        )
    if arrays:
        metrics = answer.records["metrics"]
        ledger = hospital.ledger_of(site).epsilon
        right: dict[str, Any] = {"num-examples": DECLARED, "epsilon": ledger, "steps": events[-1].steps if events else 0}
        for key in numbers:
            same = math.isclose(metrics[key], right[key], rel_tol=1e-12)
            found.require(same, f"{name}: {key} is {metrics[key]}, and publicly {right[key]}")
        if "noise_variance" in arrays:
            variance = float(answer.records["arrays"]["noise_variance"][0])
            promised = events[-1].noise_multiplier ** 2
            found.require(
                math.isclose(variance, promised, rel_tol=1e-9), f"{name}: the variance said is {variance}, paid for {promised}"
            )
    if kind == "query.enroll":
        said = answer.records["enrolment"]
        price = hospital.ledger_of(site).planned(planned(site, study, task))
        right = {"site": "a", "declared-size": DECLARED, "takes-part": True, "reason": "", "delta": site.budget.delta}
        wrong = [key for key, value in right.items() if said[key] != value]
        found.require(not wrong and math.isclose(said["epsilon"], price), f"{name}: says {json.dumps(said, default=str)}")


def _expected(
    study: Study, task: GradientTask | CountingTask, kind: str
) -> tuple[dict[str, tuple[tuple[int, ...], str]], set[str]]:
    """Arrays by name, and numbers, that an answer of this kind has."""
    if kind.startswith("query"):
        return {}, set()
    if kind == "evaluate":
        length = int(getattr(task, "judgement_length"))  # noqa: B009 - a judged task, as its kind of question says
        return {"total": ((length,), "float64"), "noise_variance": ((1,), "float64")}, _METRICS
    if isinstance(task, CountingTask):
        return {"total": ((task.length,), "float64"), "noise_variance": ((1,), "float64")}, _METRICS
    shapes = {key: value.shape for key, value in start_of(study).items()}
    names = [
        key for key in moving(study, task, task.model()) if not key.startswith("activation.") or not study.training.personal
    ]
    if kind == "masked":
        return {"masked": ((sum(math.prod(shapes[key]) for key in names),), "uint32")}, _METRICS
    return {key: (shapes[key], "float32") for key in names}, _METRICS | {"steps"}


def _listed(seen: Mapping[str, set[str]], allowed: Mapping[str, set[str]]) -> str:
    pairs = {(r, e) for r, entries in seen.items() for e in entries} ^ {
        (r, e) for r, entries in allowed.items() for e in entries
    }
    return ", ".join(sorted(f"{record}.{entry}" for record, entry in pairs)[:5]) or "a record"


def _require_unmarked(found: Finding, name: str, answer: Answer, marks: Mapping[str, bytes]) -> None:
    wire = answer.wire + json.dumps(dict(answer.metadata), default=str).encode()
    for what, mark in marks.items():
        found.require(mark not in wire, f"{name}: the message holds a planted {what}")


CHECKS = (
    Check(
        "what leaves",
        "Every field of every answer is on the list of what may leave, plain numbers are the public ones, no mark gets out.",
        "certain",
        attack,
    ),
)
