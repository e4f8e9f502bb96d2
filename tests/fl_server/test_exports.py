import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from learned_runs import HEART, generated, learn, write_run

from fl_server.registry import seal
from fl_server.registry.bundle import write_scripts
from fl_server.registry.export import export, offered
from fl_server.registry.inferer import TwoLooks
from fl_server.registry.learned import of_run
from tasks.segmentation import build
from tasks.segmentation.infer import segment
from tasks.task import load

PERCEPTRON = {
    "name": "radiomics",
    "label": {"endpoint": "event"},
    "clinical": [{"name": "age", "lower": 0, "upper": 100}, {"name": "edv_ml", "lower": 20, "upper": 500, "scale": "log"}],
    "learner": {"kind": "perceptron", "hidden": [3]},
}
FOREST = {**PERCEPTRON, "learner": {"kind": "forest", "trees": 8, "depth": 2}}


@pytest.fixture(scope="module")
def cases():
    return [generated(seed) for seed in (3, 4)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, cases):
    return write_run(tmp_path_factory.mktemp("runs") / "heart", HEART, learn(HEART, cases, steps=160))


def saved(volume, path):
    """The volume as a NIfTI file, with the place and direction that it has."""
    image = sitk.GetImageFromArray(np.asarray(volume.image, np.float32))
    steps = volume.affine[:3, :3][:, ::-1]
    spacing = np.linalg.norm(steps, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((steps / spacing).ravel().tolist())
    image.SetOrigin(volume.affine[:3, 3].tolist())
    sitk.WriteImage(image, str(path))
    return image


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# -- TorchScript and ONNX ---------------------------------------------------------------------------------------------


def test_torchscript_gives_the_networks_logits(run, tmp_path):
    learned = of_run(run)
    files = export(learned, "torchscript", tmp_path / "out")
    assert [file.name for file in files] == ["card.json", "card.md", "heart.json", "heart.ts", "manifest.json"]
    rows = torch.randn(5, 1, 32, 32)
    with pytest.warns(DeprecationWarning, match="torch.jit.load"):  # torch would rather have everybody on torch.export
        network = torch.jit.load(tmp_path / "out" / "heart.ts")
    with torch.no_grad():
        assert torch.allclose(network(rows), learned.network()(rows), atol=1e-5)


@pytest.mark.parametrize("what", ["network", "perceptron"])
def test_onnx_gives_the_networks_logits_in_another_runtime(what, run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if what == "perceptron":
        torch.manual_seed(0)
        run = write_run(tmp_path / "perceptron", PERCEPTRON, dict(load(PERCEPTRON).model().state_dict()))
    learned = of_run(run)
    export(learned, "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / f"{run.name}.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 7):
        rows = torch.randn(count, 1, 32, 32) if what == "network" else torch.rand(count, 2) * 2 - 1
        (found,) = session.run(None, {"input": rows.numpy()})
        with torch.no_grad():
            assert np.allclose(found, learned.network()(rows).numpy(), atol=1e-4)


def test_the_sidecar_says_what_the_mask_values_are(run, tmp_path):
    export(of_run(run), "torchscript", tmp_path / "out")
    said = json.loads((tmp_path / "out" / "heart.json").read_text())
    assert said["mask_values"] == {"background": 0, "blood_pool": 1, "myocardium": 4}


# -- forests ----------------------------------------------------------------------------------------------------------


def test_a_forest_as_json_answers_as_the_forest_does(tmp_path):
    task, rng = load(FOREST), np.random.default_rng(0)
    X = np.column_stack([rng.uniform(20, 90, 60), rng.uniform(50, 400, 60)])
    X[3, 0] = np.nan
    total = task.structure.total(X, (np.nan_to_num(X[:, 0]) > 55).astype(int), np.arange(60))
    state = {"total": torch.from_numpy(total), "noise_variance": torch.tensor([0.01], dtype=torch.float64)}
    run = write_run(tmp_path / "forest", FOREST, state)
    assert offered(of_run(run)) == ("json",)
    export(of_run(run), "json", tmp_path / "out")
    forest = json.loads((tmp_path / "out" / "forest.json").read_text())

    def answer(row):  # as the file itself says how to read it
        found = []
        for tree in forest["trees"]:
            node = 0
            while node < 2 ** forest["depth"] - 1:
                value = np.float32(row[tree["feature"][node]])
                left = tree["missing_left"][node] if np.isnan(value) else value <= tree["threshold"][node]
                node = 2 * node + (1 if left else 2)
            found.append(tree["leaf_probabilities"][node - (2 ** forest["depth"] - 1)][1])
        return np.mean(found)

    assert np.allclose([answer(row) for row in X], task.predict(state, X), atol=1e-12)


def test_a_task_has_only_the_exports_that_are_true_of_it(run, tmp_path):
    assert offered(of_run(run)) == ("torchscript", "onnx", "monai")
    with pytest.raises(ValueError, match="no export as json of task segmentation; there is torchscript, onnx, monai"):
        export(of_run(run), "json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(run, tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(ValueError, match="exists and is not empty"):
        export(of_run(run), "torchscript", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_an_export_is_signed_where_there_is_a_key(run, tmp_path):
    key = seal.make_key(tmp_path / "key")
    export(of_run(run), "torchscript", tmp_path / "out", key=key)
    assert seal.problems(tmp_path / "out", key.public_key()) == []
    (tmp_path / "out" / "heart.ts").write_bytes(b"other")
    assert seal.problems(tmp_path / "out", key.public_key()) == ["heart.ts was changed"]


# -- the MONAI bundle -------------------------------------------------------------------------------------------------


def test_monai_runs_the_bundle_on_a_scan_without_konsil(run, cases, tmp_path):
    bundle, images, masks, block = (tmp_path / name for name in ("bundle", "images", "masks", "block"))
    export(of_run(run), "monai", bundle)
    images.mkdir()
    image = saved(cases[0].volumes[0], images / "patient.nii.gz")
    block.mkdir()
    for name in ("tasks", "conf", "fl_server", "fl_client", "simulation"):  # found before what is installed
        (block / f"{name}.py").write_text("raise ImportError('konsil is not here')\n")
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--dataset_dir", str(images), "--output_dir", str(masks)]
    environment = {**os.environ, "PYTHONPATH": str(block)}
    done = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    mask = sitk.ReadImage(str(masks / "patient_seg.nii.gz"))
    assert np.allclose(mask.GetOrigin(), image.GetOrigin(), atol=1e-3)
    assert np.allclose(mask.GetDirection(), image.GetDirection(), atol=1e-4)
    found = sitk.GetArrayFromImage(mask)
    task = load(HEART)
    own = segment(of_run(run).network(), task.settings, cases[0].volumes[0]).mask
    assert set(np.unique(own)) == {0, 1, 4}  # it has learned something, so that equal masks mean something
    for value in (1, 4):
        assert dice(found == value, own == value) > 0.999
    assert dice(found == 1, cases[0].volumes[0].mask == 1) > 0.5


@pytest.mark.parametrize("settings", [{"test_time_rotations": 4}, {"keep_largest": False}, {"roi_mm": None}])
def test_the_bundles_inference_is_konsils(settings, run, cases):
    from monai.data.meta_tensor import MetaTensor

    from fl_server.registry.bundle import LOOKS

    settings = build({**{key: value for key, value in HEART.items() if key != "name"}, **settings}).settings
    volume = cases[1].volumes[0]
    model = of_run(run).network()
    inferer = TwoLooks(**json.loads(json.dumps({name: getattr(settings, name) for name in LOOKS})))
    affine = np.diag([*volume.spacing_mm[::-1], 1.0])
    image = MetaTensor(torch.from_numpy(np.asarray(volume.image, np.float32)).permute(2, 1, 0)[None, None], affine=affine[None])
    found = inferer(image, model)[0].argmax(0).permute(2, 1, 0).numpy()
    own = segment(model, settings, volume).mask
    assert np.array_equal(np.array([0, 1, 4])[found], own)


def test_a_volume_in_three_dimensions_comes_back_on_its_own_axes():
    from monai.data.meta_tensor import MetaTensor

    from fl_server.registry.bundle import LOOKS
    from tasks.case import Volume

    given = {"spatial_dims": 3, "structures": {"a": 1}, "series": ["t1"], "voxels": [8, 16, 16], "field_mm": [16, 32, 32]}
    task = build({**given, "roi_mm": None, "locate": [], "working_mm": 2, "channels": [4, 8], "strides": [2]})
    torch.manual_seed(0)
    model = task.model().eval()
    with torch.no_grad():
        model.head.bias[1] += 0.3
    array = np.random.default_rng(0).normal(size=(9, 20, 17)).astype(np.float32)
    inferer = TwoLooks(**{name: getattr(task.settings, name) for name in LOOKS})
    image = MetaTensor(torch.from_numpy(array).permute(2, 1, 0)[None, None], affine=np.diag([1.5, 1.5, 2.0, 1.0])[None])
    found = inferer(image, model)[0].argmax(0).permute(2, 1, 0).numpy()
    own = segment(model, task.settings, Volume("t1", array, np.diag([2.0, 1.5, 1.5, 1.0]))).mask
    assert 0 < own.sum() < own.size
    assert np.array_equal(found, own)


def test_the_copied_scripts_name_nothing_of_konsil(tmp_path):
    write_scripts(tmp_path)
    for path in tmp_path.glob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].partition(".")[0] not in {"tasks", "conf", "fl_server", "fl_client", "simulation"}, line


def test_monais_own_check_takes_the_metadata(run, tmp_path):
    # what MONAI's schema of 2024-07-25 requires of the file and of each tensor, for places without a network
    from monai.bundle import verify_metadata

    tensor = {"type": "object", "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"]}
    named = {"type": "object", "minProperties": 1, "additionalProperties": tensor}
    required = ["schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"]
    required += ["task", "description", "authors", "copyright", "network_data_format"]
    kinds = {name: {"type": "string"} for name in required if name not in ("required_packages_version", "network_data_format")}
    network = {"type": "object", "required": ["inputs", "outputs"], "properties": {"inputs": named, "outputs": named}}
    kinds |= {"network_data_format": network, "eval_metrics": {"type": "object"}, "changelog": {"type": "object"}}
    kinds |= {"references": {"type": "array", "items": {"type": "string"}}, "required_packages_version": {"type": "object"}}
    schema = json.dumps({"type": "object", "required": required, "properties": kinds}).encode()
    (tmp_path / "schema.json").write_bytes(schema)
    digest = hashlib.md5(schema).hexdigest()  # without one MONAI warns
    export(of_run(run), "monai", tmp_path / "bundle")
    verify_metadata(
        meta_file=str(tmp_path / "bundle" / "configs" / "metadata.json"),
        filepath=str(tmp_path / "schema.json"),
        hash_val=digest,
    )


def test_the_bundles_state_dict_is_the_studys(run, tmp_path):
    export(of_run(run), "monai", tmp_path / "bundle")
    state = torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in of_run(run).state.items())
