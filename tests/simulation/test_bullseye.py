import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Wedge
from PIL import Image

from simulation.report.bullseye import MISSING, bullseye

# where a segment's middle lies in the drawing: right, up (Cerqueira et al. 2002, figure 3: anterior on top, septum left)
PLACES = {
    1: (0, 0.88),
    2: (-0.76, 0.44),
    3: (-0.76, -0.44),
    4: (0, -0.88),
    5: (0.76, -0.44),
    6: (0.76, 0.44),
    7: (0, 0.64),
    8: (-0.55, 0.32),
    9: (-0.55, -0.32),
    10: (0, -0.64),
    11: (0.55, -0.32),
    12: (0.55, 0.32),
    13: (0, 0.4),
    14: (-0.4, 0),
    15: (0, -0.4),
    16: (0.4, 0),
    17: (0, 0),
}


def colour_at(figure: Figure, place: tuple[float, float]) -> tuple[float, ...]:
    """Colour of the only field that covers this place."""
    radius, degrees = float(np.hypot(*place)), float(np.rad2deg(np.arctan2(place[1], place[0])))
    hit = [
        field
        for field in figure.axes[0].patches
        if isinstance(field, Wedge)
        and field.r - field.width <= radius < field.r
        and (degrees - field.theta1) % 360 < field.theta2 - field.theta1
    ]
    assert len(hit) == 1
    return hit[0].get_facecolor()[:3]


@pytest.mark.parametrize("segment", range(1, 18))
def test_each_segment_stands_where_radiologists_look_for_it(segment):
    values = [0.0] * 17
    values[segment - 1] = 1.0
    figure = bullseye(values, colours="gray")
    for other, place in PLACES.items():
        assert colour_at(figure, place) == pytest.approx((1, 1, 1) if other == segment else (0, 0, 0), abs=0.01)


def test_numbers_unit_and_title_are_written_and_a_missing_one_is_grey():
    values = [float(k) for k in range(101, 118)]
    values[4] = float("nan")
    figure = bullseye(values, title="Extracellular volume", unit="%", digits=1)
    written = {text.get_text() for text in figure.axes[0].texts}
    assert {"101.0", "117.0", "–", "1", "17", "anterior", "inferoseptal"} <= written
    assert "105.0" not in written
    assert figure.axes[0].get_title(loc="left") == "Extracellular volume"
    assert figure.axes[1].get_title(loc="left") == "%"
    red = int(MISSING[1:3], 16) / 255
    assert colour_at(figure, PLACES[5])[0] == pytest.approx(red)


def test_it_becomes_a_picture_also_where_nothing_or_one_value_is_known():
    for values in ([float("nan")] * 17, [0.5] * 17):
        buffer = io.BytesIO()
        bullseye(values, digits=2).savefig(buffer, format="png", dpi=40)
        assert np.asarray(Image.open(buffer)).any()


def test_it_draws_into_axes_that_are_given():
    figure = Figure(figsize=(8, 4))
    panels = figure.subplots(1, 2)
    assert bullseye(range(17), axes=panels[1]) is figure
    assert not panels[0].patches


@pytest.mark.parametrize(
    ("values", "limits", "words"),
    [([1.0] * 16, None, "17 values"), ([float("inf")] + [1.0] * 16, None, "segments 1"), ([1.0] * 17, (2.0, 1.0), "limits")],
)
def test_what_is_no_bulls_eye_is_refused_in_words(values, limits, words):
    with pytest.raises(ValueError, match=words):
        bullseye(values, limits=limits)
