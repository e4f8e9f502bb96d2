"""A model for programs that don't have konsil: TorchScript, ONNX, a MONAI bundle, or JSON, in a folder with its card.

Each export is checked against the model before it is there. The folder is sealed: signed where the coordinator's key is at
hand, else only listed.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_server.registry import bundle, onnx_file, seal
from fl_server.registry.card import Card, card_of, page
from fl_server.registry.learned import Learned
from tasks.radiomics.task import ForestTask, PerceptronTask
from tasks.segmentation.export import description, export_torchscript
from tasks.segmentation.task import SegmentationTask

KINDS = ("torchscript", "onnx", "monai", "json")


def offered(learned: Learned) -> tuple[str, ...]:
    """The kinds of export that the model's task has."""
    task = learned.task
    if isinstance(task, SegmentationTask):
        return "torchscript", "onnx", "monai"
    if isinstance(task, PerceptronTask):
        return "torchscript", "onnx"
    return ("json",) if isinstance(task, ForestTask) else ()


def export(
    learned: Learned,
    kind: str,
    to: Path,
    *,
    name: str = "",
    version: int | None = None,
    key: Ed25519PrivateKey | None = None,
) -> list[Path]:
    """Write the model as `kind` into the folder `to`, whole or not at all, and return the files.

    Raises `ValueError` for a kind that the task hasn't got, and for a folder that holds something.
    """
    if kind not in offered(learned):
        there = ", ".join(offered(learned)) or "none"
        raise ValueError(f"no export as {kind} of task {learned.settings['name']}; there is {there}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to} exists and is not empty; --to takes a new folder")
    name = name or learned.record.name
    kept = learned.folder / "card.json"  # of a registered version, with scores that only its run held
    card = Card.model_validate_json(kept.read_text()) if kept.exists() else card_of(learned, name=name, version=version)
    to.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
    try:
        if kind == "monai":
            bundle.write(learned, card, part)
        else:
            writers: dict[str, Callable[[Learned, Path], None]] = {"torchscript": _torchscript, "onnx": _onnx, "json": _forest}
            writers[kind](learned, part / f"{name}{ {'torchscript': '.ts', 'onnx': '.onnx', 'json': '.json'}[kind] }")
            _card(card, part)
        facts = {"name": name, "version": version, "export": kind, "model_sha256": learned.sha256}
        seal.seal(part, {**facts, "study_hash": learned.record.study_hash}, key)
        part.chmod(0o755)
        part.replace(to)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return sorted(path for path in to.rglob("*") if path.is_file())


def _card(card: Card, folder: Path) -> None:
    (folder / "card.md").write_text(page(card))
    (folder / "card.json").write_text(card.model_dump_json(indent=1))


def _torchscript(learned: Learned, path: Path) -> None:
    task, model = learned.task, learned.network()
    if isinstance(task, SegmentationTask):
        export_torchscript(model, task.settings, path)
        return
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is frozen but loads everywhere
        torch.jit.trace(model, _example(task)).save(str(path))  # type: ignore[no-untyped-call]
    path.with_suffix(".json").write_text(json.dumps(_described(task), indent=1))


def _onnx(learned: Learned, path: Path) -> None:
    task = learned.task
    onnx_file.write(learned.network(), _example(task), path)
    path.with_suffix(".json").write_text(json.dumps(_described(task), indent=1))


def _example(task: object) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if isinstance(task, SegmentationTask):
        return torch.rand(2, 1, *task.settings.voxels, generator=generator)
    if isinstance(task, PerceptronTask):
        return torch.rand(2, len(task.settings.columns), generator=generator) * 2 - 1
    raise ValueError("there is no network to export")


def _described(task: object) -> dict[str, Any]:
    if isinstance(task, SegmentationTask):
        return description(task.settings)
    if isinstance(task, PerceptronTask):
        return {
            "schema": "konsil-perceptron/1",
            "input": {"shape": ["rows of any number", len(task.settings.columns)], "dtype": "float32"},
            "columns": [feature.model_dump() for feature in task.settings.columns],
            "scaling": "each column to -1..1 between its bounds, linear or linear in the logarithm; cut off beyond; missing: 0",
            "harmonised": task.settings.harmonisation is not None,
            "output": {"shape": ["rows"], "meaning": "logit of being positive"},
        }
    raise ValueError("there is no network to describe")


def _forest(learned: Learned, path: Path) -> None:
    """The forest, complete: splits and class probabilities of every leaf."""
    task = learned.task
    if not isinstance(task, ForestTask):
        raise ValueError("only a forest is exported as JSON")
    structure, state = task.structure, learned.state
    noise_std = math.sqrt(float(state["noise_variance"][0]))
    leaves = structure.probabilities(state["total"].numpy(), noise_std=noise_std)
    said = {
        "schema": "konsil-forest/1",
        "reading": "A row begins at node 0 and goes from node i to 2i+1 where its value of column feature[i], as float32, is "
        "at most threshold[i] (or missing, where missing_left[i]), else to 2i+2. Node i at or beyond 2^depth - 1 is leaf "
        "i - (2^depth - 1). The forest's answer is the mean of leaf_probabilities over the trees.",
        "columns": [feature.model_dump() for feature in task.settings.columns],
        "harmonised": task.settings.harmonisation is not None,
        "classes": list(structure.settings.classes),
        "depth": structure.settings.depth,
        "noise_std": noise_std,
        "trees": [
            {"feature": f.tolist(), "threshold": t.tolist(), "missing_left": m.tolist(), "leaf_probabilities": p.tolist()}
            for f, t, m, p in zip(structure.feature, structure.threshold, structure.missing_left, leaves, strict=True)
        ],
    }
    path.write_text(json.dumps(said))
