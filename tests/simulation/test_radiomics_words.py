"""Names of columns and values as they are said to a radiologist."""

import pytest
from drawn_radiomics import RADIOMIC

from simulation.report.radiomics_words import feature, quantity, shortened


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("original_firstorder_Mean", "Mean, original"),
        ("log-sigma-2-0-mm-3D_firstorder_90Percentile", "90th percentile, LoG 2 mm"),
        ("log-sigma-2-5-mm-3D_glcm_JointEntropy", "GLCM joint entropy, LoG 2.5 mm"),
        ("wavelet-LLH_glszm_ZonePercentage", "GLSZM zone percentage, wavelet LLH"),
        ("original_glcm_Idm", "GLCM IDM, original"),
        ("original_shape_Maximum2DDiameterSlice", "Shape: maximum2ddiameter slice"),
        ("edv_ml", "End-diastolic volume (ml)"),
        ("mean radius", "Mean radius"),
    ],
)
def test_columns_are_said_as_a_radiologist_would(column, said):
    assert feature(column) == said


def test_different_columns_are_never_said_alike():
    assert len({feature(column) for column in RADIOMIC}) == len(RADIOMIC)


def test_a_value_shows_the_digits_that_count():
    assert [quantity(v) for v in (0.01234, -3.0, 4321.6, float("nan"))] == ["0.0123", "−3", "4,322", "missing"]


def test_a_long_name_ends_visibly():
    assert shortened("a" * 50, 10) == "aaaaaaaaa…"
    assert shortened("a" * 10, 10) == "a" * 10
