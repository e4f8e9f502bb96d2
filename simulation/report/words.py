"""The report's sentences: what was reached, what it cost in privacy, and what it does not show.

Written for a radiologist or a data protection officer who has met neither Dice nor epsilon. A sentence claims that one arm
is better than another only where `statistics` says that this was shown.
"""

from __future__ import annotations

from math import ceil, exp, log

from fl_server.record import Record
from fl_server.report.statistics import SEEDS_FOR_A_CLAIM, Estimate, difference, mean
from fl_server.report.words import VERDICTS as VERDICTS
from fl_server.report.words import count as count
from fl_server.report.words import epsilon as epsilon
from fl_server.report.words import interval as interval
from fl_server.report.words import listed as listed
from fl_server.report.words import number as number
from fl_server.report.words import structure as structure
from simulation.report.results import ALONE_ELSEWHERE, PLAIN, PRIVATE, Run

LEAST_PATIENTS, LEAST_ROUNDS = 30, 10
"""Patients of a hospital and rounds below which a run shows that the software works, and nothing else. The five scanners of a
study have 40 to 60 patients and train for 24 rounds."""
MOST_REASONS = 5
"""Reasons for a verdict that the screen shows."""


def faults(run: Run) -> list[str]:
    """What went wrong on purpose: where, in which rounds, and what that is; in the order of the plan."""
    told = []
    for fault in run.record.faults:
        first, last = fault["rounds"]
        when = f"round {first}" if first == last else f"rounds {first} to {last}"
        where = fault.get("site") or ", ".join(fault.get("sites", ())) or "coordinator"
        told.append(f"{when}, {where}: {str(fault['fault']).replace('_', ' ')}. {fault.get('words', '')}".strip())
    return told


def rehearsal_banner(run: Run) -> str:
    """What a small run's figures are, or an empty string for a study of full size with at least three seeds.

    The size is that of the run itself: a profile's name says nothing of what was changed on the command line.
    """
    seeds, rounds = len(run.seeds), len(run.record.rounds)
    used = [site.cases_used for site in run.record.sites.values() if site.cases_used is not None]
    small = run.record.profile != "standard" or rounds < LEAST_ROUNDS or min(used, default=LEAST_PATIENTS) < LEAST_PATIENTS
    if not small and seeds >= SEEDS_FOR_A_CLAIM:
        return ""
    size = ""
    if used:
        size = count(min(used), "patient") if min(used) == max(used) else f"{min(used)}–{max(used)} patients"
        size += " per hospital, "
    kind = "Rehearsal-size figures" if small else "Too few seeds for a claim"
    return f"{kind}: {size}{count(rounds, 'round')}, {count(seeds, 'seed')}; not evidence."


def result(run: Run) -> list[str]:
    """The result in plain language: what was trained and how well it does, then what it is compared with."""
    record, arm = run.record, run.headline
    hospitals = count(len(record.sites), "hospital")
    if not record.rounds:
        return [f"No round was run, so there is no model to speak of ({hospitals} were asked to take part)."]
    planned = int(record.study.get("rounds", len(record.rounds)))
    of = f"{planned}" if len(record.rounds) == planned else f"{len(record.rounds)} of {planned}"
    promise = "with a privacy promise to every patient" if arm == PRIVATE else "without a privacy promise"
    text = [f"{hospitals} trained one model together over {of} rounds, {promise}; no image left a hospital."]
    if still := record.unmoved:
        text.append(f"{count(len(still), 'round')} of these changed nothing, because no answer was used.")
    if record.selected_round is not None:
        noisy = ", the latest that the noise doesn't tell from the best" if arm == PRIVATE else ""
        text.append(f"Scores between the rounds chose the model of round {record.selected_round}{noisy}.")
    if record.stopped_early:
        text.append(f"It was ended before its last round: {record.stopped_early}.")
    if record.study.get("training", {}).get("personal"):
        text.append(
            "Each hospital's patients are scored with the parameters that stay there (training.personal); at other hospitals "
            "these are as they were at the start."
        )
    tested = {(s.hospital, s.patient) for s in run.scores if s.arm == arm and s.role == "site"}
    found = {name: mean(run.values(f"dice/{name}", arm, "site")) for name in run.structures}
    parts = [f"{number(e.value)} for the {structure(name).lower()}{_bracket(e)}" for name, e in found.items() if e]
    if not parts:
        return [*text, "No test patient was scored with this model."]
    told = listed(parts)
    text.append(
        f"On {count(len(tested), 'patient')} of these hospitals whom no training had seen, its outlines matched the reader's"
    )
    text[-1] += f" with a mean Dice of {told}. Dice is 1 where two outlines are the same and 0 where they do not touch."
    elsewhere = mean(run.dice(arm, "held_out"))
    if elsewhere:
        names = " and ".join(run.hospitals("held_out"))
        text.append(
            f"At {names}, which took no part in the training, it was {number(elsewhere.value)}, averaged over the structures."
        )
    real = {name: mean(run.values(f"dice/{name}", arm, "real")) for name in run.structures}
    parts = [f"{number(e.value)} for the {structure(name).lower()}{_bracket(e)}" for name, e in real.items() if e]
    if parts:
        patients = count(run.patients("real"), "real patient")
        text.append(f"On {patients} from {' and '.join(run.hospitals('real'))} it was {listed(parts)}.")
        if missing := [structure(name).lower() for name, e in real.items() if not e]:
            text[-1] += f" No reader's outline of the {' and the '.join(missing)} was there to compare with."
    claims = []
    if arm == PRIVATE:
        gap = difference(run.dice(PRIVATE, "site"), run.dice(PLAIN, "site"))
        claims.append(_claim(gap, "the same federation without privacy", "on the hospitals that trained"))
        alone = difference(run.dice(PRIVATE, "held_out"), run.dice(ALONE_ELSEWHERE, "held_out"))
        claims.append(_claim(alone, "the average hospital training alone", "at the hospital that took no part"))
    return [" ".join(text), *([" ".join(filter(None, claims))] if any(claims) else [])]


def opening(record: Record) -> list[str]:
    """The verdict and the first reasons for it: lines for the screen."""
    more = len(record.reasons) - MOST_REASONS
    told = [VERDICTS[record.verdict], *(f"  {reason}" for reason in record.reasons[:MOST_REASONS])]
    return told + ([f"  and {more} more, in the report"] if more > 0 else [])


def chosen(record: Record) -> list[str]:
    """Whether the study ended early, and which round's model is its result: lines for the screen."""
    early = [f"  ended early, {record.stopped_early}"] if record.stopped_early else []
    return early + ([f"  chosen: the model of round {record.selected_round}"] if record.selected_round is not None else [])


def _bracket(estimate: Estimate) -> str:
    return f" (95% CI {interval(estimate)})" if interval(estimate) else ""


def _claim(gap: Estimate, other: str, where: str) -> str:
    if not gap:
        return ""
    if gap.above_zero or gap.below_zero:
        size = f"{number(abs(gap.value))} {'higher' if gap.value > 0 else 'lower'}"
        shown = f"95% CI {interval(gap, sign=True)}, {count(gap.seeds, 'seed')}"
        return f"Compared with {other}, its mean Dice was {size} {where} ({shown})."
    return f"A difference from {other} is not shown: {number(gap.value, sign=True)} {where} ({why_not(gap)})."


def why_not(gap: Estimate) -> str:
    """Why a difference is not shown."""
    if gap.seeds < SEEDS_FOR_A_CLAIM:
        return f"{count(gap.seeds, 'seed')}; {SEEDS_FOR_A_CLAIM} are needed"
    return f"95% CI {interval(gap, sign=True)} holds 0" if interval(gap) else "too few patients for an interval"


def comparison(gap: Estimate) -> str:
    """One word on a difference: higher, lower or not shown."""
    if gap.above_zero or gap.below_zero:
        return "higher" if gap.above_zero else "lower"
    return "not shown"


def privacy(run: Run) -> list[str]:
    """What was promised to a patient and what left the hospitals, as paragraphs."""
    settings = run.record.study.get("privacy", {})
    if settings.get("kind") == "none":
        return [
            "This study ran without a privacy promise: what the hospitals sent was neither bounded per patient nor noised. "
            "Images stayed in the house, but a model update computed without noise can reveal images it was computed from. "
            "Do not run a study like this one on patients who were promised privacy."
        ]
    spent = [value for value in map(run.epsilon, run.sites) if value is not None]
    delta = float(settings.get("delta", 0))
    worst = max(spent, default=None)
    left = (
        "What left a hospital: per training step, one sum over its patients of bounded contributions, with random noise "
        "added before it left. Each patient's contribution (all slices, all images) was cut to the same maximal length, "
        "so that no one can stand out. No image, outline, single patient's score, exact patient count or free text is "
        "part of it. The hospital's own ledger wrote the cost down before each release."
    )
    if worst is None:
        return ["No privacy was spent: no hospital released anything."]
    meaning = (
        f"The unit is the patient, not the image: the promise holds for everything a patient contributed. ε (epsilon) "
        f"bounds what a release can tell about one patient: whoever sees everything a hospital sent can raise the odds "
        f"they would give to “this patient took part” by at most a factor of {odds(worst)} (e to the power of "
        f"{epsilon(worst)}, the highest ε of any hospital). δ (delta) = {delta:g} is the probability with which this "
        "bound may fail. With ε = 0 nothing could be told; smaller is better."
    )
    strength = (
        "By the usual reading, ε up to 1 is a strong guarantee, up to 10 a reasonable one for a trained model, and "
        "above that a weak one (Ponomareva et al., Journal of Artificial Intelligence Research 2023). It is a worst "
        "case over all attackers and patients; attacks that are known in practice reach much less."
    )
    text = [meaning, strength, left]
    seeds = len(run.seeds)
    if seeds > 1:
        text.append(
            f"This is the price of one run. The study was rehearsed with {count(seeds, 'seed')}, on the same patients and each "
            f"with an empty ledger of its own, and one seed's ledger is shown. Had all {seeds} been run in earnest, a patient "
            f"would have paid up to ε = {epsilon(seeds * ceil(worst * 100 - 1e-9) / 100)} at δ = {seeds * delta:g}: "
            f"{seeds} times each (basic composition)."
        )
    return text


def odds(epsilon: float) -> str:
    """The factor by which an epsilon lets odds be raised; beyond a million its power of ten, rounded up."""
    if epsilon > log(1e6):
        return f"10 to the power of {ceil(epsilon / log(10))}"
    return f"{exp(epsilon):,.0f}" if epsilon > 3 else f"{exp(epsilon):.1f}"


SIMULATED = (
    "The hospitals of this study are simulated on one computer: their patients were generated by konsil or dealt "
    "out from a public data set, not recruited. Generated scans are cleaner and more alike than real ones."
)
PROMISED = (
    "Privacy holds against whoever sees what left a hospital. It does not cover a hospital's own staff, and in "
    "a rehearsal the noise may be seeded so that a run can be repeated; a hospital's own noise is not."
)


def visible(what: str) -> str:
    """Why a report has what no real one would."""
    return f"{what} are in this report because the simulation can see them. At a real hospital they would not leave the house."


def limits_of(record: Record, *lines: str) -> list[str]:
    """What a report does not show: that of every rehearsal, and these lines."""
    promised = record.study.get("privacy", {}).get("kind") != "none"
    return [SIMULATED, *lines, *([PROMISED] if promised else [])]


def limits(run: Run) -> list[str]:
    """What this report does not show."""
    lines = [
        SIMULATED,
        visible("Scores by patient, exact counts and picture examples"),
        "Intervals describe sampling of test patients, and of training seeds where there are several. Hospitals were not "
        "sampled: nothing here says how a further hospital would do, beyond the one held out. The interval of a mean is a "
        "bootstrap's and somewhat too narrow with few patients or three seeds; that of a difference also holds Student's t.",
        "Every arm and seed begins with the same starting weights. They were made once, and the luck of making them is in "
        "no interval: another start could move all arms.",
        "Several comparisons are shown and none is corrected for their number.",
        "Dice and distances measure agreement with a reader, not clinical benefit. No diagnosis was made or tested. The "
        "models are for research and are not a medical device.",
    ]
    if run.record.study.get("privacy", {}).get("kind") != "none":
        lines.append(PROMISED)
    if any(arm in {score.arm for score in run.scores} for arm in (PLAIN, "pooled")):
        lines.append(
            "Only the federation with privacy promises its patients anything: every other arm was trained without "
            "noise, and may use its own optimizer settings. All are compared at the same number of training steps."
        )
    tested = {site: {s.patient for s in run.scores if s.role == "site" and s.hospital == site} for site in run.sites}
    untested = [site for site, patients in tested.items() if not patients]
    if untested and run.scores:
        lines.append(
            f"No test patient at {', '.join(untested)}: nothing is shown about the model there, and no mean includes it."
        )
    if any(len(patients) == 1 for patients in tested.values()):
        lines.append(
            "A hospital with a single test patient adds nothing to an interval's width: intervals over it are too narrow."
        )
    if run.start is not None:
        lines.append(
            f"All arms began with {run.start}. What those weights tell of the patients whom they were trained on is covered by "
            "no promise of this study."
        )
    if not run.hospitals("real"):
        lines.append("No separate real hospital was tested: how the model does on clinical scans from elsewhere is not shown.")
    if len(run.seeds) < SEEDS_FOR_A_CLAIM:
        lines.append(
            f"{count(len(run.seeds), 'seed')}: how much of a difference is the luck of one training run can't be told."
        )
    return lines


def real_patients(run: Run) -> str:
    """What the real patients were used for beside being tested on."""
    text = "None of these patients, and no other patient of their hospital, was in any training."
    if run.tuned_on_real:
        text += (
            " They are not wholly new to the software, though: two numbers of the generated patients that the starting model "
            "learned from (how far outside the cavity and how far inside the wall a reader draws) were chosen on two "
            "Sunnybrook patients, SCD0000101 and SCD0000201. Where these are among the patients here, their Dice may flatter."
        )
    return text


def refused(record: Record, role: str) -> list[tuple[str, str, str]]:
    """Who was refused at the door of this role's hospitals: (hospital, pseudonym, reason), from `held_out[role]`."""
    hospitals = record.held_out.get(role, {})
    return [
        (hospital, str(what), str(reason))
        for hospital, entry in hospitals.items()
        if isinstance(entry, dict)
        for what, reason in entry.get("refused", {}).items()
    ]
