from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.coding import Code

from fl_client.cohort import Cohort
from fl_client.intake.deidentify import discreet
from fl_client.intake.door import Intake
from fl_client.intake.labels import LabelMap
from fl_client.intake.mask import MaskRefused
from fl_client.intake.seg import read_seg
from tasks.case import Case

LetIn = Callable[..., tuple[Intake, Cohort]]
Edit = Callable[..., None]
TISSUE = Code("85756007", "SCT", "Tissue")


def draw(archive: Path, names: Sequence[str], pixels: np.ndarray, kind: str) -> None:
    """A SEG of these segments on the end-diastolic images takes the place of the archive's own."""
    place = next(archive.rglob("cine_ed-mask.dcm"))
    images = sorted(map(pydicom.dcmread, archive.rglob("cine_ed/*.dcm")), key=lambda image: int(image.InstanceNumber))
    with discreet():
        hd.seg.Segmentation(
            source_images=images,
            pixel_array=pixels,
            segmentation_type=kind,
            segment_descriptions=[
                hd.seg.SegmentDescription(
                    segment_number=number,
                    segment_label=name,
                    segmented_property_category=TISSUE,
                    segmented_property_type=TISSUE,
                    algorithm_type="MANUAL",
                )
                for number, name in enumerate(names, 1)
            ],
            series_instance_uid=hd.UID(),
            series_number=5,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="x",
            manufacturer_model_name="x",
            software_versions="1",
            device_serial_number="1",
        ).save_as(place)


def masks_of(let_in: LetIn, archive: Path, series: str) -> np.ndarray:
    intake, cohort = let_in(archive)
    assert not intake.refused
    volume = cohort.case(intake.admitted[0]).volume(series)
    assert volume is not None
    assert volume.mask is not None
    return np.asarray(volume.mask)


def test_a_label_map_seg_reads_like_a_binary_one(archive: Path, case: Case, let_in: LetIn) -> None:
    mask = case.volumes[0].mask
    assert mask is not None
    names = ("LV cavity", "LV myocardium", "RV blood pool")
    draw(archive, names, mask, "LABELMAP")
    assert pydicom.dcmread(next(archive.rglob("cine_ed-mask.dcm"))).SegmentationType == "LABELMAP"
    assert np.array_equal(masks_of(let_in, archive, "cine_ed"), mask)
    draw(archive, names, mask, "BINARY")
    assert np.array_equal(masks_of(let_in, archive, "cine_ed"), mask)


def test_segments_over_each_other_follow_the_label_maps_priority(archive: Path, case: Case, let_in: LetIn) -> None:
    mask = case.volumes[0].mask
    layers = np.stack([np.isin(mask, (1, 2)), mask == 1, mask == 3], axis=-1).astype(np.uint8)
    draw(archive, ("LV myocardium", "LV cavity", "RV blood pool"), layers, "BINARY")
    assert np.array_equal(masks_of(let_in, archive, "cine_ed"), mask)


def test_segments_over_each_other_without_a_priority_are_refused(archive: Path, case: Case, let_in: LetIn) -> None:
    mask = case.volumes[0].mask
    assert mask is not None
    layers = np.stack([mask == 1, mask == 3], axis=-1).astype(np.uint8)
    layers[..., 1] |= mask == 1
    draw(archive, ("LV cavity", "RV blood pool"), layers, "BINARY")
    (reason,) = let_in(archive)[0].refused.values()
    assert (
        "the segmentation can't be read: segments overlap: blood_pool and right_ventricle share 100% of the smaller" in reason
    )


def test_a_seg_without_references_lies_where_its_frame_of_reference_and_voxels_say(
    archive: Path, case: Case, let_in: LetIn, edit: Edit
) -> None:
    def forget(dataset: pydicom.Dataset) -> None:
        del dataset.ReferencedSeriesSequence
        for group in [*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence]:
            if "DerivationImageSequence" in group:
                del group.DerivationImageSequence

    edit(next(archive.rglob("cine_es-mask.dcm")), forget)
    assert np.array_equal(masks_of(let_in, archive, "cine_es"), case.volumes[1].mask)
    edit(next(archive.rglob("cine_es-mask.dcm")), lambda dataset: setattr(dataset, "FrameOfReferenceUID", "1.2.3"))
    (reason,) = let_in(archive)[0].refused.values()
    assert "it refers to no images, and its frame of reference is not that of the images" in reason


def test_what_a_segmentation_does_not_hold_nobody_looked_for(archive: Path, case: Case, let_in: LetIn) -> None:
    mask = case.volumes[0].mask
    draw(archive, ("LV cavity",), (mask == 1).astype(np.uint8), "BINARY")
    intake, cohort = let_in(archive)
    volume = cohort.case(intake.admitted[0]).volume("cine_ed")
    assert volume is not None
    assert volume.annotated == (1,)
    assert np.unique(np.asarray(volume.mask)).tolist() == [0, 1]


def liver(sources: dict[str, list[str | int]], priority: tuple[str, ...] = ()) -> LabelMap:
    code = {"scheme": "99KONSIL", "meaning": "test"}
    structures = {
        name: {"value": number, "sources": texts, "code": {**code, "value": f"T{number}"}}
        for number, (name, texts) in enumerate(sources.items(), 1)
    }
    return LabelMap.model_validate({"structures": structures, "priority": priority})


def test_files_of_other_projects(shared_data: Path) -> None:
    folder = shared_data / "dicom_files"
    if not folder.is_dir():
        pytest.skip(f"no DICOM files at {folder}")
    overlap = pydicom.dcmread(folder / "highdicom/data/test_files/seg_image_ct_binary_overlap.dcm")
    names = [str(item.SegmentLabel) for item in overlap.SegmentSequence]
    map_of = {f"s{number}": [name] for number, name in enumerate(names, 1)}
    with discreet():
        with pytest.raises(MaskRefused, match="segments overlap: s1 and s2 share"):
            read_seg(overlap, liver(map_of))
        drawing = read_seg(overlap, liver(map_of, ("s1", "s2")))
        frames = overlap.pixel_array
        of = [int(g.SegmentIdentificationSequence[0].ReferencedSegmentNumber) for g in overlap.PerFrameFunctionalGroupsSequence]
        assert (drawing.mask == 1).sum() == sum(frames[index].sum() for index, number in enumerate(of) if number == 1)
        assert drawing.notes["overlapping"] > 0
        for name in ("sparse-labelmap-noppv", "sparse-labelmap-ppv5"):
            sparse = pydicom.dcmread(folder / f"dcmqi/data/segmentations/{name}.dcm")
            texts = {
                f"s{int(item.SegmentNumber)}": [str(item.SegmentLabel)] for item in sparse.SegmentSequence if item.SegmentNumber
            }
            mask = read_seg(sparse, liver(texts)).mask
            values = sparse.pixel_array
            for number, item in enumerate((item for item in sparse.SegmentSequence if item.SegmentNumber), 1):
                assert (mask == number).sum() == (values == int(item.SegmentNumber)).sum()
