"""The sentences of a radiomics report: what was found, what it cost in privacy, and what it does not show.

Written for a radiologist who has met an ROC curve, and for a data protection officer who has not. Differences between arms
are told as numbers and never as a claim: their own intervals are not computed.
"""

from __future__ import annotations

import re
from math import isfinite

from fl_server.report.statistics import Estimate
from simulation.report.lenient import mapping
from simulation.report.lenient import number as read
from simulation.report.radiomics_arms import ALONE, PLAIN, PRIVATE, UNET, Arm, Cut
from simulation.report.radiomics_results import Findings
from simulation.report.words import count, epsilon, interval, listed, number, odds

_LOG = re.compile(r"log-sigma-(\d+)(?:[-.](\d+))?-mm(?:-3D)?")
_CLASSES = ("firstorder", "shape2D", "shape", "glcm", "glrlm", "glszm", "gldm", "ngtdm")
_INITIALS = ("Idm", "Idmn", "Id", "Idn", "Imc1", "Imc2")
_CLINICAL = {
    "ef": "Ejection fraction",
    "edv_ml": "End-diastolic volume (ml)",
    "esv_ml": "End-systolic volume (ml)",
    "bmi": "Body mass index",
}


def feature(name: str) -> str:
    """A pyradiomics column as it is said: `log-sigma-2-0-mm-3D_firstorder_90Percentile` is 90th percentile, LoG 2 mm."""
    parts = name.split("_", 2)
    if len(parts) != 3 or parts[1] not in _CLASSES:
        words = _CLINICAL.get(name.lower(), name.replace("_", " "))
        return words[:1].upper() + words[1:]
    image, kind, what = parts
    spoken = what.upper() if what in _INITIALS else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", what).capitalize()
    spoken = re.sub(r"^(\d+)percentile", r"\1th percentile", spoken)
    if kind != "firstorder":
        plain = spoken if spoken.isupper() else spoken.lower()
        spoken = f"Shape: {plain}" if kind.startswith("shape") else f"{kind.upper()} {plain}"
    return spoken if kind.startswith("shape") else f"{spoken}, {_filter(image)}"


def _filter(image: str) -> str:
    if found := _LOG.fullmatch(image):
        part = (found.group(2) or "").rstrip("0")
        return f"LoG {found.group(1)}{f'.{part}' if part else ''} mm"
    return image.replace("wavelet-", "wavelet ")


def shortened(name: str, longest: int = 46) -> str:
    """At most so many characters."""
    return name if len(name) <= longest else name[: longest - 1].rstrip() + "…"


def quantity(value: float) -> str:
    """A column's value: three digits that count, and no more than that of a large one."""
    if not isfinite(value):
        return "missing"
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")


def banner(findings: Findings) -> str:
    """What a small run's figures are, or an empty string."""
    profile = findings.record.profile
    return f"Rehearsal-size figures (profile {profile}); not evidence." if profile not in ("", "standard") else ""


def ranked(auc: float, unit: str) -> str:
    """An AUC as what it counts."""
    return f"ranked a positive {unit} above a negative one in {100 * auc:.0f} of 100 pairs"


def result(findings: Findings) -> list[str]:
    """The result in plain language."""
    arm, record = findings.headline, findings.record
    hospitals = count(len(findings.sites), "hospital")
    if arm is None:
        return [f"No arm brought a result, so there is no classifier to speak of ({hospitals} were asked to take part)."]
    promise = "with a privacy promise to every patient" if arm.epsilon is not None else "without a privacy promise"
    text = f"{hospitals} learned one classifier together, {promise}; no image and no table of features left a hospital. "
    first = arm.auc_certain or arm.auc
    if first:
        where = f", counting only {findings.unit}s of which the reader was certain" if arm.auc_certain else ""
        text += f"On patients on whom it had not been trained it {ranked(first.value, findings.unit)}{where}"
        text += f" (AUC {number(first.value)}{_ci(first)}). "
        if arm.auc_certain and arm.auc:
            text += f"Over all {findings.unit}s the AUC was {number(arm.auc.value)}{_ci(arm.auc)}. "
    text += "An AUC of 1 is a perfect ranking, 0.5 is the toss of a coin."
    lines = [text]
    compared = [told for other, said in _OTHERS if (told := _compared(findings, arm, other, said))]
    if compared:
        where = f" over the certain {findings.unit}s" if arm.auc_certain else ""
        lines.append(f"For comparison, the AUC{where} was {listed(compared)}. No difference was tested, so none is claimed.")
    alone = findings.arms.get(ALONE)
    if alone and arm.hospital_mean and alone.hospital_mean:
        lines.append(
            f"These rank patients of different hospitals against each other, too. The mean of the hospitals' own AUCs is "
            f"{number(arm.hospital_mean)} for the federation and {number(alone.hospital_mean)} for each hospital alone."
        )
    if record.verdict == "failed":
        lines.append("The study did not reach its end; the figures are those of what had been done by then.")
    return lines


_OTHERS = (
    (PLAIN, "for the same forest without privacy"),
    (UNET, "with the U-Net's masks in place of the expert's"),
    ("pooled", "for all data in one place"),
    (ALONE, "for each hospital alone, its patients judged by its own model"),
)


def _compared(findings: Findings, arm: Arm, key: str, said: str) -> str:
    other = findings.pooled if key == "pooled" else findings.arms.get(key)
    if other is None or other is arm or (key in (PLAIN, UNET) and arm.key != PRIVATE):
        return ""
    estimate = other.auc_certain if arm.auc_certain else other.auc
    bounds = f" ({interval(estimate)})" if interval(estimate) else ""
    return f"{number(estimate.value)}{bounds} {said}" if estimate else ""


def cut(value: Cut) -> str:
    """`0.71 / 0.80`, or a dash."""
    return f"{number(value.sensitivity, 2)} / {number(value.specificity, 2)}" if value else "–"


def threshold(value: Cut) -> str:
    """How a threshold was chosen."""
    if isfinite(value.wanted):
        return f"threshold for a sensitivity of {number(value.wanted, 2)}"
    return "threshold for a set sensitivity"


def learner(name: str) -> str:
    """What learns, in words."""
    return {"forest": "federated forest", "logistic": "logistic regression", "mlp": "neural network"}.get(name, name)


def _ci(estimate: Estimate) -> str:
    return f", 95% CI {interval(estimate)}" if interval(estimate) else ""


def privacy(findings: Findings) -> list[str]:
    """What was promised to a patient, and what left the hospitals."""
    if not findings.private:
        return [
            "This study ran without a privacy promise: what the hospitals sent was neither bounded per patient nor noised. "
            "Do not run a study like this one on patients who were promised privacy."
        ]
    delta = float(findings.record.study.get("privacy", {}).get("delta") or 0)
    worst = findings.highest_epsilon
    meaning = (
        "The promise is to the patient and not to the segment: it compares what a hospital sends with what it would have sent "
        "had one patient, with all images, segments and clinical values, been added or removed. All that a patient contributes "
        "was cut to one maximal length, and random noise of matching size was added before anything left the house."
    )
    if worst is None:
        return [meaning, "No hospital's ledger says that any of it was spent."]
    size = (
        "ε (epsilon) bounds what can be told about one patient: whoever sees everything a hospital sent can raise the odds "
        f"they would give to “this patient took part” by at most a factor of {odds(worst)} (e to the power of "
        f"{epsilon(worst)}, the highest ε on any hospital's ledger). δ (delta) = {delta:g} is the probability with which this "
        "bound may fail. ε up to 1 is usually read as a strong guarantee and up to 10 as a reasonable one (Ponomareva et al., "
        "Journal of Artificial Intelligence Research 2023)."
    )
    left = (
        "What left a hospital: sums over its patients with noise in them, of counts in the leaves of trees that were drawn "
        "before anybody looked at a patient, or of bounded gradients; and noisy histograms of predictions, from which a "
        "federation draws its curves. No image, mask, feature value, single prediction or exact number of patients is part "
        "of it."
    )
    folds = max((len(arm.fold_aucs) or len(arm.folds) for arm in findings.arms.values()), default=0)
    text = [meaning, size, left]
    if folds > 1:
        text.append(
            f"Cross-validation in this simulation trained each classifier {folds} times, and ε is that of one. The other "
            "times cost nothing because nothing of them was released; at real hospitals every fold that leaves the house "
            "would be paid for."
        )
    return text


def limits(findings: Findings) -> list[str]:
    """What this report does not show."""
    unit, data = findings.unit, findings.data
    federated = "; what would is in the section on real federations" if findings.federated else ""
    lines = [
        "The hospitals of this study are simulated on one computer: their patients were generated by konsil or dealt out "
        "from a public data set. Generated data are no evidence about patients. They show that the method works and what "
        "it costs.",
        "Exact curves, single predictions, bull's eyes and the feature map are in this report because the simulation can "
        f"see them. At a real hospital they would not leave the house{federated}.",
        f"Folds are divided by patient, so that no {unit} is judged by a classifier that saw the same patient. Intervals "
        "describe the sampling of patients at these hospitals, and say nothing about a further hospital. With privacy, a "
        "figure is that of one draw of the noise; another draw gives another.",
        "AUC, calibration and Brier score measure a ranking and its probabilities, not benefit to a patient. No diagnosis "
        "was made or tested. The classifiers are for research and are not a medical device.",
    ]
    if len(findings.arms) > 1:
        lines.append("Several arms are compared. No difference was tested, and nothing is corrected for their number.")
    if any(arm.youden or arm.at_sensitivity for arm in findings.arms.values()):
        lines.append(
            "Thresholds were chosen on the predictions they are judged on; sensitivity and specificity flatter somewhat."
        )
    if data.get("importance") or data.get("shapley"):
        lines.append(
            "Importance and Shapley values describe the classifier and not the disease. Columns that tell the same share "
            "what is due to either, and neither says what causes what."
        )
    promised = [arm for arm in findings.arms.values() if arm.epsilon is not None]
    if findings.private and len(promised) < len(findings.arms):
        lines.append("Only arms with an ε promise their patients anything; the others were trained without noise.")
    if any(arm.masks == "expert" for arm in findings.arms.values()) and UNET not in findings.arms:
        lines.append("Features come from an expert's masks; with a U-Net's masks the result may be another.")
    if findings.private:
        lines.append(
            "Privacy holds against whoever sees what left a hospital, not against its own staff. In a simulation the noise may "
            "be seeded so that a run can be repeated; a hospital's own is not."
        )
    return lines


def masks(findings: Findings) -> str:
    """Experts' masks against the model's on the same rows; empty where only one kind was tried."""
    told = mapping(findings.data.get("masks"))
    expert, unet, common = (read(told.get(key)) for key in ("auc_expert_certain", "auc_unet_certain", "rows_common"))
    if not isfinite(expert + unet + common):
        return ""
    ours, theirs = (f"{read(told.get(key)):.0f}" for key in ("rows_unet", "rows_expert"))
    unit = f"{findings.unit}s"
    return (
        f"{theirs} {unit} have an expert's mask, {ours} the U-Net's. On the {common:.0f} that have both, the AUC over certain "
        f"{unit} is {number(expert)} with the expert's masks and {number(unet)} with the U-Net's."
    )


def explained(findings: Findings) -> str:
    """The arm whose predictions are shown one by one."""
    arm = findings.arms.get(str(findings.data.get("explained_arm")))
    return arm.label if arm else ""


def asked(findings: Findings) -> str:
    """What the classifiers were to learn from, and under which promise."""
    radiomic, clinical = (len(findings.columns(kind)) for kind in ("radiomic", "clinical"))
    parts = [count(n, f"{kind} column") for n, kind in ((radiomic, "radiomic"), (clinical, "clinical")) if n]
    text = f"For each {findings.unit}, one row of a table"
    text += (
        f" ({' and '.join(parts)}), and the question whether it is positive. " if parts else ", and whether it is positive. "
    )
    label = mapping(mapping(findings.record.study.get("task")).get("label"))
    if endpoint := str(label.get("endpoint") or ""):
        where = " (NN: the segment)" if endpoint.endswith("NN") else ""
        text += f"Positive means “{endpoint}”{where} of {quantity(read(label.get('positive_from', 1)))} or more. "
    if any(arm.auc_certain for arm in findings.arms.values()):
        text += f"Of a {findings.unit} the reader was certain from a certainty of {findings.certain_from:g} on. "
    if findings.private:
        settings = findings.record.study.get("privacy", {})
        whole = mapping(findings.data.get("promise")).get("whole") or settings.get("epsilon")
        if whole:
            text += f"Promised to every patient: ε at most {epsilon(read(whole))} over everything that is asked."
    else:
        text += "No privacy was promised."
    return text.strip()
