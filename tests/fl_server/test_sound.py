"""What a hospital says of itself when it enrols: a size and a delta that the coordinator can reckon with."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from fl_server.sound import sound_arrays, sound_delta, sound_size


@pytest.mark.parametrize("said", [1, 40, 10_000_000])
def test_a_size_that_a_hospital_may_have_is_taken(said):
    assert sound_size(said) == said


@pytest.mark.parametrize("said", [0, -1, 10_000_001, 2**62, 40.0, math.nan, "40", None, True, [40], 10**4000])
def test_a_size_that_no_hospital_has_is_refused_in_words(said):
    with pytest.raises(ValueError, match=r"^declared the size .{1,64}; it must be a whole number from 1 to 10000000$"):
        sound_size(said)


@pytest.mark.parametrize("said", [1e-9, 1e-3, 0.5, math.nextafter(1, 0), 5e-324])
def test_a_delta_between_0_and_1_is_taken(said):
    assert sound_delta(said) == said


@pytest.mark.parametrize("said", [0.0, 1.0, -1e-3, 2.0, math.nan, math.inf, -math.inf, "0.001", None, 0, True])
def test_a_delta_that_promises_nothing_or_is_no_number_is_refused_in_words(said):
    with pytest.raises(ValueError, match=r"^states its epsilon at a delta of .{1,64}; it must lie between 0 and 1$"):
        sound_delta(said)


def test_many_wrong_names_are_told_in_few_words():
    asked = {f"layer{n}.weight": np.zeros(1, np.float32) for n in range(40)}
    arrays = ArrayRecord({"x" * 300 + f"{n}": Array(np.zeros(1, np.float32)) for n in range(60)})
    with pytest.raises(ValueError, match=r"missing 'layer0.weight', .* and 37 more, unknown 'xxx.* and 57 more$") as told:
        sound_arrays(RecordDict({"arrays": arrays}), asked)
    assert len(str(told.value)) < 500
