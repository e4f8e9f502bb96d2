"""Neighbouring cohorts: with and without one patient, nothing that leaves may differ by more than the bound that noise covers.

Three layers, from the sum to the message. The clipped sum itself, by both engines, over several networks. A hospital's whole
answer, of every kind: two hospitals that rehearse with the same noise and differ in one patient, so that the noise cancels in
the difference of what they send. And the noisy sum that counts and scores use, fed with vectors that no task should make. A
single pair that lies too far apart refutes the promise, whatever epsilon is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from conf.study import LocalTraining, Privacy, SecureAggregation, Study
from fl_client import secure
from fl_client.cohort import side_of
from fl_client.privacy import clip, clipped_sum, noisy_sum, require_private
from fl_client.privacy.engine.trial import Engine
from simulation.audit.check import Check, Figure, Finding, Setting, replaced
from simulation.audit.drawn import COUNT, FOREST, KINDS, LOGISTIC, PERCEPTRON, SEGMENTATION, Patient, Silence, case
from simulation.audit.houses import Answer, Houses, moved_by
from tasks.radiomics.perceptron import Perceptron
from tasks.radiomics.perceptron import loss as of_rows
from tasks.segmentation.loss import dice_and_cross_entropy
from tasks.segmentation.network import SegmentationNet
from tasks.segmentation.settings import Settings

CLOSE = 1e-6
"""What rounding may add to a bound, in double precision."""
SENT = 2e-3
"""The same for weights that travel in single precision."""
BOUND = 0.05


# -- the clipped sum ------------------------------------------------------------------------------------------------------


def sums(setting: Setting) -> Finding:
    """Both engines, on networks of images in 2D and 3D and of tables, with patients that break something."""
    found = Finding()
    jobs = [(name, engine) for name in ("U-Net 2D", "U-Net 3D", "perceptron") for engine in ("loop", "one_pass")]
    for done, (name, engine) in enumerate(jobs):
        found.figures[f"{name}, {engine}"] = _furthest(found, f"{name}, {engine}", engine, *_network(name, setting.seed))
        setting.advance(done + 1, len(jobs))
    return found


def _network(name: str, seed: int) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], list[Patient]]:
    torch.manual_seed(seed)
    if name == "perceptron":
        X = [torch.rand(3, 7).double() * 2 - 1 for _ in range(6)]
        X[1] = X[1][:1].repeat(3, 1)  # a patient whose rows are all alike
        X[2] = X[2] * 1e9
        X[3] = torch.full((3, 7), math.nan).double()
        rows = [(x, torch.tensor([[float(n % 2), 1.0]] * 3).double()) for n, x in enumerate(X)]
        return Perceptron(7, [5]).double(), of_rows, rows
    dims = 3 if name.endswith("3D") else 2
    # coarse channels: a sum must be right for any network, and this one is small
    settings = Settings.model_validate(
        {key: value for key, value in SEGMENTATION.items() if key != "name"} | {"spatial_dims": dims, "voxels": 8}
    )
    space = (8,) * dims
    images = [torch.randn(3, 1, *space).double() for _ in range(6)]
    masks = [torch.randint(0, settings.classes, (3, *space)) for _ in images]
    images[1], masks[1] = images[1][:1].repeat(3, *[1] * (dims + 1)), masks[1][:1].repeat(3, *[1] * dims)
    images[2], masks[2] = 1e6 * images[2], masks[2] * 0
    images[3] = torch.full_like(images[3], math.inf)
    images[5] = images[5].repeat(1, 2, *[1] * dims)  # channels that the network does not know: no gradient can be computed
    masks[4] = masks[4] * 0  # shows nothing that is looked for: tempts a loss over the batch to leave a class out
    return (
        SegmentationNet(settings).double(),
        lambda output, target: dice_and_cross_entropy(output, target, settings),
        list(zip(images, masks, strict=True)),
    )


def _furthest(
    found: Finding, where: str, engine: Any, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], patients: list[Patient]
) -> float:
    """The largest distance of the sums with and without one patient, over the bound."""
    require_private(model)
    parameters = list(model.parameters())
    worst = 0.0
    for bound in (BOUND, 1e-6):

        def total(some: list[Patient], bound: float = bound) -> npt.NDArray[np.float64]:
            shares = clipped_sum(model, parameters, some, loss, max_grad_norm=bound, engine=engine)
            return np.concatenate([share.numpy().ravel() for share in shares.gradients])

        try:
            everybody = total(patients)
        except Exception as error:
            found.problems.append(f"{where}: one patient stops the step for all ({type(error).__name__}: {error})")
            return math.inf
        found.require(bool(np.isfinite(everybody).all()), f"{where}: one patient makes the sum infinite or undefined")
        for left in range(len(patients)):
            moved = float(np.linalg.norm(everybody - total(patients[:left] + patients[left + 1 :]))) / bound
            worst = max(worst, moved)
            found.require(
                moved <= 1 + CLOSE,
                f"{where}: without patient {left} the sum lies {moved:.3g} bounds away, at a bound of {bound:g}",
            )
        nobody = float(np.linalg.norm(total([])))
        found.require(nobody == 0, f"{where}: the sum over nobody has length {nobody:.3g}")
    return worst


# -- a hospital's whole answer --------------------------------------------------------------------------------------------


def answers(setting: Setting) -> Finding:
    """Every kind of answer, of two hospitals that differ in one patient."""
    found = Finding()
    studies = _studies()
    for done, (name, (fields, kind, engine)) in enumerate(studies.items()):
        with _with_engine(engine), without_masks():
            worst = _apart(found, setting, name, fields, kind)
        found.figures[name] = worst
        found.require(worst > 0.01, f"{name}: no patient moves anything by a hundredth of the bound; nothing was tried")
        setting.advance(done + 1, len(studies))
    return found


def _studies() -> dict[str, tuple[dict[str, Any], str, str]]:
    """Settings, kind of question, engine."""
    step = LocalTraining(views=3, learning_rate=1.0)
    unet: dict[str, Any] = {"task": SEGMENTATION, "training": step, "privacy": Privacy(max_grad_norm=BOUND)}
    rows: dict[str, Any] = {"training": step.model_copy(update={"views": 1}), "privacy": Privacy(max_grad_norm=BOUND)}
    summed: dict[str, Any] = {"strategy": {"name": "sum"}, "privacy": Privacy()}
    judged = Privacy(max_grad_norm=BOUND, evaluation_share=0.3)
    return {
        "gradients, U-Net, one after the other": (unet, "train", "loop"),
        "gradients, U-Net, in one pass": (unet, "train", "auto"),
        "gradients, perceptron": (rows | {"task": PERCEPTRON}, "train", "auto"),
        "gradients, logistic regression": (rows | {"task": LOGISTIC}, "train", "auto"),
        "leaf counts": (summed | {"task": FOREST}, "train", "auto"),
        "counts": (summed | {"task": COUNT}, "train", "auto"),
        "scores of masks": (unet | {"privacy": judged}, "evaluate", "auto"),
        "scores of a classifier": (rows | {"task": PERCEPTRON, "privacy": judged}, "evaluate", "auto"),
        "gradients, under masks": (unet, "masked", "auto"),
        "leaf counts, under masks": (summed | {"task": FOREST}, "masked", "auto"),
    }


def _apart(found: Finding, setting: Setting, name: str, fields: dict[str, Any], kind: str) -> float:
    """The largest distance between hospitals with and without one patient, over what the ledger's noise covers."""
    share = 0.5 if kind == "evaluate" else 0.0
    wanted = "test" if kind == "evaluate" else "train"
    names = [f"p{n}" for n in range(60) if side_of(f"p{n}", share) == wanted][:5]
    cases = [case(patient, n, KINDS[n % len(KINDS)]) for n, patient in enumerate(names)]
    folder, worst, first = setting.folder / name.replace(",", "").replace(" ", "_"), 0.0, None
    for left in (None, *range(len(cases) - 1)):
        houses = Houses(folder / f"without_{left}")
        there = [one for n, one in enumerate(cases) if n != left]
        site = houses.add("a", there, test_fraction=share)
        for other in ("b", "c") if kind == "masked" else ():
            houses.add(other)
        study = houses.study(**_masked(fields, folder) if kind == "masked" else fields)
        config: dict[str, Any] = {"attempt": 0} if kind == "masked" else {}
        answer = houses.ask(study, "a", kind="evaluate" if kind == "evaluate" else "train", **config)["a"]
        if answer.code is not None:
            found.problems.append(f"{name}: without patient {left} the answer was {answer.code} {answer.words}")
            continue
        (event,) = houses.events("a")
        vector, bound = _sum_of(study, answer, event.sensitivity, declared=site.declared_size)
        if first is None:
            first = vector
            continue
        moved = _distance(first, vector) / bound
        worst = max(worst, moved)
        found.require(moved <= 1 + SENT, f"{name}: without patient {left} the sum lies {moved:.3g} bounds away")
    return worst


def _sum_of(study: Study, answer: Answer, sensitivity: float | None, *, declared: int) -> tuple[npt.NDArray[Any], float]:
    """The noisy sum that left, and the bound that its noise covers."""
    arrays = answer.arrays
    if "masked" in arrays:
        return arrays["masked"], sensitivity or 0.0
    if "total" in arrays:
        return arrays["total"], 1.0
    return moved_by(study, answer, declared=declared), study.privacy.max_grad_norm


def _distance(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    if one.dtype == np.uint32:
        return float(np.linalg.norm((one - other).view(np.int32).astype(np.float64)))  # modulo 2**32
    return float(np.linalg.norm(one - other))


def _masked(fields: dict[str, Any], folder: Any) -> dict[str, Any]:
    """The same study under secure aggregation; the hospitals' keys are those that were made first, in every folder."""
    first = folder / "without_None"
    keys = Houses(first, {name: first / name / "site.yaml" for name in "abc"}).keys()
    secured = fields["privacy"].model_copy(update={"secure": SecureAggregation(keys=keys, patients=20)})
    return {**fields, "privacy": secured, "strategy": {**fields.get("strategy", {}), "quorum": 3}}


@contextlib.contextmanager
def _with_engine(engine: str) -> Any:
    if engine == "auto":
        yield
    else:
        with replaced(clip, "engine_for", lambda *seen: Engine("loop")):
            yield


@contextlib.contextmanager
def without_masks() -> Any:
    """What a hospital's answer would be without its masks, which are uniform and hide every difference."""
    with (
        replaced(secure, "instance_of", lambda *args, **where: ""),
        replaced(secure, "masked_before", lambda *args, **where: None),
        replaced(secure, "accept", lambda *args, **where: None),
        replaced(secure, "mask", lambda site, study, context, vector, **where: vector),
    ):
        yield


# -- vectors that no task should make --------------------------------------------------------------------------------------


def vectors(setting: Setting) -> Finding:
    """The noisy sum of counts and scores, with rows that are far too long, broken, or empty."""
    found, rng = Finding(), np.random.default_rng(setting.seed)
    rows = rng.normal(size=(12, 40))
    rows[0] *= 1e12
    rows[1] = np.nan
    rows[2, 3] = np.inf
    rows[3] = 0
    rows[4] = np.full(40, 1e200)  # finite, and its square is not
    worst = 0.0
    for bound in (1.0, 0.01):
        whole = noisy_sum(rows, bound=bound, noise_multiplier=0.0, noise=Silence())
        found.require(bool(np.isfinite(whole).all()), "a broken vector makes the noisy sum infinite or undefined")
        for left in range(len(rows)):
            less = noisy_sum(np.delete(rows, left, axis=0), bound=bound, noise_multiplier=0.0, noise=Silence())
            with np.errstate(over="ignore"):
                moved = float(np.linalg.norm(whole - less)) / bound
            worst = max(worst, moved)
            found.require(moved <= 1 + CLOSE, f"without row {left} the noisy sum lies {moved:.3g} bounds away")
    figures: Mapping[str, Figure] = {"furthest": worst, "patients": len(rows)}
    found.figures = dict(figures)
    return found


CHECKS = (
    Check(
        "neighbours: clipped sum",
        "One patient moves the clipped sum by the bound at most: both engines, any patient, broken ones too.",
        "certain",
        sums,
        reads="Largest distance of the sums with and without one patient, over the bound: 1 is what the noise was made for.",
    ),
    Check(
        "neighbours: whole answers",
        "One patient moves a hospital's answer, before noise, by no more than the bound that its noise was made for.",
        "certain",
        answers,
        reads="Largest distance of the answers with and without one patient, over the bound: 1 is what the noise was made for.",
    ),
    Check(
        "neighbours: vectors",
        "Whatever vector a patient brings, the noisy sum of counts and scores moves by its bound at most.",
        "certain",
        vectors,
    ),
)
