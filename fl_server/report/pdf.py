"""The report on paper: A4 pages made by ReportLab (BSD licence), without a browser and without any network.

The font is DejaVu Sans, which comes with matplotlib and knows ε and ≤; the part of it that is used goes into the file.
"""

from __future__ import annotations

import importlib.util
import io
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from reportlab.lib import colors
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, CondPageBreak, Flowable, Frame, KeepTogether, PageTemplate, Paragraph, Spacer
from reportlab.platypus import Table as Grid

from fl_server.report.document import Bullets, Document, Figure, Figures, Section, Table, Text
from fl_server.report.drawing import PRINTED, Circle, Drawing, Line, Picture
from fl_server.report.words import printable

SANS, BOLD = "DejaVuSans", "DejaVuSans-Bold"
MARGIN = 18 * mm
WIDTH = A4[0] - 2 * MARGIN
GAP = 8.0  # points between drawings side by side
PAGE_HEIGHT = A4[1] - 2 * MARGIN
LEAST = 0.75  # of its natural size: smaller, the letters of a drawing are hard to read
LONG = 12  # rows of a table that may be torn by the end of a page


def pdf(document: Document) -> bytes:
    """The report as a PDF file. Equal documents give equal bytes."""
    _fonts()
    buffer = io.BytesIO()
    frame = Frame(MARGIN, MARGIN, WIDTH, PAGE_HEIGHT, leftPadding=0, rightPadding=0, topPadding=0, bottomPadding=0)
    template = BaseDocTemplate(
        buffer,
        pagesize=A4,
        title=f"{document.title}: {document.verdict}",
        subject="Study report for a clinician",
        creator="konsil",
        author="",
        lang="en",
        invariant=1,
    )
    template.addPageTemplates([PageTemplate(frames=[frame], onPage=_foot(document))])
    template.build(_story(document))
    return buffer.getvalue()


@cache
def _fonts() -> None:
    found = importlib.util.find_spec("matplotlib")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("matplotlib, whose font the PDF is set in, is not installed")
    folder = Path(found.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    for name in (SANS, BOLD):
        pdfmetrics.registerFont(TTFont(name, str(folder / f"{name}.ttf")))
    pdfmetrics.registerFontFamily(SANS, normal=SANS, bold=BOLD, italic=SANS, boldItalic=BOLD)


def _style(name: str, size: float, **more: Any) -> ParagraphStyle:
    settings: dict[str, Any] = {"fontName": SANS, "leading": 1.42 * size, "textColor": colors.HexColor(PRINTED["ink"])}
    return ParagraphStyle(name, fontSize=size, **(settings | more))


def _hex(name: str) -> colors.Color:
    return colors.HexColor(PRINTED[name])


STYLES = {
    "title": _style("title", 18, fontName=BOLD, leading=22, spaceAfter=4),
    "kicker": _style("kicker", 8.5, textColor=_hex("muted")),
    "heading": _style("heading", 12.5, fontName=BOLD, spaceBefore=14, spaceAfter=5, keepWithNext=1),
    "plain": _style("plain", 9, spaceAfter=5),
    "lead": _style("lead", 10, spaceAfter=6),
    "fine": _style("fine", 7.8, textColor=_hex("muted"), spaceAfter=5),
    "missing": _style("missing", 9, textColor=_hex("muted"), leftIndent=8, spaceAfter=6),
    "warning": _style(
        "warning", 9, backColor=_hex("warn-soft"), borderPadding=(4, 6, 4, 6), spaceBefore=6, spaceAfter=10, leftIndent=6
    ),
    "bullet": _style("bullet", 9, leftIndent=11, bulletIndent=1, spaceAfter=3),
    "caption": _style("caption", 9, fontName=BOLD, spaceBefore=4, spaceAfter=3, keepWithNext=1),
    "cell": _style("cell", 7.6, leading=10),
    "number": _style("number", 7.6, leading=10, alignment=TA_RIGHT),
    "head": _style("head", 7.2, leading=9.4, textColor=_hex("muted")),
    "headnumber": _style("headnumber", 7.2, leading=9.4, textColor=_hex("muted"), alignment=TA_RIGHT),
    "group": _style("group", 7.6, fontName=BOLD, leading=10),
}


def _words(text: str, style: str, **more: Any) -> Paragraph:
    return Paragraph(escape(printable(text), quote=False), STYLES[style], **more)


def _story(document: Document) -> list[Flowable]:
    tone = {"complete": "good", "degraded": "warn", "failed": "bad"}[document.outcome]
    verdict = ParagraphStyle(
        "verdict",
        parent=STYLES["lead"],
        fontName=BOLD,
        textColor=_hex(tone),
        backColor=_hex(f"{tone}-soft"),
        borderPadding=(5, 7, 5, 7),
        leftIndent=7,
        spaceBefore=8,
        spaceAfter=11,
    )
    story: list[Flowable] = [
        _words(document.kicker, "kicker"),
        _words(document.title, "title"),
        Paragraph(escape(document.verdict, quote=False), verdict),
    ]
    story += [_words(reason, "bullet", bulletText="•") for reason in document.reasons]
    for section in document.sections:
        story += _section(section)
    return story


Unit = list[Flowable]
"""Flowables that stay on one page."""


def _section(section: Section) -> list[Flowable]:
    """The heading stays with what follows it: a paragraph, a drawing, a table or its beginning. More than that would leave
    pages half empty, because what is kept together moves to the next page as one.
    """
    opening: Unit = [_Heading(section.title)]
    story: list[Flowable] = []
    for block in section.blocks:
        if opening and isinstance(block, Table) and len(block.rows) > LONG:
            story += [CondPageBreak(60 * mm), *opening, *_long_table(block)]
            opening = []
        elif isinstance(block, Figure):
            story.append(_Fitted([*opening, _Drawn(block.drawing, WIDTH), *_caption(block), Spacer(0, 5)]))
            opening = []
        else:
            for unit in _block(block):
                story += [KeepTogether([*opening, *unit])] if len(opening) + len(unit) > 1 else unit
                opening = []
    return story + ([KeepTogether(opening)] if opening else [])


def _block(block: Text | Bullets | Table | Figures) -> list[Unit]:
    if isinstance(block, Text):
        return [[_words(block.words, block.kind)]]
    if isinstance(block, Bullets):
        return [[_words(line, "bullet", bulletText="•")] for line in block.lines]
    if isinstance(block, Table):
        parts = _long_table(block)
        return [parts] if len(block.rows) <= LONG else [[CondPageBreak(40 * mm)], *([flowable] for flowable in parts)]
    return [[grid] for grid in _side_by_side(block)] + [[Spacer(0, 5)]]


def _caption(figure: Figure) -> Unit:
    return [Spacer(0, 3), _words(figure.caption, "fine")] if figure.caption else []


def _side_by_side(figures: Figures) -> list[Flowable]:
    several = figures.several
    across = max(1, min(len(several), int((WIDTH + GAP) // (max(f.drawing.width for f in several) * 0.72 + GAP))))
    width = (WIDTH - GAP * (across - 1)) / across
    rows = []
    for start in range(0, len(several), across):
        cells: list[Any] = [[_Drawn(one.drawing, width), *_caption(one)] for one in several[start : start + across]]
        rows.append(cells + [""] * (across - len(cells)))
    widths = [width + (GAP if i < across - 1 else 0) for i in range(across)]
    plain = [("LEFTPADDING", (0, 0), (-1, -1), 0), ("TOPPADDING", (0, 0), (-1, -1), 0), ("VALIGN", (0, 0), (-1, -1), "TOP")]
    return [Grid([row], colWidths=widths, style=[*plain, ("RIGHTPADDING", (0, 0), (-1, -1), GAP / 2)]) for row in rows]


def _long_table(table: Table) -> list[Flowable]:
    """Caption and rows; a page that ends in the middle repeats the head on the next."""

    def styles(word: str, number: str) -> list[str]:
        return [word if i < table.words or i in table.also else number for i in range(len(table.head))]

    lines = [[_words(text, style) for text, style in zip(table.head, styles("head", "headnumber"), strict=True)]]
    look: list[tuple[Any, ...]] = [
        ("LEFTPADDING", (0, 0), (-1, -1), 2),
        ("RIGHTPADDING", (0, 0), (-1, -1), 2),
        ("TOPPADDING", (0, 0), (-1, -1), 2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("VALIGN", (0, 0), (-1, 0), "BOTTOM"),
        ("LINEBELOW", (0, 0), (-1, 0), 0.7, _hex("muted")),
        ("LINEBELOW", (0, 1), (-1, -1), 0.4, _hex("rule")),
    ]
    look += [("LEFTPADDING", (i, 0), (i, -1), 9) for i in table.also]
    for number, row in enumerate(table.rows, start=1):
        if len(row) == 1:
            lines.append([_words(row[0], "group"), *[""] * (len(table.head) - 1)])
            look += [("SPAN", (0, number), (-1, number)), ("TOPPADDING", (0, number), (-1, number), 6)]
        else:
            lines.append([_words(text, style) for text, style in zip(row, styles("cell", "number"), strict=True)])
    widths = [WIDTH * share / sum(table.shares) for share in table.shares]
    grid = Grid(lines, colWidths=widths, repeatRows=1, style=look)
    return [*([_words(table.caption, "caption")] if table.caption else []), grid, Spacer(0, 7)]


class _Heading(Paragraph):  # type: ignore[misc]  # ReportLab has no types
    """A section's title, which the reader's outline lists."""

    def __init__(self, title: str) -> None:
        super().__init__(escape(title, quote=False), STYLES["heading"])
        self.title = title

    def draw(self) -> None:
        key = f"{self.title}-{self.canv.getPageNumber()}"
        self.canv.bookmarkPage(key)
        self.canv.addOutlineEntry(self.title, key, level=0, closed=False)
        super().draw()


class _Drawn(Flowable):  # type: ignore[misc]
    """A drawing, made smaller if it is wider than there is room."""

    def __init__(self, drawing: Drawing, width: float) -> None:
        super().__init__()
        self.drawing = drawing
        self.resize(min(1.0, width / drawing.width))

    def resize(self, scale: float) -> None:
        """Make it so large, as a part of what it was drawn as."""
        self.scale = scale
        self.width, self.height = self.drawing.width * scale, self.drawing.height * scale

    def wrap(self, *_: float) -> tuple[float, float]:
        return self.width, self.height

    def draw(self) -> None:
        canvas = self.canv
        canvas.saveState()
        canvas.scale(self.scale, self.scale)
        for shape in self.drawing.shapes:
            _paint(canvas, shape, self.drawing.height)
        canvas.restoreState()


class _Fitted(Flowable):  # type: ignore[misc]
    """A drawing with what stays with it, on one page: made smaller, down to `LEAST`, where that saves the rest of a page."""

    def __init__(self, parts: Unit) -> None:
        super().__init__()
        self.parts = parts
        [self.drawn] = [part for part in parts if isinstance(part, _Drawn)]
        self.natural = self.drawn.scale
        self.heights: list[float] = []

    def wrap(self, width: float, height: float) -> tuple[float, float]:
        """As high as it is, or as there is room."""
        self.drawn.resize(self.natural)
        total = self._height(width)
        if total > height:
            room = (height - (total - self.drawn.height)) / self.drawn.height  # for the drawing, of its natural size
            whole_page = height > PAGE_HEIGHT - 1
            if room >= LEAST or (whole_page and room > 0):
                self.drawn.resize(self.natural * room * 0.999)
                total = self._height(width)
        return width, total

    def draw(self) -> None:
        at = sum(self.heights)
        for part, height in zip(self.parts, self.heights, strict=True):
            at -= height
            part.drawOn(self.canv, 0, at + self._after(part))

    def _height(self, width: float) -> float:
        self.heights = [part.wrap(width, PAGE_HEIGHT)[1] + self._after(part) for part in self.parts]
        return sum(self.heights)

    @staticmethod
    def _after(part: Flowable) -> float:
        return float(part.getSpaceAfter())

    def getSpaceBefore(self) -> float:  # ReportLab's name
        """That of what stands first."""
        return float(self.parts[0].getSpaceBefore())


def _paint(canvas: Canvas, shape: Any, height: float) -> None:
    """One shape; the PDF's y grows upwards."""
    if isinstance(shape, Line):
        _line(canvas, shape, height)
    elif isinstance(shape, Circle):
        canvas.setFillColor(_hex(shape.fill))
        canvas.circle(shape.x, height - shape.y, shape.radius, stroke=0, fill=1)
    elif isinstance(shape, Picture):
        image = ImageReader(io.BytesIO(shape.png))
        canvas.drawImage(image, shape.x, height - shape.y - shape.height, shape.width, shape.height)
    else:
        canvas.saveState()
        canvas.translate(shape.x, height - shape.y)
        canvas.rotate(90 if shape.turned else 0)
        canvas.setFont(BOLD if shape.bold else SANS, shape.size)
        canvas.setFillColor(_hex(shape.colour))
        write = {"start": canvas.drawString, "middle": canvas.drawCentredString, "end": canvas.drawRightString}[shape.anchor]
        write(0, 0, printable(shape.text))
        canvas.restoreState()


def _line(canvas: Canvas, shape: Line, height: float) -> None:
    path = canvas.beginPath()
    path.moveTo(shape.points[0][0], height - shape.points[0][1])
    for x, y in shape.points[1:]:
        path.lineTo(x, height - y)
    if shape.closed:
        path.close()
    if shape.colour:
        canvas.setStrokeColor(_hex(shape.colour))
        canvas.setLineWidth(shape.width)
        canvas.setDash([3.5, 2.5] if shape.dashed else [])
    if shape.fill:
        canvas.setFillColor(_hex(shape.fill))
    canvas.drawPath(path, stroke=1 if shape.colour else 0, fill=1 if shape.fill else 0)
    canvas.setDash([])


def _foot(document: Document) -> Any:
    def draw(canvas: Canvas, _: BaseDocTemplate) -> None:
        canvas.saveState()
        canvas.setFont(SANS, 7)
        canvas.setFillColor(_hex("muted"))
        canvas.drawString(MARGIN, 10 * mm, _cut(f"{document.title} · research only, not a medical device", WIDTH - 40))
        canvas.drawRightString(A4[0] - MARGIN, 10 * mm, str(canvas.getPageNumber()))
        canvas.restoreState()

    return draw


def _cut(text: str, width: float) -> str:
    while pdfmetrics.stringWidth(text, SANS, 7) > width:
        text = text[: -max(2, len(text) // 10)] + "…"
    return text
