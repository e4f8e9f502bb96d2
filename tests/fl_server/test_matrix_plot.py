"""The matrix as a picture: what stands in it, and that it can be drawn for two hospitals or forty."""

from io import BytesIO

import numpy as np
import pytest

from fl_server.matrix_plot import matrix_picture, matrix_plot
from fl_server.record import Matrix, SiteRound


def matrix(scores, *, noise_sd=None):
    hospitals = sorted({site for row in scores.values() for site in row})
    answers = {site: SiteRound(answer="used") for site in hospitals}
    return Matrix(metric="dice", scores=scores, noise_sd=noise_sd or {}, noise_std={}, sites=answers, seconds=0)


def drawn(found):
    (axes, _) = matrix_plot(found).axes
    return axes, [text.get_text() for text in axes.texts]


def test_every_score_stands_in_its_cell_and_what_is_missing_is_a_dash():
    axes, texts = drawn(matrix({"global": {"a": 0.81, "b": 0.79}, "a": {"a": 0.9}}))
    assert texts == ["0.81", "0.79", "0.90", "–"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all together", "a"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert "can't be told" in axes.get_title(loc="left")


def test_what_a_hospitals_own_model_is_worth_at_home_is_outlined():
    axes, _ = drawn(matrix({"global": {"a": 0.8, "b": 0.8}, "a": {"a": 0.9, "b": 0.7}, "b": {"a": 0.6, "b": 0.9}}))
    corners = sorted((round(patch.get_x()), round(patch.get_y())) for patch in axes.patches)
    assert corners == [(0, 1), (1, 2)]  # column, row: the first row is the model of all


def test_noise_stands_below_the_score_it_belongs_to():
    axes, texts = drawn(matrix({"global": {"a": 0.81}}, noise_sd={"global": {"a": 0.034}}))
    assert texts == ["0.81\n± 0.03"]
    assert "what the noise alone does" in axes.get_title(loc="left")


def test_small_differences_are_not_made_to_look_large():
    axes, _ = drawn(matrix({"global": {"a": 0.800, "b": 0.801}}))
    low, high = axes.images[0].get_clim()
    assert high - low == pytest.approx(0.1)


def test_forty_hospitals_are_drawn_without_numbers_and_an_empty_matrix_is_refused():
    names = [f"h{n}" for n in range(40)]
    _, texts = drawn(matrix({model: dict.fromkeys(names, 0.5) for model in names}))
    assert texts == []
    with pytest.raises(ValueError, match="0 models and 0 hospitals is no picture"):
        matrix_plot(matrix({}))


def test_equal_matrices_give_equal_files():
    found = matrix({"global": {"a": 0.81, "b": 0.5}})
    for kind, begins in (("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")):
        first = matrix_picture(found, kind=kind, title="pilot", dpi=60)
        assert first.startswith(begins)
        assert first == matrix_picture(found, kind=kind, title="pilot", dpi=60)
    from PIL import Image

    assert np.asarray(Image.open(BytesIO(first))).std() > 0
