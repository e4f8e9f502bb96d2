"""Each parameter moves with its artifact and less with the others; by how much stands in docs/site_page.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from artifacts import SEEDS, generated, matrix, sunnybrook

OWN = {
    "noise_sigma": ("noise", +1),
    "snr": ("noise", -1),
    "snr_air": ("noise", -1),
    "cnr": ("noise", -1),
    "uniformity": ("bias", -1),
    "ghosting": ("ghosting", +1),
    "air_artifacts": ("motion", +1),
    "blur_mm": ("blur", +1),
    "truncation": ("crop", +1),
}
"""The artifact that a parameter is for, and the side to which it moves it."""

ALSO = {
    ("ghosting", "motion"): "who moves between lines of k-space leaves ghosts",
    ("air_artifacts", "ghosting"): "a ghost is an artifact in the air",
}
"""What has the same cause."""

TOLERANCE = 0.35
"""Another artifact at full strength moves a parameter by at most this share of what its own does."""

LOOSER = {
    ("snr", "blur"): 0.65,  # fine structure that passed for noise is gone
    ("snr", "motion"): 0.40,  # and here there is more of it
    ("cnr", "blur"): 0.45,
    ("cnr", "motion"): 0.45,
    ("cnr", "ghosting"): 0.40,
    ("snr_air", "ghosting"): 0.55,  # strong ghosts leave no quiet air
    ("air_artifacts", "noise"): 0.5,  # in noise weak artifacts can't be seen
    ("air_artifacts", "blur"): 0.55,
    ("ghosting", "blur"): 0.45,
}


@pytest.fixture(scope="module", params=SEEDS)
def drawn(request):
    return matrix(generated(request.param), noisy=False)


def column(rows, metric):
    return np.array([row[metric] for row in rows], float)


@pytest.mark.parametrize("metric", OWN)
def test_a_parameter_moves_with_its_artifact_and_less_with_the_others(drawn, metric):
    cause, side = OWN[metric]
    own = side * column(drawn[cause], metric)
    assert (np.diff(own) > 0).all(), own
    moved = own[-1] - own[0]
    for artifact, rows in drawn.items():
        values = column(rows, metric)
        if artifact == cause:
            continue
        if (metric, artifact) in ALSO:
            assert (side * np.diff(values) > 0).all(), (artifact, values)
        else:
            most = np.abs(values - values[0]).max()
            assert most <= LOOSER.get((metric, artifact), TOLERANCE) * moved, (artifact, values, moved)


def test_parameters_answer_strongly_to_their_artifact(drawn):
    times = {metric: column(drawn[OWN[metric][0]], metric)[[0, -1]] for metric in OWN}
    ratios = {metric: max(a / b, b / a) for metric, (a, b) in times.items()}
    assert all(ratio > 1.35 for ratio in ratios.values()), ratios
    assert min(ratios[name] for name in ("noise_sigma", "snr", "snr_air", "cnr", "ghosting", "air_artifacts", "blur_mm")) > 2.2


def test_on_a_real_image_noise_bias_ghosts_and_blur_are_seen_too(tmp_path: Path):
    rows = matrix(sunnybrook(tmp_path), noisy=True)
    for metric in ("noise_sigma", "snr", "snr_air", "cnr", "uniformity", "ghosting", "blur_mm"):
        cause, side = OWN[metric]
        assert (np.diff(side * column(rows[cause], metric)) > 0).all(), metric
    for metric, others in {  # of the parameter's own change
        "noise_sigma": ("bias", "ghosting", "motion", "crop"),
        "snr": ("bias", "ghosting", "motion", "crop"),
        "snr_air": ("bias", "ghosting", "motion", "crop"),
        "cnr": ("bias", "ghosting", "motion", "crop"),
        "uniformity": ("noise", "blur", "ghosting", "motion"),
        "blur_mm": ("noise", "bias", "ghosting", "motion", "crop"),
    }.items():
        own = column(rows[OWN[metric][0]], metric)
        for artifact in others:
            values = column(rows[artifact], metric)
            assert np.abs(values - values[0]).max() <= 0.4 * np.abs(own[-1] - own[0]), (metric, artifact, values)
