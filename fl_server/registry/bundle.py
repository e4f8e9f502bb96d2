"""A segmentation model as a MONAI bundle, which `python -m monai.bundle run` runs without konsil.

Loading, choosing classes and saving are MONAI's transforms. Normalisation and the two looks have no equal there, and keeping
the largest piece would need another package: konsil's own files are copied into `scripts/`, unchanged but for their imports.
Layout: MONAI Bundle Specification, docs.monai.io/en/stable/mb_specification.html.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from fl_server.registry import inferer, looks
from fl_server.registry.card import Card, page
from fl_server.registry.learned import Learned
from tasks import case
from tasks.segmentation import infer, look, partial, prepare
from tasks.segmentation.export import export_torchscript
from tasks.segmentation.settings import Settings
from tasks.segmentation.task import SegmentationTask
from tasks.weights import save

META_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
COPIED: tuple[ModuleType, ...] = (case, look, partial, prepare, infer, looks, inferer)
IMPORTS = (
    (r"^from tasks\.segmentation\.settings import Settings$", "from .looks import Looks as Settings"),
    (r"^from tasks\.task import Arrays$", "from .looks import Arrays"),
    (
        r"^from (?:tasks\.segmentation|fl_server\.registry|tasks)\.(case|look|partial|prepare|infer|looks) import",
        r"from .\1 import",
    ),
)
"""What a copied file imports from konsil, and what it imports in a bundle."""
_OF_KONSIL = re.compile(r"^\s*(?:from|import) (?:tasks|conf|fl_server|fl_client|simulation)\b.*", re.MULTILINE)
LOOKS = (
    *("spatial_dims", "structures", "voxels", "field_mm", "roi_mm", "located", "working_voxels", "working_mm"),
    *("working_field_mm", "test_time_rotations", "keep_largest"),
)
RUN = "python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir MASKS"


def write(learned: Learned, card: Card, folder: Path) -> None:
    """Write the bundle into an empty folder. Raises `ValueError` for a task that is no segmentation."""
    task = learned.task
    if not isinstance(task, SegmentationTask):
        raise ValueError(f"a MONAI bundle is made of segmentation models; task {learned.settings['name']} has none")
    settings = task.settings
    model = learned.network()
    for name in ("configs", "docs", "models", "scripts"):
        (folder / name).mkdir()
    save(model.state_dict(), folder / "models" / "model.pt")
    export_torchscript(model, settings, folder / "models" / "model.ts")
    write_scripts(folder / "scripts")
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata(settings, card), indent=1))
    (folder / "configs" / "inference.json").write_text(json.dumps(inference(settings), indent=1))
    shutil.copyfile(Path(__file__).parent / "logging.txt", folder / "configs" / "logging.conf")
    shutil.copyfile(Path(__file__).parent / "license.txt", folder / "LICENSE")
    (folder / "docs" / "README.md").write_text(readme(settings, card))
    (folder / "docs" / "card.md").write_text(page(card))
    (folder / "docs" / "card.json").write_text(card.model_dump_json(indent=1))


def write_scripts(folder: Path) -> None:
    """Copy konsil's inference into a package that imports nothing of konsil."""
    for module in COPIED:
        text = inspect.getsource(module)
        for old, new in IMPORTS:
            text = re.sub(old, new, text, flags=re.MULTILINE)
        if left := _OF_KONSIL.search(text):
            raise RuntimeError(f"{module.__name__} says {left[0]!r}, which a bundle has not got")
        (folder / f"{module.__name__.rpartition('.')[2]}.py").write_text(text)
    said = '"""konsil\'s inference, copied from konsil; Apache License 2.0."""\n\nfrom .inferer import TwoLooks as TwoLooks\n'
    (folder / "__init__.py").write_text(said)


def inference(settings: Settings) -> dict[str, Any]:
    """configs/inference.json: every NIfTI image of a folder in, a mask on the image's own grid out."""
    convolution = "torch.nn.Conv2d" if settings.spatial_dims == 2 else "torch.nn.Conv3d"
    after: list[dict[str, Any]] = [{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}]
    values = list(settings.structures.values())
    if values != list(range(1, settings.classes)):
        labels = {"orig_labels": list(range(settings.classes)), "target_labels": [0, *values]}
        after.append({"_target_": "MapLabelValued", "keys": "pred", **labels})
    saved = {"output_dir": "@output_dir", "output_postfix": "seg", "output_dtype": "$np.uint8", "resample": False}
    after.append({"_target_": "SaveImaged", "keys": "pred", **saved, "separate_folder": False})
    return {
        "imports": ["$import glob", "$import collections", "$import numpy as np", "$import scripts"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii*'))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "body": {
            "_target_": "UNet",
            "spatial_dims": settings.spatial_dims,
            "in_channels": 1,
            "out_channels": settings.head_channels,
            "channels": list(settings.channels),
            "strides": list(settings.strides),
            "num_res_units": settings.num_res_units,
            "norm": ["group", {"num_groups": settings.groups}],
        },
        "activation": {"_target_": "torch.nn.PReLU"},
        "head": {
            "_target_": convolution,
            "in_channels": settings.head_channels,
            "out_channels": settings.classes,
            "kernel_size": 1,
        },
        "network_def": "$torch.nn.Sequential(collections.OrderedDict(body=@body, activation=@activation, head=@head))",
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0},
        "inferer": {"_target_": "scripts.TwoLooks", **{name: getattr(settings, name) for name in LOOKS}},
        "postprocessing": {"_target_": "Compose", "transforms": after},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(settings: Settings, card: Card) -> dict[str, Any]:
    """configs/metadata.json, as the specification wants it."""
    versions = {name: importlib.metadata.version(name) for name in ("monai", "torch", "numpy")}
    packages = ("pytorch-ignite", "nibabel", "scipy")
    structures = ", ".join(settings.structures)
    tensor = {"type": "image", "modality": "MR", "spatial_shape": list(settings.voxels), "dtype": "float32"}
    classes = {"0": "background", **{str(number): name for number, name in enumerate(settings.structures, start=1)}}
    version = f"{card.version or 0}.0.0"
    return {
        "schema": META_SCHEMA,
        "version": version,
        "changelog": {version: card.remark or f"model of the study {card.study}"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"].partition("+")[0],
        "numpy_version": versions["numpy"],
        "required_packages_version": {name: importlib.metadata.version(name) for name in packages},
        "name": card.name,
        "task": f"Segmentation of {structures} in {settings.spatial_dims}D images",
        "description": f"Trained by {len(card.sites)} hospitals without moving images; verdict of the study: {card.verdict}. "
        f"Privacy: {card.privacy[0]}",
        "authors": f"the coordinator of the study {card.study} and {', '.join(site.name for site in card.sites)}",
        "copyright": "the hospitals that trained it",
        "data_source": "not public: the images stayed in the hospitals" if not card.rehearsal else "generated",
        "data_type": "nifti",
        "image_classes": f"one channel; series {', '.join(settings.series)}",
        "pred_classes": f"mask values {', '.join(f'{value} {name}' for name, value in settings.structures.items())}",
        "eval_metrics": {f"{score.metric} ({score.of})": score.value for score in card.scores},
        "intended_use": card.intended_use,
        "references": ["Kerfoot et al. 2019, doi:10.1007/978-3-030-12029-0_40"],
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "format": "magnitude",
                    "num_channels": 1,
                    "value_range": [0, 1.5],
                    "is_patch_data": True,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    **tensor,
                    "format": "labels",
                    "num_channels": settings.classes,
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": classes,
                }
            },
        },
    }


def readme(settings: Settings, card: Card) -> str:
    """docs/README.md, with the headings that MONAI's model zoo asks for."""
    field = " x ".join(f"{mm:g}" for mm in settings.field_mm)
    close = "and no closer look"
    if settings.roi_mm:
        close = f"then {' x '.join(f'{mm:g}' for mm in settings.roi_mm)} mm around what was found"
    scores = [
        f"- {score.metric}, {score.of}: {score.value:.3f}"
        + ("" if score.low is None else f" (95 % interval {score.low:.3f} to {score.high:.3f})")
        for score in card.scores
    ]
    return "\n".join(
        [
            f"# {card.name}",
            "",
            f"**{card.intended_use}**",
            "",
            "## Model Overview",
            "",
            f"Segments {', '.join(settings.structures)} in {settings.spatial_dims}D images ({', '.join(settings.series)}). "
            f"A residual U-Net with group norm looks at {field} mm in the middle of the image, {close}. "
            "The full card is card.md.",
            "",
            "## Data",
            "",
            "Generated patients." if card.rehearsal else "Patients of the hospitals in card.md; their images are not public.",
            "Input: a NIfTI file of one volume, its axes as the scanner stored them"
            + (", slices last." if settings.spatial_dims == 2 else "."),
            "",
            "## Training configuration",
            "",
            f"Federated, {card.strategy['name']}, {card.rounds} rounds; no configuration to train it with MONAI comes with it.",
            "",
            "## Performance",
            "",
            *(scores or ["No score of this model stands in its study's record."]),
            "",
            "## Commands",
            "",
            "Needs `monai`, `pytorch-ignite`, `fire`, `nibabel` and `scipy`; konsil need not be installed. In this folder:",
            "",
            "```bash",
            RUN,
            "```",
            "",
            "For each NAME.nii.gz in IMAGES a mask NAME_seg.nii.gz on the same grid is written, with the values "
            + ", ".join(f"{value} {name}" for name, value in settings.structures.items())
            + ".",
            "",
            "## Limitations",
            "",
            *(f"- {limit}" for limit in card.limits),
            "- Normalisation and looks are `scripts/`, copied from konsil, not MONAI's transforms: the percentiles are taken "
            "in the middle of the image, and the second look depends on the first.",
            "- models/model.ts holds the network alone; models/model.json says what it takes and gives.",
            "",
            "## Privacy",
            "",
            *(f"- {sentence}" for sentence in card.privacy),
            "",
            "## License",
            "",
            "The scripts are under LICENSE. Terms for the weights are the study's hospitals'.",
            "",
        ]
    )
