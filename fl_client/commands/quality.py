"""Quality of the cohort's images: `konsil-site quality`."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fl_client.commands import Commands
from fl_client.site import Site

if TYPE_CHECKING:
    from fl_client.quality.reference import Range, Reference, Standing

TOLD = 20
"""So many outliers are named; the table (--csv) has them all."""


def add(commands: Commands) -> None:
    """The command and its options."""
    command = commands.add_parser("quality", help="quality of the images, against a reference range; it stays here")
    command.add_argument("--patient", help="pseudonym: where this patient stands")
    told = "YAML file of another reference range (default: quality_reference of site.yaml, else konsil's own)"
    command.add_argument("--reference", type=Path, help=told)
    command.add_argument("--csv", type=Path, help="write every value to this new file")
    command.add_argument("--plot", type=Path, help="a new folder for one picture (PNG) of each series")
    command.add_argument("--write-reference", type=Path, help="write the cohort's own ranges to this new file")
    command.set_defaults(run=quality)


def quality(site: Site, options: argparse.Namespace) -> int:
    """Print the cohort's ranges beside the reference, and who is far from the rest; 1 if the patient asked for has no images.

    Raises `OSError` for files that are there already or can't be written.
    """
    from fl_client.cohort import Cohort
    from fl_client.quality.reference import Reference, found_in, ranges_of, standings  # here: image filters take time to import

    reference = Reference.load(options.reference or site.quality_reference)
    found, unreadable = found_in(Cohort(site.cohort_folder))
    rows = standings(found, reference)
    if options.csv:
        _write(options.csv, rows)
    if options.write_reference:
        source = f"{len(found)} patients of {site.name}"
        Reference(source=source, ranges=ranges_of(found)).save(options.write_reference)
    if options.plot:
        from fl_client.quality.plot import quality_plot  # here: matplotlib takes a second to import

        options.plot.mkdir(parents=True)
        for series in dict.fromkeys(row.series for row in rows):
            quality_plot(found, series, reference=reference).savefig(options.plot / f"{series}.png", dpi=110)
    for patient, reason in unreadable.items():
        print(f"{patient} can't be read: {reason}")
    if options.patient:
        return _tell_patient(options.patient, rows, {s: q.why for s, q in found.get(options.patient, {}).items()})
    print(f"{len(found)} patients with images at {site.name}; reference: {reference.source}")
    _tell(ranges_of(found), reference)
    far = [row for row in rows if row.outlying]
    if far:
        print(f"{len({row.patient for row in far})} patients are far from the others in something (modified z-score over 3.5):")
    for row in sorted(far, key=lambda row: -abs(row.z))[:TOLD]:
        print(f"  {_in_words(row)}")
    if len(far) > TOLD:
        print(f"  and {len(far) - TOLD} more values; --csv writes them all")
    return 0


def _tell(ranges: dict[str, dict[str, Range]], reference: Reference) -> None:
    for series, metrics in ranges.items():
        print(f"{series:<17} {'median':>9} {'5 %':>9} {'95 %':>9}   images   reference 5 % to 95 %")
        for metric, here in metrics.items():
            known = reference.ranges.get(series, {}).get(metric)
            there = f"{known.low:g} to {known.high:g}" if known else "-"
            print(f"  {metric:<15} {here.median:>9.4g} {here.low:>9.4g} {here.high:>9.4g}   {here.images:>6}   {there}")


def _tell_patient(patient: str, rows: list[Standing], why: dict[str, Mapping[str, str]]) -> int:
    own = [row for row in rows if row.patient == patient]
    if not own:
        print(f"no patient '{patient}' with images in this cohort")
        return 1
    for row in own:
        print(_in_words(row))
    for series, reasons in why.items():
        for metric, reason in sorted(reasons.items()):
            print(f"{patient} {series} {metric}: not measured: {reason}")
    return 0


def _in_words(row: Standing) -> str:
    told = f"{row.patient} {row.series} {row.metric} {row.value:.4g}: percentile {row.percentile:.0f} of this cohort"
    if row.range is not None:
        told += f", {row.side} the reference ({row.range.low:g} to {row.range.high:g})"
    return told + (f"; OUTLIER, z {row.z:.1f}" if row.outlying else "")


def _write(path: Path, rows: list[Standing]) -> None:
    with open(path, "x", newline="") as file:
        table = csv.writer(file)
        table.writerow(("patient", "series", "metric", "value", "percentile", "z", "outlier", "reference"))
        for row in rows:
            table.writerow((*row[:4], f"{row.percentile:.1f}", f"{row.z:.2f}", int(row.outlying), row.side))
