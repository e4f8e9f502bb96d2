from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from fl_client.intake.instants import instants
from fl_client.intake.volume import Frame, GeometryRefused


def cine(times: list[list[float]], element: str = "TriggerTime") -> list[Frame]:
    """One frame per time of each slice, in an order that tells nothing."""
    frames = []
    for slice_number, several in enumerate(times):
        for time in several:
            header = Dataset()
            header.ImagePositionPatient = [0, 0, 8.0 * slice_number]
            setattr(header, element, time)
            frames.append(Frame(Path(), header))
    return sorted(frames, key=lambda frame: str(frame.header[element].value)[::-1])


def at(frames: list[Frame], element: str = "TriggerTime") -> dict[float, float]:
    """Slice position: time."""
    return {float(frame.header.ImagePositionPatient[2]): float(frame.header[element].value) for frame in frames}


@pytest.mark.parametrize(
    "element",
    ["NominalCardiacTriggerDelayTime", "TriggerTime", "TemporalPositionIdentifier", "TemporalPositionIndex", "InversionTime"],
)
def test_whichever_element_says_when_orders_the_phases(element: str) -> None:
    found = instants(cine([[30, 10, 20], [10, 30, 20]], element), cycle=True)
    assert [at(phase, element) for phase in found.frames] == [{0: 10, 8: 10}, {0: 20, 8: 20}, {0: 30, 8: 30}]


def test_an_element_that_is_the_same_for_all_is_passed_over() -> None:
    frames = cine([[1, 2], [1, 2]], "TemporalPositionIdentifier")
    for frame in frames:
        frame.header.TriggerTime = 0
    found = instants(frames)
    assert found.by == "temporal position"
    assert len(found.frames) == 2


def test_a_faster_heartbeat_on_one_slice_changes_the_times_and_not_the_phases() -> None:
    slow, fast = [40.0 * n for n in range(25)], [30.0 * n for n in range(25)]
    found = instants(cine([slow, fast, slow]), cycle=True)
    assert at(found.frames[10]) == {0: 400, 8: 300, 16: 400}


def test_a_slice_without_its_first_phase_is_seen_though_the_number_is_right() -> None:
    whole = [40.0 * n for n in range(26)]
    with pytest.raises(GeometryRefused, match=r"image 1 of 25 lies at a trigger time of 0 to 40 ms on different slices"):
        instants(cine([whole[:-1], whole[:-1], whole[1:]]), cycle=True)
    assert len(instants(cine([whole[:-1], whole[:-1], whole[1:]])).frames) == 25  # no heartbeat, nothing to compare


def test_slices_with_unequal_numbers_of_phases_are_refused_with_the_numbers() -> None:
    whole = [40.0 * n for n in range(25)]
    with pytest.raises(GeometryRefused, match="24 to 25 phases per slice"):
        instants(cine([whole, whole[:-1], whole]), cycle=True)


def test_images_that_nothing_tells_apart_are_refused() -> None:
    with pytest.raises(GeometryRefused, match="4 images at 2 positions, which neither trigger time nor"):
        instants(cine([[10, 10], [10, 20]]))
    lost = cine([[10, 20], [10, 20]])
    del lost[0].header.ImagePositionPatient
    with pytest.raises(GeometryRefused, match="without a position"):
        instants(lost)


def test_one_image_per_position_is_one_instant() -> None:
    frames = cine([[10], [40], [20]])
    assert instants(frames).frames == [frames]
