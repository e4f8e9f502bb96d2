"""The figures of a reading in words, for the terminal."""

from __future__ import annotations

from simulation.reading.figures import HABERL, Figures, Share, Summary


def told(share: Share) -> str:
    """As `0.55 [0.38-0.71], 22 of 40`."""
    if share.value is None:
        return "no answer"
    return f"{share.value:.2f} [{share.low:.2f}-{share.high:.2f}], {share.right} of {share.of}"


def text(found: Summary) -> str:
    """All of it, a line per figure."""
    lines = [f"{found.scans} scans, half of them real; {len(found.finished)} of {len(found.readers)} readers have finished"]
    for reader, figures in found.readers.items():
        unfinished = "" if reader in found.finished else f" (not finished: {figures.accuracy.of} of {found.scans})"
        lines += ["", f"{reader}{unfinished}", *_lines(figures)]
    if found.all_answers is not None and len(found.finished) > 1:
        lines += ["", f"all {len(found.finished)} who have finished", *_lines(found.all_answers)]
        lines.append(f"  {agreement(found.kappa)}")
    lines += ["", anchor()]
    return "\n".join(lines)


def _lines(figures: Figures) -> list[str]:
    lines = [
        f"  accuracy     {told(figures.accuracy)}",
        f"  sensitivity  {told(figures.sensitivity)} synthetic scans called synthetic",
        f"  specificity  {told(figures.specificity)} real scans called real",
    ]
    return lines + [f"  certainty {level}  {told(one)}" for level, one in figures.by_certainty.items() if one.of]


def agreement(kappa: float | None) -> str:
    """Fleiss' kappa, or why there is none."""
    if kappa is None:
        return "Fleiss' kappa has no value: everybody called every scan the same"
    return f"Fleiss' kappa {kappa:.2f} (1 all agree, 0 as by chance)"


def anchor() -> str:
    """What others found."""
    one = HABERL
    return (
        f"To compare: {one.source}: accuracy {one.accuracy:.2f} [{one.low:.2f}-{one.high:.2f}], kappa {one.kappa:.2f}. "
        "0.50 is guessing."
    )
