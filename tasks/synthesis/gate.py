"""The gate: what drawn scans must pass before anybody uses them, and before they leave the place where they were drawn.

Five questions, each answered yes, no, or that there are too few patients to tell, in figures and one sentence: do they look
like real ones, are they no nearer to those learned from, does the generator keep these to itself, is every group there, and
does who learns from them know what who learned from real ones knows. A gate with a shut eye is no gate: where it can't be told
whether a patient is given away, nothing passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.radiomics.intervals import Z
from tasks.synthesis.distances import Frechet, Nearest, frechet_with_null, nearest
from tasks.synthesis.measures import Counts, Membership, Subgroup, Utility, membership, subgroups, utility
from tasks.synthesis.seen import Floats, Seen

FEWEST = 20
"""Patients on each side, at least. In trials with 20 features, a shift of half a deviation in each was found among 20 real
patients in 12 of 12, among 10 in 9 of 12."""

UNLIKELY = 0.05
"""A distance that so few of the real halves reach is no chance: the usual convention."""

MOST_COPIES = 0.2
"""Share of the drawn patients whom the test of neighbours must be able to rule out as copies. A choice: to rule out one in ten
takes four times the patients."""

MOST_AUC = 0.6
"""What the attack's interval must stay under. A choice: at 0.6 an attacker who sees one member and one other picks the member 6
times in 10, and to rule that out takes about 65 patients on each side."""

LEAST_OF_WANTED = 0.5
"""A value that fewer than this share of the wanted patients have is missing: who learns from the set hardly sees it."""

MOST_DICE_LOST = 0.05
"""What learning from drawn scans alone may cost on real patients. A choice: less is within what a seed changes in trials of a
few hundred steps."""

Scores = tuple[Floats, Floats]
"""One number for each training patient, and one for each held back."""


@dataclass(frozen=True)
class Finding:
    """One question: its figures, None if they weren't taken; whether it passed, None if that can't be told; and in words."""

    question: str
    figures: Frechet | Nearest | Membership | Utility | tuple[Subgroup, ...] | None
    passed: bool | None
    words: str


@dataclass(frozen=True)
class Verdict:
    """The five findings, of which the two on `privacy` must have passed and none may have failed."""

    realism: Finding
    neighbours: Finding
    membership: Finding
    subgroups: Finding
    utility: Finding

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them, in the order of the questions."""
        return self.realism, self.neighbours, self.membership, self.subgroups, self.utility

    @property
    def passed(self) -> bool:
        """Whether the scans may be used and leave."""
        privacy = self.neighbours.passed and self.membership.passed
        return privacy is True and all(finding.passed is not False for finding in self.findings)


def gate(
    training: Sequence[Seen],
    held_out: Sequence[Seen],
    drawn: Sequence[Seen],
    *,
    scores: Scores,
    start_scores: Scores | None,
    wanted: Counts,
    made: Counts,
    dice: Scores | None = None,
    seed: int = 0,
) -> Verdict:
    """All questions asked of `drawn`, with patients who were trained on and patients who were held back at random.

    `scores` are any score of the generator, such as `explained`, and `start_scores` those of the model it started from; `dice`
    holds, for each real test patient, that of who learned from drawn and of who learned from real scans.
    """
    return Verdict(
        realism(held_out, drawn, seed=seed),
        neighbours(training, held_out, drawn, seed=seed),
        attacked(scores, start_scores, seed=seed),
        complete(wanted, made),
        useful(dice, seed=seed),
    )


def realism(held_out: Sequence[Seen], drawn: Sequence[Seen], *, seed: int = 0) -> Finding:
    """Whether drawn patients are as near to real ones as these are to each other."""
    question = "Do drawn scans look like real ones?"
    if few := _too_few(("held back", len(held_out), FEWEST), ("drawn", len(drawn), FEWEST // 2)):
        return Finding(question, None, None, few)
    found = frechet_with_null(*(np.stack([one.features for one in rows]) for rows in (held_out, drawn)), seed=seed)
    passed = found.p >= UNLIKELY
    words = (
        f"Sets of {found.patients} drawn and real patients are {found.distance:.3g} apart, halves of the real ones "
        f"{found.null_median:.3g} ({found.null_95:.3g} at the 95th percentile, p = {found.p:.2g}): "
        + ("no difference was found." if passed else "they differ.")
    )
    return Finding(question, found, passed, words)


def neighbours(training: Sequence[Seen], held_out: Sequence[Seen], drawn: Sequence[Seen], *, seed: int = 0) -> Finding:
    """Whether drawn patients are nearer to those learned from than to others, which copies would be."""
    question = "Are drawn patients no nearer to those learned from than to others?"
    sides = (("trained on", len(training), FEWEST), ("held back", len(held_out), FEWEST), ("drawn", len(drawn), FEWEST))
    if few := _too_few(*sides):
        return Finding(question, None, None, few)
    found = nearest(training, held_out, drawn, seed=seed)
    told = (
        f"{found.nearer} of {found.drawn} drawn patients ({found.share:.2f}, {found.low:.2f} to {found.high:.2f}) are nearer "
        f"to {found.patients} of {found.of_training} trained on than to {found.patients} held back; between halves that nobody "
        f"trained on {found.control:.2f}, {found.control_low:.2f} to {found.control_high:.2f}: "
    )
    if found.low > 0.5 and found.share > found.control_high:
        return Finding(question, found, False, told + "more than chance.")
    if found.high < 0.5 and found.share < found.control_low:
        return Finding(question, found, None, told + "the two differ by more than training; hold patients back at random.")
    room = MOST_COPIES / 2 * found.patients / found.of_training  # copies of who isn't compared fall on both sides alike
    control = (found.control_high - found.control_low) / 2
    if max(found.high, found.share + control) <= 0.5 + room:
        return Finding(question, found, True, told + "no more than chance.")
    need = f"can't tell; it takes about {math.ceil((Z / room) ** 2)} drawn patients"
    of_real = control**2 - Z**2 / 4 / found.drawn  # what doesn't get narrower by drawing more
    if of_real > (room / 2) ** 2:
        need += f" and {math.ceil(len(held_out) * of_real / (room / 2) ** 2)} held back"
    return Finding(question, found, None, told + need + ".")


def attacked(scores: Scores, start_scores: Scores | None, *, seed: int = 0) -> Finding:
    """Whether the generator's score gives away who was trained on, beyond what the start model's does."""
    question = "Does the generator keep to itself whom it learned from?"
    if few := _too_few(("trained on", len(scores[0]), FEWEST), ("held back", len(scores[1]), FEWEST)):
        return Finding(question, None, None, few)
    found = membership(*scores, start=start_scores, seed=seed)
    told = f"The attack's AUC is {found.auc.words()}"
    if found.start is None or found.excess is None:
        return Finding(question, found, None, told + "; can't tell without the same attack on the start model.")
    told += f", on the start model {found.start.words()}: "
    above = found.auc.low > 0.5
    if above and found.excess.low > 0:
        return Finding(question, found, False, told + "the generator gives them away.")
    if above or not found.start.low <= 0.5 <= found.start.high:
        return Finding(question, found, None, told + "the two differ by more than training; hold patients back at random.")
    if found.auc.high <= MOST_AUC:
        return Finding(question, found, True, told + "it tells no more than chance.")
    need = math.ceil(4 * Z**2 / 6 / (MOST_AUC - 0.5) ** 2)  # near 0.5 the variance is 1 / (6 n), and half the room is left
    return Finding(question, found, None, told + f"can't tell; it takes about {need} patients on each side.")


def complete(wanted: Counts, made: Counts) -> Finding:
    """Whether of every value of every fact about as many patients were made as were wanted."""
    question = "Is every group of patients there?"
    found = subgroups(wanted, made)
    short = [row for row in found if row.made < LEAST_OF_WANTED * row.wanted]
    if short:
        named = ", ".join(f"{row.fact} {row.value} ({row.made} of {row.wanted})" for row in short)
        return Finding(question, found, False, f"Less than half of what was wanted: {named}.")
    patients = max((sum(values.values()) for values in wanted.values()), default=0)
    if few := _too_few(("wanted", patients, FEWEST)):
        return Finding(question, found, None, few)
    return Finding(question, found, True, f"Of each of {len(found)} values at least half of what was wanted was made.")


def useful(dice: Scores | None, *, seed: int = 0) -> Finding:
    """Whether who learned from drawn scans does as well on real patients as who learned from real ones."""
    question = "Does who learns from drawn scans do well on real patients?"
    if dice is None:
        return Finding(question, None, None, "It wasn't measured.")
    if few := _too_few(("tested on", len(dice[0]), FEWEST)):
        return Finding(question, None, None, few)
    found = utility(*dice, seed=seed)
    told = (
        f"On {found.patients} real patients Dice is {found.drawn:.3f} after learning from drawn scans and {found.real:.3f} "
        f"from real ones, a difference of {found.difference.words('+.3f')}: "
    )
    if found.difference.high < -MOST_DICE_LOST:
        return Finding(question, found, False, told + f"more than {MOST_DICE_LOST} is lost.")
    if found.difference.low >= -MOST_DICE_LOST:
        return Finding(question, found, True, told + f"no more than {MOST_DICE_LOST} is lost.")
    need = max(math.ceil((2 * Z * found.deviation / MOST_DICE_LOST) ** 2), found.patients + 1)
    return Finding(question, found, None, told + f"can't tell; it takes about {need} patients to test on.")


def _too_few(*sides: tuple[str, int, int]) -> str:
    lacking = [f"{count} patients were {what}, and it takes {least}" for what, count, least in sides if count < least]
    return f"Can't tell: {'; '.join(lacking)}." if lacking else ""
