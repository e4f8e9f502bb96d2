"""Where the report on paper breaks its pages: what stays together, and what is made smaller so that pages are full."""

import pytest
from reportlab.platypus import KeepTogether

from fl_server.report import pdf
from fl_server.report.document import Figure, Figures, Section, Text
from fl_server.report.drawing import Drawing

PAGE = pdf.PAGE_HEIGHT


@pytest.fixture(autouse=True)
def fonts():
    pdf._fonts()


def fitted(height):
    """A section of one drawing; the flowable, and how high all but the drawing is."""
    drawing = Drawing(400.0, height)
    (made,) = pdf._section(Section("Results", [Figure(drawing, "in words", "a caption")]))
    _, total = made.wrap(pdf.WIDTH, PAGE)
    return made, total - made.drawn.height


def test_a_drawing_that_fits_keeps_its_size():
    made, _ = fitted(300.0)
    assert made.drawn.height == 300.0


@pytest.mark.parametrize(("room", "scale"), [(0.9, 0.9), (0.76, 0.76), (0.7, 1.0)])
def test_the_rest_of_a_page_is_used_if_the_drawing_need_not_be_much_smaller(room, scale):
    made, beside = fitted(300.0)
    _, total = made.wrap(pdf.WIDTH, beside + 300.0 * room)
    assert made.drawn.height == pytest.approx(300.0 * scale, rel=0.002)
    assert (total <= beside + 300.0 * room) == (scale < 1)  # else it moves to the next page
    made.wrap(pdf.WIDTH, PAGE)
    assert made.drawn.height == 300.0  # there is room for it there


def test_a_drawing_higher_than_a_page_is_made_as_small_as_the_page():
    made, _ = fitted(3000.0)
    _, total = made.wrap(pdf.WIDTH, PAGE)
    assert total <= PAGE


def test_a_heading_takes_one_paragraph_with_it_and_not_all_up_to_the_first_picture():
    pictures = Figures([Figure(Drawing(200.0, 200.0), "in words", "")])
    story = pdf._section(Section("What was learned", [Text("one"), Text("two"), pictures]))
    first = story[0]
    assert isinstance(first, KeepTogether)
    assert len(first._content) == 2
    assert [isinstance(one, KeepTogether) for one in story[1:3]] == [False, False]
