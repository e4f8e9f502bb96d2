"""Nothing that leaves follows the number of patients, drawn or there, but the noisy sum itself.

Hospitals of none, one and nine patients declare the same size and rehearse with the same noise. Whatever divides, scales, skips
or reports by a count shows in their answers: the difference may be as long as the patients' own bounds together, and no longer;
all the rest has to be equal, the price in the ledger too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from conf.study import LocalTraining, Privacy, SecureAggregation
from fl_client.cohort import side_of
from simulation.audit.check import Check, Finding, Setting
from simulation.audit.drawn import COUNT, FOREST, PERCEPTRON, SEGMENTATION, case
from simulation.audit.houses import Answer, Houses, moved_by
from simulation.audit.neighbours import SENT, without_masks

COUNTS = (0, 1, 9)
_BOUND = 1e-4


def attack(setting: Setting) -> Finding:
    """Each kind of answer at each size of cohort."""
    found = Finding()
    kinds = _kinds()
    for done, (name, (fields, kind)) in enumerate(kinds.items()):
        _compare(found, setting, name, fields, kind)
        setting.advance(done + 1, len(kinds))
    return found


def _kinds() -> dict[str, tuple[dict[str, Any], str]]:
    step = LocalTraining(views=1, learning_rate=1.0 / _BOUND)
    bound = Privacy(max_grad_norm=_BOUND)
    half = {"training": LocalTraining(views=1, learning_rate=1.0 / _BOUND, sample_rate=0.5)}
    counted: dict[str, Any] = {"strategy": {"name": "sum"}, "privacy": Privacy()}
    judged = {"task": PERCEPTRON, "privacy": Privacy(max_grad_norm=_BOUND, evaluation_share=0.3)}
    return {
        "gradients, U-Net": ({"task": SEGMENTATION, "training": step, "privacy": bound}, "train"),
        "gradients, sampled": ({"task": PERCEPTRON, **half, "privacy": bound}, "train"),
        "leaf counts": ({"task": FOREST, **counted}, "train"),
        "counts": ({"task": COUNT, **counted}, "train"),
        "scores": (judged, "evaluate"),
        "gradients, under masks": ({"task": PERCEPTRON, "training": step, "privacy": bound}, "masked"),
        "enrolment": ({"task": PERCEPTRON, "training": step, "privacy": bound}, "query.enroll"),
    }


def _compare(found: Finding, setting: Setting, name: str, fields: dict[str, Any], kind: str) -> None:
    share = 0.5 if kind == "evaluate" else 0.0
    wanted = "test" if share else "train"
    names = [f"p{n}" for n in range(90) if side_of(f"p{n}", share) == wanted][: max(COUNTS)]
    folder = setting.folder / name.replace(",", "").replace(" ", "_")
    first: tuple[Answer, Any, Any] | None = None
    keys: dict[str, str] = {}
    worst = 0.0
    for count in COUNTS:
        houses = Houses(folder / f"{count}_patients")
        site = houses.add("a", [case(patient, n) for n, patient in enumerate(names[:count])], test_fraction=share)
        if kind == "masked":
            for other in ("b", "c"):
                houses.add(other)
            keys = keys or houses.keys()
            if count != COUNTS[0]:  # the same key as in the first folder: the study names it
                for suffix in ("", ".pub"):
                    source = folder / f"{COUNTS[0]}_patients" / "a" / f"node.key{suffix}"
                    (houses.folder / "a" / f"node.key{suffix}").write_bytes(source.read_bytes())
            secured = fields["privacy"].model_copy(update={"secure": SecureAggregation(keys=keys, patients=20)})
            study = houses.study(**{**fields, "privacy": secured, "strategy": {"quorum": 3}})
        else:
            study = houses.study(**fields)
        with without_masks():
            asked = kind if kind in ("evaluate", "query.enroll") else "train"
            config: dict[str, Any] = {"attempt": 0} if kind == "masked" else {}
            answer = houses.ask(study, "a", kind=asked, **config)["a"]
        if answer.code is not None:
            found.problems.append(f"{name}: a hospital of {count} patients answered {answer.code} {answer.words}")
            return
        events = houses.events("a")
        if kind == "query.enroll":
            vector, bound = np.zeros(1), 1.0
        elif kind == "masked":
            vector, bound = answer.arrays["masked"], float(events[0].sensitivity or 0)
        elif "total" in answer.arrays:
            vector, bound = answer.arrays["total"], 1.0
        else:
            vector, bound = moved_by(study, answer, declared=site.declared_size), _BOUND
        if first is None:
            first = (answer, vector, events)
            continue
        difference = vector - first[1]
        if vector.dtype == np.uint32:
            difference = difference.view(np.int32)
        moved = float(np.linalg.norm(difference.astype(np.float64))) / bound
        worst = max(worst, moved / count)
        found.require(
            moved <= count * (1 + SENT),
            f"{name}: {count} patients move what leaves by {moved:.3g} bounds: their number is in it",
        )
        found.require(_beside(answer) == _beside(first[0]), f"{name}: numbers beside the sum differ at {count} patients")
        found.require(len(answer.wire) == len(first[0].wire), f"{name}: an answer about {count} patients has another length")
        found.require(events == first[2], f"{name}: the price follows the number of patients ({count})")
    found.figures[name] = worst


def _beside(answer: Answer) -> dict[str, Any]:
    """All that is no sum: names, shapes and types of arrays, numbers, words."""
    told: dict[str, Any] = {}
    for record, entries in answer.records.items():
        for key, value in entries.items():
            sums = isinstance(value, np.ndarray) and key != "noise_variance"
            told[f"{record}.{key}"] = (value.shape, str(value.dtype)) if sums else np.asarray(value).tolist()
    return told


CHECKS = (
    Check(
        "denominators",
        "None, one or nine patients: nothing that leaves follows their number, but the noisy sum by each one's bound.",
        "certain",
        attack,
        reads="Largest distance of answers about one or nine patients from that about nobody, over one bound for each patient.",
    ),
)
