"""`audit.html`: what was tried, what was seen, what it doesn't prove; one file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from simulation.audit.check import Figure, Result

KINDS = {
    "certain": "certain: one counterexample would refute the claim",
    "statistical": "statistical: a false alarm about once in ten million",
    "empirical": "measured: how much an attack gets, with the means that it has",
}
LIMITS = (
    "A check that held proves nothing about what it did not try. The promise rests on the argument in docs/privacy.md; the "
    "checks look for places where the code does something else.",
    "A lower bound on epsilon is no measurement of epsilon: a better attack may find more, up to the epsilon that is promised.",
    "Outside: the operating system's random numbers, other users of the hospital's machine, when messages arrive, and what a "
    "person says aloud.",
)
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f4b; --bad: #b3261e; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem 1.25rem 3rem; }
h1 { font-size: 1.6rem; margin: 1rem 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.bar { border-radius: .5rem; padding: .6rem 1rem; color: #fff; background: var(--good); font-weight: 600; }
.bar.bad { background: var(--bad); }
article { border-top: 1px solid var(--line); padding: .8rem 0; display: grid; gap: .25rem; }
article h3 { margin: 0; font-size: 1rem; display: flex; gap: .6rem; align-items: baseline; flex-wrap: wrap; }
.verdict { font-size: .8rem; padding: .05rem .5rem; border-radius: 1rem; color: #fff; background: var(--good); }
.bad .verdict { background: var(--bad); }
.kind { font-weight: 400; font-size: .8rem; opacity: .75; }
p { margin: 0; } li { margin: .3rem 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
td { padding: .1rem .9rem .1rem 0; } td + td { font-variant-numeric: tabular-nums; text-align: right; }
.reads { font-size: .85rem; opacity: .8; }
.problems { color: var(--bad); overflow-wrap: anywhere; margin: .2rem 0; }
img { max-width: 100%; background: #fff; border-radius: .4rem; margin-top: .5rem; }
footer { margin-top: 2rem; opacity: .75; font-size: .85rem; }
"""


def page(results: Sequence[Result], facts: Mapping[str, Any]) -> str:
    """The whole page."""
    failed = [result for result in results if not result.passed]
    names = ", ".join(result.check.name for result in failed)
    bar = f'<p class="bar bad">Refuted: {escape(names)}</p>' if failed else '<p class="bar">No claim was refuted.</p>'
    checks = "".join(_article(result) for result in sorted(results, key=lambda result: result.passed))
    limits = "".join(f"<li>{escape(text)}</li>" for text in LIMITS)
    kinds = "".join(f"<li>{escape(text)}</li>" for text in KINDS.values())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>konsil attacked by itself</title><style>{_STYLE}</style></head><body>
<h1>konsil attacked by itself</h1>
<p>{len(results)} claims, each with an attempt to refute it through the code that hospitals run. Effort:
{escape(str(facts["effort"]))}.</p>
<h2>Verdict</h2>{bar}
<h2>Claims and attempts</h2>{checks}
<h2>How to read it</h2><ul>{kinds}</ul>
<h2>What this does not prove</h2><ul>{limits}</ul>
<footer>konsil {escape(str(facts["konsil_version"]))}, seed {facts["seed"]}, {escape(str(facts["machine"]))},
{facts["cpu_s"]} CPU seconds. The same figures for programs: audit.json.</footer>
</body></html>
"""


def _article(result: Result) -> str:
    verdict = "held" if result.passed else "refuted"
    problems = "".join(f"<li>{escape(problem)}</li>" for problem in result.finding.problems[:20])
    more = len(result.finding.problems) - 20
    problems += f"<li>and {more} more</li>" if more > 0 else ""
    rows = "".join(
        f"<tr><td>{escape(_words(k))}</td><td>{escape(_number(v))}</td></tr>" for k, v in result.finding.figures.items()
    )
    pictures = "".join(
        f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in result.finding.pictures
    )
    return f"""<article class="{"" if result.passed else "bad"}">
<h3><span class="verdict">{verdict}</span>{escape(result.check.name)}
<span class="kind">{result.check.kind}, {result.seconds:.1f} s</span></h3><p>{escape(result.check.claim)}</p>
{f'<ul class="problems">{problems}</ul>' if problems else ""}
{f'<p class="reads">{escape(result.check.reads)}</p>' if result.check.reads else ""}
<div class="scroll"><table>{rows}</table></div>{pictures}</article>"""


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: Figure) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
