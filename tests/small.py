"""Settings that several folders of tests share; conftest.py can't be imported by name, since folders have their own."""

SMALL_TASK = {
    "name": "segmentation",
    "voxels": 16,
    "field_mm": 80,
    "roi_mm": None,
    "working_mm": 4,
    "channels": [4, 8],
    "strides": [2],
    "groups": 2,
    "head_channels": 4,
}
"""The segmentation task at a size that trains in milliseconds."""
