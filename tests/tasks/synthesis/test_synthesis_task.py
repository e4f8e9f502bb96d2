"""The generator's task: noise and velocities, images from noise, and cases of patients who don't exist."""

import dataclasses

import numpy as np
import pytest
import torch

from tasks.case import UNKNOWN, Case, Volume
from tasks.synthesis import build, diffusion
from tasks.synthesis.prepare import facts
from tasks.synthesis.volumes import middle
from tasks.task import JudgedTask, PacedTask, load

SMALL = {
    "structures": {"ring": 5, "hole": 2},
    "series": ["rest", "stress"],
    "conditions": {"sex": ["F", "M"], "manufacturer": ["A", "B"]},
    "locate": [],
    "voxels": 32,
    "field_mm": 64,
    "channels": [8, 16],
    "attention": [False, True],
    "head_channels": 8,
    "levels": 100,
    "draw_steps": 10,
}


def patient(**changes):
    """A ring around a hole, away from the middle of both of its images."""
    shape = (5, 60, 70)
    rows, columns = np.indices(shape[1:])
    radius = np.hypot((rows - 32) * 1.5, (columns - 29) * 1.5)
    mask = np.repeat(np.where(radius < 17, 2, np.where(radius < 27, 5, 0))[None], 5, axis=0).astype(np.uint8)
    image = (50 * (mask == 2) + 100 * (mask == 5) + np.random.default_rng(1).normal(20, 3, shape)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 1.5], [0, 1.5, 0], [-8.0, 0, 0]])
    affine[:3, 3] = (-40, 30, 12)
    volumes = (Volume("rest", image, affine, mask), Volume("stress", image * 2, affine, mask))
    return dataclasses.replace(Case("P1", volumes, {"sex": "M"}, {"manufacturer": "A", "sex": "F"}), **changes)


@pytest.fixture
def task():
    torch.manual_seed(0)
    return build(SMALL)


class Oracle(torch.nn.Module):
    """Knows the image, and tells the velocity that leads to it."""

    def __init__(self, image, levels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.x, self.levels = 2 * image - 1, levels

    def forward(self, rows):
        step = (rows[:, -1, 0, 0] * self.levels).round().long()
        kept = diffusion._kept(self.levels)[step].view(-1, 1, 1)
        return (kept.sqrt() * rows[:, 0] - self.x[:, 0]) / (1 - kept).sqrt()


def test_it_is_judged_and_paced(task):
    assert isinstance(task, JudgedTask)
    assert isinstance(task, PacedTask)


def test_who_knows_the_image_explains_all_and_draws_it_from_any_noise(task):
    arrays = task.prepare(patient())
    image, classes = diffusion.look(arrays, np.arange(10), task.settings)
    oracle = Oracle(image, task.settings.levels)
    assert diffusion.explained(oracle, arrays, task.settings) == pytest.approx(
        dict.fromkeys(diffusion.JUDGED_AT, 1.0), abs=1e-5
    )
    noise = torch.from_numpy(np.random.default_rng(3).standard_normal(image.shape, np.float32))
    found = diffusion.drawn(oracle, classes, torch.from_numpy(arrays["facts"]), noise, task.settings)
    assert torch.allclose(found, image, atol=2e-3)


def test_who_says_nothing_explains_nothing(task):
    silent = Oracle(torch.zeros(1, 1, 1, 1), task.settings.levels)
    silent.forward = lambda rows: torch.zeros(len(rows), 32, 32)
    assert task.score(silent, patient())["explained"] == 0.0


def test_a_new_network_learns_to_explain(task):
    arrays, model = task.prepare(patient()), task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    before = task.score(model, patient(), full=False)["explained"]
    for step in range(40):
        rows, velocity = task.example(arrays, 8, np.random.default_rng(step))
        loss = task.loss(model(rows), velocity).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert task.score(model, patient(), full=False)["explained"] > before + 0.3


def test_the_network_is_told_mask_facts_and_noise_level(task):
    arrays = task.prepare(patient())
    image, classes = diffusion.look(arrays, np.array([0, 7]), task.settings)
    classes[1, :3] = UNKNOWN
    told = torch.from_numpy(arrays["facts"][[0, 7]])
    rows, velocity = diffusion.noisy(image, classes, told, np.array([0.0, 0.5]), torch.zeros_like(image), task.settings)
    assert rows.shape == (2, 1 + 2 + 1 + 6 + 1, 32, 32)
    assert torch.equal(rows[:, 1], (classes == 1).float())  # ring comes first in the settings, whatever its value
    assert torch.equal(rows[:, 2], (classes == 2).float())
    assert torch.equal(rows[:, 3], (classes == UNKNOWN).float())
    assert rows[:, 4:10, 4, 5].tolist() == [[1, 0, 0, 1, 1, 0], [0, 1, 0, 1, 1, 0]]  # series, sex M (the endpoint's), maker A
    assert rows[:, 10].unique().tolist() == [0.0, 0.5]
    kept = diffusion._kept(100)[torch.tensor([0, 50])].view(2, 1, 1)
    x = 2 * image[:, 0] - 1
    assert torch.allclose(rows[:, 0], kept.sqrt() * x)
    assert torch.allclose(velocity, -(1 - kept).sqrt() * x)


def test_a_fact_that_is_not_known_or_not_listed_is_left_open(task):
    stranger = patient(endpoints={"sex": None}, scanner={"manufacturer": "C"})
    assert facts(stranger, "stress", task.settings).tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("said", "place"),
    [("GE", 0), ("GE MEDICAL SYSTEMS", 0), ("Philips", 1), ("PHILIPS", 1), ("GENERIC", None), ("Phil", None)],
)
def test_an_intake_and_a_generated_scanner_say_the_same_maker_in_other_words(said, place):
    task = build(SMALL | {"conditions": {"manufacturer": ["GE", "Philips"]}})
    told = facts(patient(scanner={"manufacturer": said}), "rest", task.settings)
    assert told.tolist() == [1, 0, float(place == 0), float(place == 1)]


def test_a_patients_views_take_each_image_once_and_spread_the_noise_levels(task):
    arrays = task.prepare(patient())
    rows, _ = task.example(arrays, 20, np.random.default_rng(0))
    assert sorted(rows[:, 4, 0, 0].tolist()) == [0.0] * 10 + [1.0] * 10
    assert sorted((rows[:, -1, 0, 0] * 20 + 1e-4).int().tolist()) == list(range(20))


@pytest.mark.parametrize("levels", [{"begin": 0.5}, {"begin": 0.2, "learned_to": 0.5}])
def test_no_noise_is_learned_from_beyond_the_highest_level(levels):
    task = build(SMALL | levels)
    rows, _ = task.example(task.prepare(patient()), 10, np.random.default_rng(0))
    assert sorted((rows[:, -1, 0, 0] * 20 + 1e-4).int().tolist()) == list(range(10))


def test_what_was_learned_above_the_level_that_drawing_begins_at_is_not_drawn_with():
    seen = []

    class Watched(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, rows):
            seen.append(float(rows[0, -1, 0, 0]))
            return self.model(rows)

    task = build(SMALL | {"begin": 0.2, "learned_to": 0.5, "draw_steps": 20})
    task.synthetic(Watched(task.model()), patient(), np.random.default_rng(0))
    assert 0.1 < max(seen) <= 0.2
    with pytest.raises(ValueError, match=r"drawing begins at level 0.6, and nothing above learned_to 0.5 is learned"):
        load({"name": "synthesis", **SMALL, "begin": 0.6, "learned_to": 0.5})


class Echo(torch.nn.Module):
    """Gives back as many channels as a patch has voxels: those that the noisy image came as."""

    def forward(self, rows, level):
        return rows[:, : 2 ** (rows.ndim - 2)]


@pytest.mark.parametrize("dims", [2, 3])
def test_patches_come_back_to_where_they_were(dims):
    task = build(SMALL | {"spatial_dims": dims, "patch": 2, "voxels": 16, "field_mm": 64, "working_mm": 4})
    model = task.model()
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 11, *[16] * dims)).astype(np.float32))
    assert model(rows).shape == (2, *[16] * dims)
    model.body = Echo()
    assert torch.equal(model(rows), rows[:, 0])


def test_a_case_is_drawn_where_its_masks_lie_and_without_a_look_at_its_images(task):
    case, model = patient(), task.model()
    torch.nn.init.normal_(model.body.out[2].conv.weight, std=0.1)  # a new network's last layer is 0
    made = task.synthetic(model, case, np.random.default_rng(5))
    assert (made.patient, made.endpoints, made.scanner) == (case.patient, case.endpoints, case.scanner)
    for old, new in zip(case.volumes, made.volumes, strict=True):
        assert (new.series, new.image.shape, new.spacing_mm) == (old.series, (5, 32, 32), (8.0, 2.0, 2.0))
        assert new.image.min() >= 0
        assert new.image.std() > 0
        for value in (2, 5):
            where = [(one.affine @ np.append(np.argwhere(one.mask == value).mean(axis=0), 1))[:3] for one in (old, new)]
            assert np.abs(where[0] - where[1]).max() < 0.3  # mm
            volume = [float((one.mask == value).sum() * np.prod(one.spacing_mm)) for one in (old, new)]
            assert volume[1] == pytest.approx(volume[0], rel=0.06)
    blind = tuple(dataclasses.replace(one, image=np.full_like(one.image, np.nan)) for one in case.volumes)
    again = task.synthetic(model, dataclasses.replace(case, volumes=blind), np.random.default_rng(5))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(made.volumes, again.volumes, strict=True))
    other = task.synthetic(model, case, np.random.default_rng(6))
    assert not np.array_equal(made.volumes[0].image, other.volumes[0].image)


def test_more_can_be_drawn_than_was_learned_from(task):
    """A larger picture of the same voxels around the same middle."""
    wide = build(SMALL | {"drawn_voxels": 44, "begin": 0.5})
    torch.manual_seed(0)
    made, near = (one.synthetic(one.model(), patient(), np.random.default_rng(0)).volumes[0] for one in (wide, task))
    assert made.image.shape == (5, 44, 44)
    assert made.spacing_mm == pytest.approx(near.spacing_mm)
    inside = middle(made, wide.settings)
    assert np.array_equal(inside.mask, near.mask)
    assert np.array_equal(inside.image, made.image[:, 6:-6, 6:-6])
    assert np.allclose(inside.affine, near.affine)
    assert np.allclose(made.affine @ [0, 6, 6, 1], near.affine @ [0, 0, 0, 1])
    with pytest.raises(ValueError, match=r"not of \(44, 44\) voxels as it would be drawn"):
        middle(near, wide.settings)


def test_begun_below_the_top_an_image_keeps_what_the_sketch_has(task):
    """A network that tells nothing but noise leaves the sketch as it is, the more so the lower it begins."""

    def away(begin):
        one = build(SMALL | {"begin": begin, "coherence": 0})
        case = patient()
        arrays = one.prepare(case)
        image, _ = diffusion.look(arrays, np.arange(5), one.settings)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            found = one.synthetic(one.model(), case, np.random.default_rng(0)).volumes[0].image
        return float(np.abs(found - image[:, 0].numpy()).mean())

    assert away(0.1) < away(0.5) < away(0.9)
    blind = tuple(dataclasses.replace(one, image=np.full_like(one.image, np.nan)) for one in patient().volumes)
    with pytest.raises(ValueError, match="no usable contrast"):
        build(SMALL | {"begin": 0.5}).synthetic(task.model(), patient(volumes=blind), np.random.default_rng(0))


def test_slices_are_as_alike_as_the_noise_they_begin_with():
    def spread(coherence):
        torch.manual_seed(0)
        one = build(SMALL | {"coherence": coherence})
        image = one.synthetic(one.model(), patient(), np.random.default_rng(5)).volumes[0].image
        return float(image.std(axis=0).mean())

    assert spread(1.0) < 1e-4 < spread(0.0)


def test_unknown_voxels_stay_unknown_and_a_case_without_masks_is_refused(task):
    case = patient()
    unknown = case.volumes[0].mask.copy()
    unknown[0] = UNKNOWN
    partly = (dataclasses.replace(case.volumes[0], mask=unknown, annotated=(2, 5)),)
    made = task.synthetic(task.model(), patient(volumes=partly), np.random.default_rng(0)).volumes[0]
    assert set(np.unique(made.mask[0])) == {0, UNKNOWN} - ({0} if (made.mask[0] == UNKNOWN).all() else set())
    assert set(np.unique(made.mask[1:])) == {0, 2, 5}
    assert made.annotated == (2, 5)
    bare = tuple(dataclasses.replace(one, mask=None) for one in case.volumes)
    with pytest.raises(ValueError, match=r"case P1 has no mask for any of rest, stress: nothing to draw"):
        task.synthetic(task.model(), patient(volumes=bare), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention": [True]}, "attention needs a yes or no for each of 2 levels"),
        ({"voxels": 33}, r"voxels \[33, 33\] must be 2 multiples of 2"),
        ({"drawn_voxels": 45}, r"drawn_voxels \[45, 45\] must be 2 multiples of 2"),
        ({"patch": 5}, r"voxels \[32, 32\] must be 2 multiples of 10, which patch and levels divide them by"),
        ({"groups": 5}, "groups is 5, which doesn't divide 8 channels"),
        ({"head_channels": 5}, "head_channels is 5, which doesn't divide 16 channels of level 1"),
        ({"draw_steps": 101}, "draw_steps is 101, and there are 100 levels"),
        ({"conditions": {"sex": ["F", "F"]}}, "conditions.sex needs values that differ"),
        ({"structures": {"a": 1, "b": 1}}, "structures need different mask values"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(change, words):
    with pytest.raises(ValueError, match=words):
        load({"name": "synthesis", **SMALL, **change})


@pytest.mark.parametrize("which", ["up", "norm", "head"])
def test_fewer_parameters_can_move(which):
    one = build(SMALL | {"trainable": which})
    model = one.model()
    moving = one.trainable(model)
    assert 0 < len(moving) < len(list(model.parameters()))
    assert all(name.startswith("body.out.") for name in moving) == (which == "head")


def test_three_dimensions():
    deep = {"spatial_dims": 3, "voxels": [8, 16, 16], "field_mm": [40, 64, 64], "working_mm": [8, 4, 4]}
    torch.manual_seed(0)
    one = build(SMALL | deep)
    arrays = one.prepare(patient())
    rows, velocity = one.example(arrays, 3, np.random.default_rng(0))
    assert rows.shape == (3, 11, 8, 16, 16)
    assert one.loss(one.model()(rows), velocity).shape == (3,)
    made = one.synthetic(one.model(), patient(), np.random.default_rng(0), steps=2)
    assert [volume.image.shape for volume in made.volumes] == [(8, 16, 16)] * 2
    assert made.volumes[0].spacing_mm == pytest.approx((5, 4, 4))
