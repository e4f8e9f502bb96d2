"""The report as one HTML page: styles and drawings inside, nothing fetched from anywhere, every word escaped."""

from __future__ import annotations

from html import escape as _escape
from pathlib import Path

from fl_server.report.document import Block, Bullets, Document, Figure, Table, Text
from fl_server.report.words import printable

CSS = Path(__file__).parent / "report.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What the browser may load: nothing but what stands in the page."""


def escape(text: str) -> str:
    """The text as it is, whatever it holds."""
    return _escape(printable(text))


def html(document: Document) -> str:
    """The whole page."""
    reasons = _block(Bullets(document.reasons)) if document.reasons else ""
    sections = "\n".join(
        f"<section>\n<h2>{escape(section.title)}</h2>\n{''.join(map(_block, section.blocks))}</section>"
        for section in document.sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(document.title)}: study report</title>\n<style>\n{CSS.read_text()}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<p class="kicker">{escape(document.kicker)}</p>\n<h1>{escape(document.title)}</h1>\n'
        f'<p class="verdict {document.outcome}">{escape(document.verdict)}</p>\n{reasons}</header>\n'
        f"{sections}\n</main>\n</body>\n</html>\n"
    )


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f'<p class="{block.kind}">{escape(block.words)}</p>\n'
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in block.lines) + "</ul>\n"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figure):
        return _figure(block)
    return f'<div class="charts">{"".join(map(_figure, block.several))}</div>\n'


def _figure(figure: Figure) -> str:
    caption = f"<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
    wide = ' class="wide"' if figure.drawing.width > 400 else ""
    return f"<figure{wide}>{figure.drawing.svg(figure.alt)}{caption}</figure>\n"


def _table(table: Table) -> str:
    def kind(i: int) -> str:
        return "" if i < table.words or i in table.also else ' class="n"'

    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    head = "".join(f'<th scope="col"{kind(i)}>{escape(text)}</th>' for i, text in enumerate(table.head))
    rows = []
    for row in table.rows:
        if len(row) == 1:
            rows.append(f'<tr class="group"><th colspan="{len(table.head)}" scope="rowgroup">{escape(row[0])}</th></tr>')
        else:
            cells = "".join(f"<td{kind(i)}>{escape(text)}</td>" for i, text in enumerate(row[1:], start=1))
            rows.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    look = "facts" if len(table.head) < 4 else "many"
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table class="{look}">{caption}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )
