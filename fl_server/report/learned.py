"""The first page: what was learned, in one paragraph and one picture, and what kind of figures these are."""

from __future__ import annotations

import io
import json
from pathlib import Path

import contourpy
import numpy as np
import numpy.typing as npt
from PIL import Image

from fl_server.report import charts
from fl_server.report.document import Block, Figure, Section, Text
from fl_server.report.drawing import Drawing
from fl_server.report.findings import SITE, Findings
from fl_server.report.statistics import FEWEST, Estimate, mean
from fl_server.report.words import count, interval, listed, number, structure
from tasks.case import UNKNOWN

DICE = "Dice measures how well two outlines agree: 1 where they are the same, 0 where they do not touch."
VIEW_MM = 130.0


def learned(findings: Findings) -> Section:
    """The section."""
    blocks: list[Block] = []
    if findings.rehearsal:
        blocks.append(Text(_rehearsed(findings), "warning"))
    if findings.stale:
        blocks.append(Text("clinical.json in this folder belongs to another study and was not used.", "warning"))
    blocks.append(Text(" ".join(_sentences(findings)), "lead"))
    blocks.append(_picture(findings))
    return Section("What was learned", tuple(blocks))


def _rehearsed(findings: Findings) -> str:
    """What the figures of a rehearsal are worth."""
    generated = findings.measured.generated if findings.measured else False
    text = "This is a rehearsal: the hospitals are simulated on one computer"
    text += ", and the patients do not exist. " if generated else ". "
    if findings.small:
        tested = count(findings.tested, "test patient")
        rounds, seeds = count(len(findings.record.rounds), "round"), count(findings.seeds, "training run")
        text += f"Its figures ({tested}, {rounds}, {seeds}) show that the software works; "
        return f"{text}they are no evidence of anything else."
    return f"{text}Its figures say how the method does on such patients, not how a model would do in a clinic."


def _sentences(findings: Findings) -> list[str]:
    record = findings.record
    asked = count(len(findings.hospitals), "hospital")
    if not any(site.answer == "used" for entry in record.rounds for site in entry.sites.values()):
        return [f"Nothing was learned: {asked} were asked to take part, and no answer was used."]
    if record.counts:
        return [f"{asked} counted their training patients together; no model was trained, and no image left a hospital."]
    if findings.task == "reference_values":
        spread = "how measures of the heart are spread by age and sex"
        return [f"{asked} counted together {spread}; no model was trained, and no image left a hospital."]
    if findings.task == "intensity_scale":
        return [f"{asked} counted together how bright their images are; no model was trained, and no image left a hospital."]
    run = len(record.rounds)
    rounds = count(run, "round") if run == findings.planned_rounds else f"{run} of {findings.planned_rounds} planned rounds"
    what = listed([f"the {structure(name).lower()}" for name in findings.structures])
    model = f"one model that outlines {what} in an image" if what else "one model"
    text = [f"{asked} trained {model} together over {rounds}; no image left a hospital."]
    if still := record.unmoved:
        text.append(f"{count(len(still), 'round')} of these changed nothing, because no answer was used.")
    if record.selected_round is not None:
        noisy = ", the latest that the noise doesn't tell from the best" if findings.private else ""
        text.append(f"Scores between the rounds chose the model of round {record.selected_round}{noisy}.")
    if record.stopped_early:
        text.append(f"It was ended before its last round: {record.stopped_early}.")
    return text + (_measured(findings) or _classified(findings) or _summed(findings))


def _measured(findings: Findings) -> list[str]:
    tested = findings.of(SITE)
    found = {name: mean(findings.dice(tested, name)) for name in findings.structures}
    parts = [f"{number(e.value)} for the {structure(name).lower()}{_bracket(e)}" for name, e in found.items() if e]
    if not parts:
        return []
    told = f"On {count(len(tested), 'patient')} of these hospitals whom no training had seen, its outlines agreed with the "
    text = [f"{told}reader's with a mean Dice of {listed(parts)}.", DICE]
    elsewhere = findings.of("held_out")
    if away := mean(findings.dice(elsewhere)):
        names = listed(sorted({patient.hospital for patient in elsewhere}))
        said = f"{number(away.value)}{_bracket(away, of=len(elsewhere))}"
        text.append(f"At {names}, which took no part in the training, it was {said} on average.")
    return text


def _classified(findings: Findings) -> list[str]:
    found = findings.measured.classifier if findings.measured else None
    if found is None or found.auc.value is None:
        return []
    low, high = found.auc.low, found.auc.high
    ci = f" (95% interval {number(low)} to {number(high)})" if low is not None and high is not None else ""
    return [
        f"Its answers put a positive before a negative case with a probability of {number(found.auc.value)}{ci}: the area "
        "under the ROC curve, 0.5 by guessing and 1 without an error."
    ]


def _summed(findings: Findings) -> list[str]:
    evaluation = findings.record.evaluation
    if evaluation and "dice" in evaluation.scores:
        value = number(evaluation.scores["dice"])
        return [f"By the hospitals' own word, as one noisy sum over patients held back, its mean Dice is {value}.", DICE]
    if evaluation and evaluation.scores:
        name, score = next(iter(evaluation.scores.items()))
        return [f"By the hospitals' own word, as one noisy sum over patients held back, its {name} is {number(score)}."]
    return ["How good it is was not measured: nothing of the privacy promise was set aside for scores, or nobody answered."]


def _bracket(estimate: Estimate, *, of: int = FEWEST) -> str:
    """The interval, unless it would be of too few patients to mean anything, as in the tables."""
    return f" (95% interval {interval(estimate)})" if of >= FEWEST and interval(estimate) else ""


# -- the picture ------------------------------------------------------------------------------------------------------


def _picture(findings: Findings) -> Block:
    """Patients with both outlines where somebody may look at them; else who was there in which round."""
    found = (_view(findings.folder / "overlays" / f"{rank}.npz", rank) for rank in ("best", "median", "worst"))
    views = [view for view in found if view]
    if views:
        side, gap = 156.0, 11.0
        drawn = Drawing(charts.FULL, side + 44)
        for i, (title, note, grey, lines) in enumerate(views):
            x = i * (side + gap)
            drawn.word(x, 10, title, size=9, bold=True)
            drawn.picture(x, 16, side, side, grey)
            for colour, points in lines:
                drawn.line(*[(x + side * px, 16 + side * py) for px, py in points], colour=colour, width=1.3)
            drawn.word(x, side + 27, note, size=7.5, colour="muted")
        drawn.line((0, side + 39), (14, side + 39), colour="reader", width=2)
        drawn.word(18, side + 42, "reader", size=8, colour="muted")
        drawn.line((64, side + 39), (78, side + 39), colour="model", width=2)
        drawn.word(82, side + 42, "model", size=8, colour="muted")
        caption = "The test patients with the highest, the median and the lowest mean Dice, one slice of each."
        return Figure(drawn, f"{caption} Outlines of the reader and of the model.", caption)
    if findings.record.rounds:
        caption = "Who answered in each round. Pictures of patients stay in the hospitals."
        return Figure(charts.rounds(findings.answers()), answers_in_words(findings), caption)
    return Text("There is no picture: no round was run.", "missing")


def answers_in_words(findings: Findings) -> str:
    """How many answers of each kind every hospital gave."""
    told = []
    for name, row in findings.answers().items():
        told.append(f"{name}: {listed([f'{row.count(answer)} {answer}' for answer in dict.fromkeys(row)]) or 'no round'}")
    return "Answers by hospital. " + "; ".join(told) + "."


Lines = list[tuple[str, list[tuple[float, float]]]]


def _view(path: Path, rank: str) -> tuple[str, str, bytes, Lines] | None:
    """Title, note, PNG of a square window and outlines in fractions of it; None without the file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            image, mask, predicted = (np.asarray(arrays[name]) for name in ("image", "mask", "prediction"))
            spacing = [float(step) for step in arrays["spacing_mm"]]
            hospital, series = str(arrays["hospital"]), str(arrays["series"])
            dice = [float(v) for v in json.loads(str(arrays["dice"])).values() if v is not None]
    except (OSError, KeyError, ValueError):
        return None
    drawn = (mask > 0) & (mask != UNKNOWN)
    level = int((drawn | (predicted > 0)).reshape(len(mask), -1).sum(1).argmax())
    image, mask, predicted, drawn = image[level], mask[level], predicted[level], drawn[level]
    there = np.argwhere(drawn | (predicted > 0))
    middle = there.mean(0) if len(there) else np.array(mask.shape) / 2
    cut = []
    for axis, step in enumerate(spacing[1:]):
        n = min(mask.shape[axis], max(8, round(VIEW_MM / step)))
        start = int(np.clip(round(float(middle[axis]) - n / 2), 0, mask.shape[axis] - n))
        cut.append(slice(start, start + n))
    window = (cut[0], cut[1])
    grey = image[window].astype(np.float64)
    low, high = np.percentile(grey, [0.5, 99.0])
    pixels = np.round(255 * np.clip((grey - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    known = np.where(drawn, mask, 0)
    lines = _outlines(known[window], "reader") + _outlines(predicted[window], "model")
    note = f"{hospital}, {series.replace('_', ' ')}, Dice {np.mean(dice):.2f}" if dice else f"{hospital}, {series}"
    return rank.capitalize(), note, buffer.getvalue(), lines


def _outlines(labels: npt.NDArray[np.uint8], colour: str) -> Lines:
    found: Lines = []
    rows, columns = labels.shape
    for value in sorted(set(np.unique(labels).tolist()) - {0}):
        field = np.pad((labels == value).astype(np.float32), 1)
        for line in contourpy.contour_generator(z=field).lines(0.5):
            points = np.asarray(line)
            found.append((colour, [(float(x - 0.5) / columns, float(y - 0.5) / rows) for x, y in points]))
    return found
