"""Masks drawn as outlines: where they lie, in which proportion, and which slices are shown."""

import re

import numpy as np
import pytest

from simulation.report import pictures


def test_contours_lie_where_the_pixels_are_and_pixels_keep_their_proportion():
    mask = np.zeros((40, 30), np.uint8)
    mask[10:30, 6:18] = 1
    drawn = str(pictures._drawing(np.zeros((40, 30), np.uint8), [(mask, "reader")], (2.0, 1.0), alt="a square"))
    assert 'viewBox="0 0 30.00 80.00"' in drawn
    path = re.search(r'class="reader" d="M([^Z]+)Z', drawn).group(1)
    x, y = np.array([[float(v) for v in point.split()] for point in path.split("L")]).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((6, 18, 20, 60), abs=0.3)  # mm


def test_a_structure_around_another_draws_the_common_edge_once():
    y, x = np.indices((60, 60)) - 30
    ring = np.where(np.hypot(x, y) < 20, 2, 0)
    ring[np.hypot(x, y) < 10] = 1
    assert pictures._contours(ring.astype(np.uint8), 1.0, 1.0).count("M") == 2


def test_the_base_is_the_end_with_the_larger_outline_whichever_slice_comes_first():
    stack = np.zeros((9, 20, 20), int)
    for z, n in enumerate((2, 3, 4, 5, 6, 7, 8, 9, 10)):
        stack[z, :n, :n] = 1
    assert dict(pictures._levels(stack, cardiac=True)) == {"base": 7, "mid": 4, "apex": 1}
    assert dict(pictures._levels(stack[::-1], cardiac=True)) == {"base": 1, "mid": 4, "apex": 7}
