"""Features of many images: each computed once ever, several at a time, and written as a table that opens anywhere.

A result is kept under a hash of all that it depends on: the image's values and spacing, the regions, the parameters, the
engine and this package. Another file with the same voxels is the same image; a parameter that is changed and changed back
finds its old results.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import SimpleITK as sitk

from tasks.radiomics.features import Extractor, Features, RegionRefused, to_volume, version

Source: TypeAlias = sitk.Image | Path | str
Advance = Callable[[int, int], None]
"""Called with (images done, images in all)."""


class Kept:
    """An extractor that never computes the same features twice: results lie as JSON files in `folder`."""

    def __init__(self, extractor: Extractor, folder: Path) -> None:
        self.extractor = extractor
        self.folder = folder

    def features(self, image: Source, mask: Source, labels: Sequence[int] | None = None) -> dict[int, Features]:
        """As `Extractor.features`, from the folder if they lie there."""
        image, mask = to_volume(image, "image"), to_volume(mask, "mask")
        place = self.folder / f"{self._key(image, mask, labels)}.json"
        try:
            kept = json.loads(place.read_text())
            return {int(label): dict(values) for label, values in kept.items()}
        except (FileNotFoundError, ValueError, TypeError, AttributeError):  # a file that is damaged is written anew
            pass
        found = self.extractor.features(image, mask, labels)
        text = json.dumps(found)
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{uuid4().hex}.part"
        try:
            part.write_text(text)
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
        return found

    def _key(self, image: sitk.Image, mask: sitk.Image, labels: Sequence[int] | None) -> str:
        sha = hashlib.sha256(self.extractor.hash.encode())
        for each in (image, mask):
            grid = [each.GetPixelIDTypeAsString(), each.GetSize(), each.GetSpacing(), each.GetOrigin(), each.GetDirection()]
            sha.update(json.dumps(grid).encode())
            sha.update(sitk.GetArrayViewFromImage(each).tobytes())
        sha.update(json.dumps(None if labels is None else [int(label) for label in labels]).encode())
        return sha.hexdigest()


def extract(
    pairs: Mapping[str, tuple[Path, Path]],
    extractor: Extractor,
    *,
    kept: Path,
    pool: Executor,
    advance: Advance | None = None,
) -> Iterator[tuple[str, dict[int, Features] | str]]:
    """Features by region of each named pair of image and mask, as they are ready, or in words why there are none."""
    futures = {pool.submit(_one, name, image, mask, extractor, kept): name for name, (image, mask) in pairs.items()}
    try:
        for done, future in enumerate(as_completed(futures), start=1):
            yield future.result()
            if advance:
                advance(done, len(futures))
    finally:
        for future in futures:
            future.cancel()


def _one(name: str, image: Path, mask: Path, extractor: Extractor, kept: Path) -> tuple[str, dict[int, Features] | str]:
    try:
        return name, Kept(extractor, kept).features(image, mask)
    except RegionRefused as reason:
        return name, str(reason)


def write_csv(rows: Iterable[tuple[str, int, Features]], path: Path, *, about: Extractor) -> None:
    """One line per (case, region), columns `case`, `region` and the features; beside it `<name>.json` tells what made them.

    Undefined and missing values are empty cells, which pandas and R read as missing.
    """
    rows = list(rows)
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", newline="") as file:
        writer = csv.writer(file)
        # an image may lack some: of a few slices there is no Laplacian
        names = list(dict.fromkeys(name for _, _, values in rows for name in values)) or list(about.names)
        writer.writerow(["case", "region", *names])
        for case, region, values in rows:
            found = [values.get(name, math.nan) for name in names]
            writer.writerow([case, region, *("" if math.isnan(value) else repr(value) for value in found)])
    part.replace(path)
    header = {"extraction": about.hash, "engine": version(), "parameters": about.settled, "rows": len(rows)}
    path.with_suffix(".json").write_text(json.dumps(header, indent=2) + "\n")
