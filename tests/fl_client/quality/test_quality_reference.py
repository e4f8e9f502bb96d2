"""The range that a hospital chooses to compare its images with: what is refused, and where it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fl_client.__main__ import main
from fl_client.page import people
from fl_client.page.jobs import Jobs
from fl_client.preflight import disk
from fl_client.quality.measure import Quality
from fl_client.quality.plot import quality_plot
from fl_client.quality.reference import Range, Reference, Standing
from fl_client.site import Site

RANGE = {"low": 1.0, "median": 2.0, "high": 3.0, "images": 9}


def write(path: Path, **changed: Any) -> Path:
    path.write_text(yaml.safe_dump({"source": "9 volunteers, 3 T", "ranges": {"cine_ed": {"snr": RANGE}}, **changed}))
    return path


@pytest.fixture
def clinic(hospitals: Any) -> Path:
    """The settings file of a hospital that has chosen `own.yaml` beside it."""
    site = hospitals.site("a")
    write(site.folder / "own.yaml", ranges={"cine_ed": {"pixel_mm": RANGE}})
    path = site.folder / "site.yaml"
    path.write_text(path.read_text() + "quality_reference: own.yaml\n")
    return path


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ranges": {"cine_ed": {"sharpness": RANGE}}}, "cine_ed has no parameter 'sharpness'; there are slices, pixel_mm"),
        ({"ranges": {"cine_ed": {"snr": {**RANGE, "low": 2.5}}}}, "low 2.5, median 2 and high 3 are not in this order"),
        (
            {"ranges": {"cine_ed": {"snr": {**RANGE, "high": float("nan")}}}},
            "ranges.cine_ed.snr.high: Input should be a finite",
        ),
        ({"ranges": {"cine_ed": {"snr": {**RANGE, "images": 0}}}}, "ranges.cine_ed.snr.images: Input should be greater"),
        ({"ranges": {}}, "ranges: Dictionary should have at least 1 item"),
        ({"ranges": {"cine ed": {"snr": RANGE}}}, "may hold only letters, digits, "),
        ({"source": ""}, "source: String should have at least 1 character"),
        ({"more": 1}, "more: no such setting"),
    ],
)
def test_a_file_that_is_no_reference_is_refused_with_its_name_and_what_would_be_right(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    path = write(tmp_path / "own.yaml", **changed)
    with pytest.raises(ValueError, match=r"own\.yaml: ") as refused:
        Reference.load(path)
    assert words in str(refused.value)


def test_the_settings_say_which_one_and_the_command_and_the_page_obey(clinic: Path, capsys: Any) -> None:
    site = Site.load(clinic)
    assert site.quality_reference == clinic.parent / "own.yaml"
    assert main(["--site", str(clinic), "quality"]) == 0
    told = capsys.readouterr().out
    assert "reference: 9 volunteers, 3 T" in told
    assert "1 to 3" in told
    jobs = Jobs()
    known = people.measured(site, jobs, wait_s=60).value
    assert (known.reference.source, known.trouble) == ("9 volunteers, 3 T", "")
    assert all(place.range is None for places in known.places.values() for place in places if place.metric != "pixel_mm")


def test_a_reference_that_is_missing_hides_nothing_else_and_is_told(clinic: Path) -> None:
    (clinic.parent / "own.yaml").unlink()
    site = Site.load(clinic)
    known = people.measured(site, Jobs(), wait_s=60).value
    assert known.reference is None
    assert "own.yaml is missing: it was to hold the reference range of image quality" in known.trouble
    assert known.series == ("cine_ed", "cine_es")
    assert people.plot(known, "cine_ed").startswith(b"\x89PNG")


def test_check_says_what_to_mend(clinic: Path) -> None:
    site = Site.load(clinic)

    def told() -> list[str]:
        return [finding.text for finding in disk(site, clinic) if finding.text.startswith("quality_reference")]

    assert told() == []
    write(clinic.parent / "own.yaml", source="")
    assert "source: String should have" in told()[0]
    (clinic.parent / "own.yaml").unlink()
    assert told()[0].endswith("take the line out, or put the file there")


@pytest.mark.parametrize(
    ("metric", "value", "side", "concerns"),
    [
        ("snr", 0.5, "below", True),
        ("snr", 3.5, "above", False),  # more signal over noise than the reference is no fault
        ("ghosting", 0.5, "below", False),
        ("ghosting", 3.5, "above", True),
        ("slices", 0.5, "below", True),
        ("slices", 3.5, "above", True),
        ("snr", 2.0, "within", False),
    ],
)
def test_what_is_better_than_the_reference_is_told_and_is_no_concern(
    metric: str, value: float, side: str, concerns: bool
) -> None:
    place = Standing("p", "cine_ed", metric, value, 50.0, 0.0, Range(**RANGE))
    assert (place.side, place.concerns) == (side, concerns)


def test_ratios_over_a_wide_range_are_drawn_on_a_logarithmic_axis() -> None:
    values = ({"snr": 5.0, "uniformity": 0.1}, {"snr": 20.0, "uniformity": 0.9})
    found = {f"p{number}": {"cine_ed": Quality(of, {})} for number, of in enumerate(values)}
    wide = Reference(source="x", ranges={"cine_ed": {"snr": Range(low=1, median=10, high=100, images=3)}})
    axes = quality_plot(found, "cine_ed", reference=wide).axes
    assert [axis.get_xscale() for axis in axes] == ["log", "linear"]
    low, high = axes[0].get_xlim()
    assert low < 1 < 100 < high
    narrow = {patient: {"cine_ed": Quality({"snr": 10.0 + number}, {})} for number, patient in enumerate("abc")}
    assert quality_plot(narrow, "cine_ed").axes[0].get_xscale() == "linear"
