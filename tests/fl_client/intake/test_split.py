from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from fl_client.intake.aspects import b_value, component
from fl_client.intake.split import Part, asked_for, one_part, one_time
from fl_client.intake.volume import Frame, GeometryRefused

AXIAL, CORONAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]
Headers = list[Dataset]


def slices(count: int = 5, **elements: object) -> Headers:
    """Axial slices 8 mm apart that share these elements."""
    headers = []
    for index in range(count):
        header = Dataset()
        header.SOPInstanceUID = f"1.2.{index}"
        header.ImageOrientationPatient, header.ImagePositionPatient = AXIAL, [-10, 20, 8.0 * index]
        header.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        for name, value in elements.items():
            setattr(header, name, value)
        headers.append(header)
    return headers


def part(headers: Headers, **wanted: object) -> tuple[Headers, list[str]]:
    """What one_part takes, and the reasons for the rest."""
    split = one_part([Frame(Path(), header) for header in headers], Part.model_validate(wanted))
    return [frame.header for frame in split.frames], [reason for _, reason in split.aside]


def planes(*counts: int) -> Headers:
    """So many slices each of axial, coronal and sagittal orientation."""
    axial, coronal, sagittal = (slices(count) for count in counts)
    for index, header in enumerate(coronal):
        header.ImageOrientationPatient, header.ImagePositionPatient = CORONAL, [-10, 8.0 * index, 20]
    for index, header in enumerate(sagittal):
        header.ImageOrientationPatient, header.ImagePositionPatient = SAGITTAL, [8.0 * index, -10, 20]
    return axial + coronal + sagittal


def test_one_volume_is_left_whole() -> None:
    headers = slices(EchoTime="1.6", TriggerTime="40")
    assert part(headers) == (headers, [])


def test_localizers_among_the_slices_are_split_off_and_named() -> None:
    stack, scouts = slices(), slices(3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=CORONAL)
    assert part(scouts + stack) == (stack, ["3 images of a localizer among the slices, by ImageType"])
    with pytest.raises(GeometryRefused, match="all 3 images are localizers"):
        part(scouts)
    assert not any(asked_for(header, Part()) for header in scouts)
    assert part(scouts, image_type=["LOCALIZER"])[0] == scouts


@pytest.mark.parametrize(
    ("others", "name"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "phase"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "R_IR", "R", "IR"]}, "real"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "I_FFE", "I", "FFE"]}, "imaginary"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "VELOCITY", "NONE"]}, "phase"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "T1", "NONE"], "ComplexImageComponent": "PHASE"}, "phase"),
    ],
)
def test_of_the_complex_signal_the_magnitude_is_taken_unless_another_part_is_asked_for(
    others: dict[str, object], name: str
) -> None:
    magnitude, other = slices(), slices(**others)
    assert component(other[0]) == name
    taken, reasons = part(magnitude + other)
    assert taken == magnitude
    assert reasons == [f"5 {name} images beside the magnitude; image_type in the series rule would ask for them"]
    word = str(others.get("ComplexImageComponent") or others["ImageType"][2])  # type: ignore[index]
    assert part(magnitude + other, image_type=[word])[0] == other


def test_ge_says_the_part_of_the_signal_in_an_element_of_its_own() -> None:
    headers = slices(2)
    for header, number in zip(headers, (0, 1), strict=True):
        header.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x2F, "SS", number)
        header.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    assert [component(header) for header in headers] == ["magnitude", "phase"]


def test_without_a_magnitude_the_rule_has_to_say_which_part() -> None:
    real = slices(ImageType=["ORIGINAL", "PRIMARY", "R", "IR"])
    phase = slices(ImageType=["ORIGINAL", "PRIMARY", "P", "IR"])
    with pytest.raises(GeometryRefused, match="5 phase, 5 real images in one series and no magnitude; say image_type"):
        part(real + phase)
    with pytest.raises(GeometryRefused, match=r"no image has ADC in its ImageType; there are 5 ORIGINAL\\PRIMARY\\R\\IR"):
        part(real, image_type=["ADC"])


def test_original_images_are_taken_before_derived_ones_and_two_kinds_of_derived_ones_are_refused() -> None:
    original = slices(ImageType=["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"])
    adc, trace = (slices(ImageType=["DERIVED", "PRIMARY", "DIFFUSION", name]) for name in ("ADC", "TRACEW"))
    assert part(original + adc + trace) == (original, ["derived images beside the original ones: 10 DERIVED"])
    with pytest.raises(GeometryRefused, match=r"several kinds .* 5 DERIVED\\PRIMARY\\DIFFUSION\\ADC, 5 DERIVED"):
        part(adc + trace)
    assert part(original + adc + trace, image_type=["ADC"])[0] == adc


def test_scouts_beside_one_stack_are_split_off_by_their_orientation() -> None:
    headers = planes(5, 1, 1)
    taken, reasons = part(headers)
    assert taken == headers[:5]
    assert reasons == [
        "images of another orientation than the stack: coronal (1 image at 1 position), sagittal (1 image at 1 position)"
    ]


@pytest.mark.parametrize("counts", [(5, 4, 0), (5, 5, 5), (1, 1, 1), (2, 1, 0)])
def test_planes_of_which_none_is_the_stack_are_refused_with_what_there_is(counts: tuple[int, int, int]) -> None:
    headers = planes(*counts)
    with pytest.raises(GeometryRefused, match=r"orientations in one series, such as a localizer among .* say plane") as refused:
        part(headers)
    assert f"axial ({counts[0]} image" in str(refused.value)
    assert part(headers, plane="axial")[0] == headers[: counts[0]]
    with pytest.raises(GeometryRefused, match="0 stacks are sagittal"):
        part(planes(5, 4, 0), plane="sagittal")


def test_an_oblique_stack_is_named_after_the_nearest_plane() -> None:
    short_axis = slices(ImageOrientationPatient=[0.6, 0.5, -0.6245, 0.2, 0.65, 0.7331])
    assert len(part(short_axis, plane="sagittal")[0]) == 5  # its normal is (0.77, -0.56, 0.29)


def echoes(*times: str, **elements: object) -> Headers:
    return [header for time in times for header in slices(EchoTime=time, **elements)]


def test_several_echoes_are_refused_until_the_rule_names_one() -> None:
    headers = echoes("4.6", "2.3", "6.9")
    with pytest.raises(GeometryRefused, match=r"^3 echoes: 2\.3 ms, 4\.6 ms, 6\.9 ms; say echo in the series rule$"):
        part(headers)
    taken, reasons = part(headers, echo=2)
    assert {str(header.EchoTime) for header in taken} == {"4.6"}
    assert reasons == ["10 images of other echoes than number 2 of 3 (2.3 ms, 4.6 ms, 6.9 ms)"]
    with pytest.raises(GeometryRefused, match="echo 4 is asked for; there are 3"):
        part(headers, echo=4)
    with pytest.raises(GeometryRefused, match="echo 2 is asked for; there is 1"):
        part(slices(EchoTime="1.6"), echo=2)


def test_echo_times_that_a_scanner_adapts_a_little_are_one_echo() -> None:
    headers = slices()
    for header, time in zip(headers, ("1.60", "1.61", "1.62", "1.60", "1.66"), strict=True):
        header.EchoTime = time
    assert part(headers)[0] == headers


def test_echoes_without_times_are_told_by_their_numbers() -> None:
    headers = slices(EchoNumbers="1") + slices(EchoNumbers="2")
    with pytest.raises(GeometryRefused, match="2 echoes: number 1, number 2; say echo"):
        part(headers)
    assert part(headers, echo=1)[0] == headers[:5]


def by_siemens(header: Dataset, value: int) -> None:
    header.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", value)


def by_ge(header: Dataset, value: int) -> None:
    header.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x39, "IS", [1_000_000_000 + value, 8, 0, 0])


def by_philips(header: Dataset, value: int) -> None:
    header.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "FL", float(value))


def by_standard(header: Dataset, value: int) -> None:
    header.DiffusionBValue = float(value)


@pytest.mark.parametrize("write", [by_standard, by_siemens, by_ge, by_philips])
def test_b_values_are_told_apart_whoever_wrote_them(write: Callable[[Dataset, int], None]) -> None:
    headers = slices() + slices() + slices()
    for index, header in enumerate(headers):
        write(header, (0, 500, 1000)[index // 5])
    assert [b_value(header) for header in headers[::5]] == [0, 500, 1000]
    with pytest.raises(GeometryRefused, match=r"3 b-values: 0, 500, 1000 s/mm²; say b_value in the series rule"):
        part(headers)
    taken, reasons = part(headers, b_value=500)
    assert taken == headers[5:10]
    assert reasons == ["10 images of other b-values than 500, of 0, 500, 1000 s/mm²"]
    with pytest.raises(GeometryRefused, match="b-value 800 is asked for; there are 0, 500, 1000"):
        part(headers, b_value=800)


def test_a_series_without_diffusion_has_no_b_value_to_ask_for() -> None:
    with pytest.raises(GeometryRefused, match="b-value 1000 is asked for; there is 0"):
        part(slices(), b_value=1000)


def test_gradient_directions_are_told_apart() -> None:
    headers = [
        header
        for number, direction in enumerate(([1, 0, 0], [0, 1, 0], [0, 0, 1]))
        for header in slices(DiffusionBValue=1000.0, DiffusionGradientOrientation=direction, InstanceNumber=number + 1)
    ]
    with pytest.raises(GeometryRefused, match=r"3 gradient directions: 1\.00/0\.00/0\.00, .*; say direction"):
        part(headers)
    assert part(headers, direction=3)[0] == headers[10:]


def test_the_parts_of_a_rule_act_together() -> None:
    phase = echoes("2.3", "4.6", ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])
    magnitude = echoes("2.3", "4.6")
    taken, reasons = part(phase + magnitude, echo=2)
    assert taken == magnitude[5:]
    assert len(reasons) == 2


def test_images_that_differ_in_time_are_refused_until_the_rule_names_a_time_point() -> None:
    frames = [Frame(Path(), header) for time in ("100", "180", "260") for header in slices(InversionTime=time)]
    with pytest.raises(
        GeometryRefused, match="3 images at each of 5 positions, which differ in inversion time; say time_point"
    ):
        one_time(frames, Part())
    assert one_time(frames, Part(time_point=2)) == frames[5:10]
    with pytest.raises(GeometryRefused, match="time_point 4 is asked for; there are 3"):
        one_time(frames, Part(time_point=4))


def test_a_time_that_changes_from_slice_to_slice_splits_nothing() -> None:
    frames = [Frame(Path(), header) for header in slices()]
    for number, frame in enumerate(frames):
        frame.header.TriggerTime, frame.header.InversionTime = str(600 + number), str(280 + 10 * number)
    assert one_time(frames, Part()) == frames


def test_images_that_differ_in_nothing_are_left_to_the_geometry_gate() -> None:
    frames = [Frame(Path(), header) for header in slices() + slices(1)]
    assert one_time(frames, Part()) == frames


def test_a_word_that_no_image_can_have_after_de_identification_is_refused_in_the_rule() -> None:
    with pytest.raises(ValueError, match="MEIER: no word of ImageType that passes de-identification"):
        Part(image_type=("M", "MEIER"))


def test_of_a_cine_with_long_axis_views_the_short_axis_stack_is_left() -> None:
    headers = [header for phase in range(3) for header in planes(5, 1, 1) if not setattr(header, "TriggerTime", 40 * phase)]
    taken, _ = part(headers)
    assert len(taken) == 15
    assert {tuple(header.ImageOrientationPatient) for header in taken} == {tuple(AXIAL)}
