"""How every chart of the report looks: colours, fonts, marks, and the way from matplotlib into the page.

Charts are drawn in stand-in colours that are replaced by CSS variables, so that one drawing reads well on white, on dark
and in print. Hospitals are told apart by marks and by the colour-blind safe palette of Okabe and Ito (2008).
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from html import escape
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

INK, MUTED, RULE, ACCENT, PAPER = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
SERIES = tuple(f"#f0f0{i:02x}" for i in range(1, 9))
MARKERS = "os^DvPXp"
_ICONS = (  # the same marks for legends, in a box of 10 x 10
    "M5 1a4 4 0 1 0 .01 0Z",
    "M1.3 1.3H8.7V8.7H1.3Z",
    "M5 .8 9.4 9H.6Z",
    "M5 .3 9.7 5 5 9.7 .3 5Z",
    "M5 9.2 9.4 1H.6Z",
    "M3.5 .7H6.5V3.5H9.3V6.5H6.5V9.3H3.5V6.5H.7V3.5H3.5Z",
    "M2.6 .5 5 2.9 7.4 .5 9.5 2.6 7.1 5 9.5 7.4 7.4 9.5 5 7.1 2.6 9.5 .5 7.4 2.9 5 .5 2.6Z",
    "M5 .6 9.5 3.9 7.8 9.2H2.2L.5 3.9Z",
)
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent", PAPER: "--paper"} | {
    colour: f"--series-{i}" for i, colour in enumerate(SERIES, start=1)
}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
    "svg.hashsalt": "konsil",
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def colour(index: int) -> str:
    """Stand-in colour of the hospital (or arm) with this place in the list."""
    return SERIES[index % len(SERIES)]


def mark(index: int) -> Markup:
    """The legend's mark of that hospital (or arm), in its colour."""
    path = _ICONS[index % len(_ICONS)]
    fill = f"var(--series-{index % len(SERIES) + 1})"
    return Markup(f'<svg class="mark" viewBox="0 0 10 10" aria-hidden="true"><path fill="{fill}" d="{path}"/></svg>')


def svg(figure: Figure, alt: str) -> Markup:
    """The figure as an `<svg>` element: no preamble, no namespaces, ids of its own, the page's colours and font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    prefix = f"f{zlib.crc32(text.encode()):08x}-"  # ids must differ between the figures of one page
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\bid=\"([^\"]+)\"", rf'id="{prefix}\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", text)
    text = re.sub(r"xlink:href=\"#([^\"]+)\"", rf'href="#{prefix}\1"', text)
    text = re.sub(r"<defs>\s*<style.*?</defs>", "", text, count=1, flags=re.DOTALL)  # would hold for the whole page
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    text = re.sub("|".join(_VARIABLES), lambda found: f"var({_VARIABLES[found.group()]})", text)
    box = re.search(r"viewBox=\"([^\"]+)\"", text)
    if box is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    head = f'<svg viewBox="{box.group(1)}" role="img" aria-label="{escape(alt)}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: head, text, count=1))


def png(picture: Figure | Image.Image, *, dpi: int = 130) -> str:
    """The picture as PNG in a data URL; `dpi` is for figures, an image keeps its pixels."""
    held = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(held, format="png", dpi=dpi)
    else:
        picture.save(held, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
