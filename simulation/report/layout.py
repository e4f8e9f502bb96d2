"""How a report becomes one HTML text: a template that extends `layout.html`, the styles, and what every page says of its run.

The templates lie beside this file; all of them have the filters of `FILTERS`, and `mark` for legends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fl_server.record import Record
from simulation.report import drawing, words

HERE = Path(__file__).parent
FILTERS: dict[str, Callable[..., str]] = {
    "number": words.number,
    "interval": words.interval,
    "structure": words.structure,
    "epsilon": words.epsilon,
}


def rendered(
    template: str,
    record: Record,
    contents: Mapping[str, object],
    *,
    styles: tuple[str, ...] = (),
    filters: Mapping[str, Callable[..., str]] | None = None,
) -> str:
    """The whole page as one HTML text. `styles` and `filters` are the template's own, beside those of every page."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS | dict(filters or {})
    every = {
        "css": Markup("".join((HERE / name).read_text() for name in ("style.css", *styles))),
        "record": record,
        "verdict": words.VERDICTS[record.verdict],
        "phases": phases(record),
        "seeds": record.seeds,
        "epsilons": [(name, words.epsilon(site.epsilon)) for name, site in record.sites.items() if site.epsilon is not None],
        "settings": json.dumps(record.study, indent=2),
        "mark": drawing.mark,
    }
    return environment.get_template(template).render(every | dict(contents))


def phases(record: Record) -> list[tuple[str, float | None, float | None]]:
    """(phase, seconds, peak memory in MiB) in the order of the run; of the total, the highest peak. None: not recorded."""
    seconds, memory = record.timings, {"total": record.peak_memory_mb, **record.memory_mb}
    names = sorted({**seconds, **record.memory_mb}, key="total".__eq__)  # the total last
    return [(name, seconds.get(name), memory.get(name)) for name in names]
