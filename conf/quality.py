"""Quality parameters of images: what there is, and the limits that a study may set on them.

A limit is a fixed number that stands in the study. Nothing is judged by the other patients of a hospital: a patient who comes
or goes would move the others in or out, which patient-level privacy forbids.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from conf.frozen import Frozen

Better = Literal["high", "low", ""]


class Metric(NamedTuple):
    """One parameter: its unit, what it says, what measures it, and which side is the better one (empty: neither)."""

    unit: str
    words: str
    of: tuple[Literal["MR", "CT"], ...]
    better: Better


_BOTH: tuple[Literal["MR", "CT"], ...] = ("MR", "CT")
METRICS = {
    "slices": Metric("", "slices", _BOTH, ""),
    "pixel_mm": Metric("mm", "pixel size, the larger of both", _BOTH, ""),
    "slice_spacing_mm": Metric("mm", "from slice to slice", _BOTH, ""),
    "slice_gap_mm": Metric("mm", "spacing less slice thickness; negative where slices overlap", _BOTH, "low"),
    "anisotropy": Metric("", "slice spacing over pixel size", _BOTH, "low"),
    "truncation": Metric("", "share of the field's rim that lies in the body", _BOTH, "low"),
    "noise_sigma": Metric("", "noise in tissue, grey values", ("MR",), ""),
    "snr": Metric("", "tissue over noise in tissue", ("MR",), "high"),
    "snr_air": Metric("", "tissue over noise in air (Dietrich)", ("MR",), "high"),
    "cnr": Metric("", "largest difference of two drawn structures over noise", ("MR",), "high"),
    "uniformity": Metric("", "evenness of the sensitivity over tissue, 1 is even", ("MR",), "high"),
    "ghosting": Metric("", "amplitude of the strongest ghost over what it copies", ("MR",), "low"),
    "air_artifacts": Metric("", "share of the air brighter than noise", ("MR",), "low"),
    "blur_mm": Metric("mm", "width of edges, with one pixel of the measuring filter", ("MR",), "low"),
    "noise_tissue_hu": Metric("HU", "noise in soft tissue", ("CT",), "low"),
    "noise_air_hu": Metric("HU", "noise in air", ("CT",), "low"),
    "air_hu": Metric("HU", "median of air, -1000 is right", ("CT",), ""),
    "metal_fraction": Metric("", "share of the body over 3000 HU", ("CT",), "low"),
}
"""What `fl_client.quality` measures, in the order in which it is told."""

Series = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_=-]{0,63}$")]


class Limit(Frozen):
    """What one parameter may be, inclusive.

    Where it can't be measured (air that a scanner blanked out says nothing of ghosts) nothing speaks against the patient, who
    is used; `unmeasured: leave_out` wants evidence instead, and loses everybody of such a scanner.
    """

    min: float | None = None
    max: float | None = None
    unmeasured: Literal["use", "leave_out"] = "use"

    @model_validator(mode="after")
    def _is_a_limit(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a limit needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: nobody could be within")
        return self

    def __str__(self) -> str:
        """In words, such as `at least 10`."""
        parts = []
        if self.min is not None:
            parts.append(f"at least {self.min:g}")
        if self.max is not None:
            parts.append(f"at most {self.max:g}")
        return " and ".join(parts) + (", and measured" if self.unmeasured == "leave_out" else "")


class QualityLimits(Frozen):
    """Limits by series and parameter: `{"series": {"cine_ed": {"snr": {"min": 10}}}}`.

    A series that a patient doesn't have is not judged: whether it is needed is the task's business.
    """

    series: Annotated[dict[Series, Annotated[dict[str, Limit], Field(min_length=1)]], Field(min_length=1, max_length=32)]

    @model_validator(mode="after")
    def _parameters_exist(self) -> Self:
        for name, limits in self.series.items():
            unknown = sorted(limits.keys() - METRICS.keys())
            if unknown:
                raise ValueError(f"{name}: no quality parameter {unknown[0]!r}; there are {', '.join(METRICS)}")
        return self

    def each(self) -> Iterator[tuple[str, str, Limit]]:
        """Every limit with its series and parameter."""
        for name, limits in sorted(self.series.items()):
            for metric, limit in sorted(limits.items()):
                yield name, metric, limit

    def __str__(self) -> str:
        """The limits in words, for the person who approves them."""
        return "; ".join(f"{metric} of {name} {limit}" for name, metric, limit in self.each())
