"""A picture of a study as plain lines, for a terminal, a pipe or a mail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fl_server.console.picture import ABOUT_SCORES, NOISE, RUNNING, Picture, SitePicture

MOST_REASONS = 12
MOST_SITES = 40


def spoken(seconds: float) -> str:
    """A stretch of time as people say it.

    >>> spoken(7.2), spoken(95), spoken(4000), spoken(200000)
    ('7 s', '2 min', '1 h 7 min', '2 d 8 h')
    """
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} d {minutes % (24 * 60) // 60} h"


def ends(picture: Picture) -> str:
    """What is over when the time that the picture tells is."""
    return "the waiting ends" if picture.state == "enrolling" else "the round ends"


def judged(picture: Picture) -> str:
    """The verdict, and whether it is the last word."""
    if picture.verdict is None:
        return "nothing heard yet"
    return picture.verdict if picture.over else f"{picture.verdict} so far"


def listed(picture: Picture) -> str:
    """One study in one line."""
    rounds = f"{picture.ended_rounds} of {picture.rounds} rounds" if picture.rounds else "no round"
    started = f"started {picture.started[:16].replace('T', ' ')}" if picture.started else "start not known"
    state = picture.state if picture.state in ("over", "stopping", "stopped", "interrupted", "unreadable") else "running"
    verdict = f", {judged(picture)}" if _worth_telling(picture) else ""
    sites = f"{len(picture.sites)} sites" if picture.sites else "sites not known"
    return f"{picture.name}  {picture.study_hash[:12]}  {state}{verdict}, {rounds}, {sites}, {started}"


def _worth_telling(picture: Picture) -> bool:
    """Whether the verdict says more than the state: what was stopped before its last round has failed by that alone."""
    return picture.state != "stopped" or picture.verdict not in (None, "failed")


def told(picture: Picture) -> Iterator[str]:
    """One study in as many lines as it needs."""
    yield f"{picture.name} ({picture.study_hash[:12]}): {picture.said}"
    if picture.state == "unreadable":
        return
    if picture.state not in ("over", "waiting") and _worth_telling(picture):
        yield f"  verdict {judged(picture)}" + (
            "" if picture.rounds == 0 else f", {picture.ended_rounds} of {picture.rounds} rounds"
        )
    times = [f"started {picture.started}"] if picture.started else []
    times += [f"ended {picture.ended}"] if picture.ended else []
    times += [f"about {spoken(picture.left_s)} left"] if picture.left_s is not None and picture.state in RUNNING else []
    times += [f"went on after {picture.interruptions} interruption(s)"] if picture.interruptions else []
    if times:
        yield "  " + ", ".join(times)
    if awaited := picture.awaited:
        some = [f"{name} for {spoken(seconds)}" for name, seconds in list(awaited.items())[:MOST_SITES]]
        more = f", and {len(awaited) - len(some)} more" if len(awaited) > len(some) else ""
        until = f"; {ends(picture)} in {spoken(picture.deadline_s)} at the latest" if picture.deadline_s is not None else ""
        yield f"  awaited: {', '.join(some)}{more}{until}"
    for name, why in list(picture.missing.items())[:MOST_REASONS]:
        yield f"  {name} does not take part: {why}"
    if len(picture.missing) > MOST_REASONS:
        yield f"  and {len(picture.missing) - MOST_REASONS} more (--json has them all)"
    for name, values in picture.scores.items():
        yield f"  {name}: {values[-1][1]:.3f} after round {values[-1][0]}, best {max(value for _, value in values):.3f}"
    for line in scored(picture.final_scores):
        yield f"  {line} on patients that nobody chose by"
    if picture.selected_round is not None:
        noisy = ", the latest that the noise doesn't tell from the best" if picture.promise is not None else ""
        yield f"  chosen: the model of round {picture.selected_round}{noisy}"
    yield from _sites(picture)
    for reason in picture.reasons[:MOST_REASONS]:
        yield f"  {reason}"
    if len(picture.reasons) > MOST_REASONS:
        yield f"  and {len(picture.reasons) - MOST_REASONS} more reasons (--json has them all)"
    for remark in picture.remarks[:MOST_REASONS]:
        yield f"  {remark}"
    if len(picture.remarks) > MOST_REASONS:
        yield f"  and {len(picture.remarks) - MOST_REASONS} more remarks (--json has them all)"


def scored(scores: Mapping[str, float]) -> Iterator[str]:
    """Scores in words, each with what the noise on the sum may have added to it, one standard deviation.

    >>> list(scored({"dice": 0.8371, "noise_sd/dice": 0.06, "patients/myocardium": 43.8}))
    ['dice 0.837 (noise 0.060)']
    """
    for name, value in scores.items():
        if not name.startswith(ABOUT_SCORES):
            noise = scores.get(f"{NOISE}{name}")
            yield f"{name} {value:.3f}" + (f" (noise {noise:.3f})" if noise is not None else "")


def _sites(picture: Picture) -> Iterator[str]:
    shown = dict(list(picture.sites.items())[:MOST_SITES])
    width = max((len(name) for name in shown), default=0)
    for name, site in shown.items():
        yield f"  {name:<{width}}  {_answers(site)}  {price(site, picture.promise)}"
    if len(picture.sites) > len(shown):
        yield f"  and {len(picture.sites) - len(shown)} more hospitals (--json has them all)"


def _answers(site: SitePicture) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in site.answers.items()) or "no round yet"


def price(site: SitePicture, promise: float | None) -> str:
    """What a hospital's patients have paid, beside what the study promises them."""
    if promise is None:
        return "no privacy"
    if site.epsilon is None:
        return f"epsilon not told yet, {promise:g} promised"
    where = f"when it last told ({site.told_in})" if site.told_in else "at its ledger"
    return f"epsilon {site.epsilon:.3g} {where}, {promise:g} promised by the study"
