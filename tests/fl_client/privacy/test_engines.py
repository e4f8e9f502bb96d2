"""Both engines against the slow way, on every network that we say we support: one backward pass per patient, in double."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from monai.networks.nets import UNETR, BasicUNet, DynUNet, SegResNet, SwinUNETR, UNet
from torch import nn
from torch.nn import functional as F

from fl_client.privacy import clipped_sum, require_private
from fl_client.privacy.engine.rules import by_groups, one_by_one
from fl_client.privacy.engine.trial import engine_for, tried
from tasks.radiomics.perceptron import Perceptron
from tasks.segmentation.network import SegmentationNet
from tasks.segmentation.settings import Settings

GROUP = ("group", {"num_groups": 4})
SMALL = {"in_channels": 1, "out_channels": 4, "channels": (4, 8), "strides": (2,), "num_res_units": 1}
FEATURES = (4, 4, 8, 8, 8, 4)
HEART = {
    "spatial_dims": 2,
    "structures": {"blood_pool": 1, "myocardium": 2, "right_ventricle": 3},
    "series": ["cine_ed"],
    "voxels": 16,
    "field_mm": 192,
    "roi_mm": 120,
    "locate": ["blood_pool"],
    "working_mm": 1.5,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 2,
    "head_channels": 4,
    "groups": 4,
    "class_weights": [0.5, 1.0, 1.5, 1.0],
    "trainable": "all",
}


def swin(dims):
    return SwinUNETR(
        in_channels=1, out_channels=4, patch_size=2, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), window_size=4,
        feature_size=12, spatial_dims=dims, norm_name="instance",
    )  # fmt: skip


NETWORKS = {
    "UNet, group, 2D": (lambda: UNet(spatial_dims=2, norm=GROUP, **SMALL), (16, 16)),
    "UNet, group, 3D": (lambda: UNet(spatial_dims=3, norm=GROUP, **SMALL), (8, 8, 8)),
    "UNet, instance, 2D": (lambda: UNet(spatial_dims=2, norm="instance", **SMALL), (16, 16)),
    "UNet, instance with weights, 3D": (lambda: UNet(spatial_dims=3, norm=("instance", {"affine": True}), **SMALL), (8, 8, 8)),
    "BasicUNet, 2D": (lambda: BasicUNet(2, 1, 4, features=FEATURES, norm=GROUP), (32, 32)),
    "BasicUNet, 3D, non-trainable upsampling": (
        lambda: BasicUNet(3, 1, 4, features=FEATURES, norm=GROUP, upsample="nontrainable"), (16, 16, 16)),
    "SegResNet, 2D": (
        lambda: SegResNet(2, init_filters=8, out_channels=4, norm=GROUP, blocks_down=(1, 2), blocks_up=(1,)), (16, 16)),
    "SegResNet, 3D": (
        lambda: SegResNet(3, init_filters=8, out_channels=4, norm=GROUP, blocks_down=(1, 1), blocks_up=(1,)), (8, 8, 8)),
    "DynUNet, 2D": (lambda: DynUNet(2, 1, 4, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8], norm_name=GROUP), (16, 16)),
    "DynUNet, 3D, residual": (
        lambda: DynUNet(3, 1, 4, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], norm_name="instance", res_block=True),
        (8, 8, 8)),
    "SwinUNETR, 2D": (lambda: swin(2), (64, 32)),
    "UNETR, 2D": (
        lambda: UNETR(
            1, 4, (32, 32), feature_size=4, hidden_size=24, mlp_dim=16, num_heads=2, norm_name="instance", spatial_dims=2),
        (32, 32)),
    "heart": (lambda: SegmentationNet(Settings(**HEART)), (16, 16)),
    "perceptron": (lambda: Perceptron(7, [5, 3]), None),
    "logistic": (lambda: Perceptron(7, []), None),
}  # fmt: skip


def made(name):
    """The network in double precision with shaken weights, and seven patients of two rows."""
    build, space = NETWORKS[name]
    torch.manual_seed(0)
    model = build().double()
    require_private(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    rows = [(torch.randn(2, 1, *space or ()).double() if space else torch.rand(2, 7).double()) for _ in range(7)]
    marks = [torch.randint(0, 4, (2, *space)) if space else torch.randint(0, 2, (2,)).double() for _ in range(7)]
    return model, list(zip(rows, marks, strict=True)), (voxels if space else one_number)


def voxels(output, target):
    return F.cross_entropy(output, target, reduction="none").flatten(1).mean(1)


def one_number(output, target):
    return F.binary_cross_entropy_with_logits(output, target, reduction="none")


def by_hand(model, patients, loss, bound, parameters=None):
    """One backward pass per row, and numpy. Also the norms."""
    model, total, norms = copy.deepcopy(model), 0.0, []
    named = dict(model.named_parameters())
    wanted = list(named) if parameters is None else parameters
    for x, y in patients:
        gradient = 0.0
        for i in range(len(x)):
            model.zero_grad()
            loss(model(x[i : i + 1]), y[i : i + 1]).sum().backward()
            parts = [named[n].grad if named[n].grad is not None else torch.zeros_like(named[n]) for n in wanted]
            gradient = gradient + np.concatenate([p.double().numpy().ravel() for p in parts]) / len(x)
        norms.append(np.linalg.norm(gradient))
        total = total + gradient * min(1.0, bound / norms[-1])
    return total, norms


def flat(tensors):
    return np.concatenate([t.detach().double().numpy().ravel() for t in tensors])


@pytest.mark.parametrize("engine", ["loop", "one_pass"])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_engine_gives_the_sum_of_one_backward_pass_per_row(name, engine):
    model, patients, loss = made(name)
    patients = patients[:3]
    _, norms = by_hand(model, patients, loss, math.inf)
    bound = float(np.median(norms))  # cuts some and leaves others
    expected, _ = by_hand(model, patients, loss, bound)
    result = clipped_sum(model, list(model.parameters()), patients, loss, max_grad_norm=bound, engine=engine)
    assert np.abs(flat(result.gradients) - expected).max() <= 1e-9 * np.linalg.norm(expected)
    assert sorted(result.norms) == pytest.approx(sorted(norms), rel=1e-9)


@pytest.mark.parametrize("engine", ["loop", "one_pass"])
@pytest.mark.parametrize("trainable", ["decoder", "norm", "head"])
def test_frozen_parameters_have_no_part_in_norm_or_sum(trainable, engine):
    model, patients, loss = made("heart")
    names = [name for name, _ in model.named_parameters()]
    wanted = {"decoder": lambda n: ".2." in n or "head" in n, "norm": lambda n: ".N." in n, "head": lambda n: "head" in n}[
        trainable
    ]
    names = [name for name in names if wanted(name)]
    assert 0 < len(names) < len(list(model.parameters()))
    named = dict(model.named_parameters())
    expected, norms = by_hand(model, patients, loss, 0.05, names)
    result = clipped_sum(model, [named[n] for n in names], patients, loss, max_grad_norm=0.05, engine=engine)
    assert np.abs(flat(result.gradients) - expected).max() <= 1e-9 * np.linalg.norm(expected)
    assert result.norms == pytest.approx(norms, rel=1e-9)


# -- what is chosen, and why ------------------------------------------------------------------------------------------


def small_conv():
    return nn.Conv2d(1, 4, 3, padding=1)


class Twice(nn.Module):
    """The same layers used again and again, and a weight outside its own module."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)

    def forward(self, x):
        x = self.first(x)
        for _ in range(3):
            x = torch.tanh(self.norm(self.again(x)))
        return x + F.conv2d(x, self.again.weight, padding=1)


class Windows(nn.Module):
    """A table of positions, looked up and added to windows that are cut from the rows; and a constant mask."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.linear = nn.Parameter(torch.randn(5, 3)), nn.Linear(3, 3)
            self.mask = torch.randn(4, 4, 1).double()

        def forward(self, x):
            windows = x.reshape(-1, 4, 4, 3) * self.mask
            return self.linear(self.placed(windows.reshape(-1, 4, 3), self.table[torch.tensor([0, 2, 2, 4])]))

        def placed(self, windows, places):
            return windows + places

    def __init__(self):
        super().__init__()
        self.inner = self.Inner()
        self.stem, self.head = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        tokens = x.flatten(2).transpose(1, 2).reshape(-1, 4, 3)
        return self.head(self.inner(tokens).reshape(len(x), -1, 3).transpose(1, 2).reshape(x.shape))


class ScaledWindows(Windows):
    """The same, but the table multiplies, for which there is no rule."""

    class Inner(Windows.Inner):
        def placed(self, windows, places):
            return windows * places


class BothAndMore(Windows):
    """Added from the other side, turned and padded on the way, used twice."""

    class Inner(Windows.Inner):
        def placed(self, windows, places):
            places = F.pad(places.t().contiguous(), (1, 0))[:, 1:].transpose(0, 1).unsqueeze(0)
            return torch.add(places + (places + windows) + self.mask[0, :, 0, None], windows, alpha=2)


class MaskedPlaces(Windows):
    """Added to a constant first: what looks like rows need not be."""

    class Inner(Windows.Inner):
        def placed(self, windows, places):
            return windows + (self.mask[:, :, 0].repeat(3, 1)[:, :, None] + places)[0]


class LessPlaces(Windows):
    class Inner(Windows.Inner):
        def placed(self, windows, places):
            return torch.add(windows, places, alpha=-0.5)


class UnitWeights(nn.Module):
    """A layer whose weights are made of parameters: nobody's gradient may get lost because a rule sees no parameter."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = small_conv(), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))

    def forward(self, x):
        return self.head(self.stem(x))


class Placed(nn.Module):
    """A parameter of the network itself, which can't be run patient by patient, but is added."""

    def __init__(self):
        super().__init__()
        self.layer, self.places = small_conv(), nn.Parameter(torch.randn(1, 4, 8, 8))

    def forward(self, x):
        return self.layer(x) + self.places


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = small_conv(), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        y = self.second(x)
        y += x
        return y


class Recomputed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = small_conv(), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4))

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.second, self.first(x), use_reentrant=False)


class MixesRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = small_conv()

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Bare(nn.Module):
    """A parameter of the network itself."""

    def __init__(self):
        super().__init__()
        self.layer, self.gain = small_conv(), nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return self.layer(x) * self.gain


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.attention, self.head = (
            nn.Conv2d(1, 4, 1),
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Conv2d(4, 4, 1),
        )

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.head(mixed.transpose(1, 2).reshape(len(x), 4, *x.shape[2:]))


def ward(rows=(2,) * 5, side=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(k, 1, side, side, generator=g).double(), torch.randint(0, 4, (k, side, side), generator=g)) for k in rows
    ]


@pytest.mark.parametrize(
    ("build", "engine", "apart"),
    [
        (Twice, "one_pass", ()),
        (Windows, "one_pass", ()),
        (ScaledWindows, "one_pass", ("inner",)),
        (BothAndMore, "one_pass", ()),
        (MaskedPlaces, "one_pass", ("inner",)),
        (LessPlaces, "one_pass", ("inner",)),
        (UnitWeights, "one_pass", ("head",)),
        (Placed, "one_pass", ()),
        (InPlace, "one_pass", ()),
        (Attends, "one_pass", ("attention",)),
        (MixesRows, "loop", ()),
        (Bare, "loop", ()),
        (lambda: nn.Sequential(small_conv(), nn.Dropout(0.5)), "one_pass", ()),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding="same")), "one_pass", ("0",)),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), nn.PReLU(4)), "one_pass", ()),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.LayerNorm((4, 8, 8)), nn.Conv2d(4, 4, 3, 1, 1, groups=2)),
            "one_pass",
            (),
        ),
    ],
)
def test_a_network_gets_one_pass_only_where_its_rows_and_parameters_allow_it(build, engine, apart):
    torch.manual_seed(0)
    model = build().double()
    parameters = list(model.parameters())
    chosen = tried(model, parameters, *ward()[0], voxels, 4)
    assert (chosen.name, chosen.apart) == (engine, apart), chosen.why
    if isinstance(model, MixesRows) or any(isinstance(m, nn.Dropout) for m in model.modules()):
        return  # its rows aren't the same one by one, or twice
    expected, _ = by_hand(model, ward(), voxels, 0.1)
    result = clipped_sum(model, parameters, ward(), voxels, max_grad_norm=0.1, engine=chosen.name)
    assert np.abs(flat(result.gradients) - expected).max() <= 1e-9 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["SwinUNETR, 2D", "UNETR, 2D"])
def test_positions_of_transformers_need_no_module_patient_by_patient(name):
    model, patients, loss = made(name)
    chosen = tried(model, list(model.parameters()), *patients[0], loss, 4)
    assert (chosen.name, chosen.apart) == ("one_pass", ()), chosen.why


def test_activations_that_are_computed_again_on_the_way_back_give_the_same_sum():
    torch.manual_seed(0)
    model = Recomputed().double()
    expected, _ = by_hand(model, ward(), voxels, 0.1)
    chosen = tried(model, list(model.parameters()), *ward()[0], voxels, 4)
    for engine in {"loop", chosen.name}:
        result = clipped_sum(model, list(model.parameters()), ward(), voxels, max_grad_norm=0.1, engine=engine)
        assert np.abs(flat(result.gradients) - expected).max() <= 1e-9 * np.linalg.norm(expected)


def test_asking_for_one_pass_where_it_is_wrong_is_refused_with_the_reason():
    model = MixesRows().double()
    with pytest.raises(ValueError, match=r"doesn't suit MixesRows: one pass differs from the loop by"):
        clipped_sum(model, list(model.parameters()), ward(), voxels, max_grad_norm=1.0, engine="one_pass")


def test_on_a_cpu_volumes_are_looped_and_slices_and_tables_are_not():
    torch.manual_seed(0)

    def name(model, x, y, loss, places=4):
        return engine_for(model, list(model.parameters()), x, y, loss, places).name

    heart = SegmentationNet(Settings(**{**HEART, "voxels": 80, "channels": [16, 32], "strides": [2]}))
    slices = torch.zeros(4, 1, 80, 80), torch.zeros(4, 80, 80, dtype=torch.long), voxels
    assert name(heart, *slices) == "one_pass"
    assert name(heart, *slices, places=1) == "loop"
    volumes = torch.zeros(2, 1, 40, 40, 40), torch.zeros(2, 40, 40, 40, dtype=torch.long), voxels
    assert name(UNet(spatial_dims=3, norm=GROUP, **SMALL), *volumes) == "loop"
    assert name(Perceptron(25, [16]), torch.zeros(1, 25), torch.zeros(1), one_number) == "one_pass"


def test_the_trial_leaves_model_and_random_numbers_alone():
    model = nn.Sequential(small_conv(), nn.Dropout(0.5))
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    assert tried(model, list(model.parameters()), *single(ward())[0], voxels, 4).name == "one_pass"
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[1].p == 0.5
    assert "forward" not in vars(model)


def test_a_loss_may_mix_the_rows_of_a_patient_but_sees_no_other_patient():
    def contrast(output, target):
        return output.flatten(1).mean(1) * target.flatten(1).double().mean(1) - output.mean() ** 2

    model = Twice().double()
    sums = [
        flat(clipped_sum(model, list(model.parameters()), ward(), contrast, max_grad_norm=0.1, engine=engine).gradients)
        for engine in ("loop", "one_pass")
    ]
    assert np.abs(sums[0] - sums[1]).max() < 1e-12


def test_a_loss_that_reads_its_data_in_python_is_followed_too():
    def picky(output, target):
        return voxels(output, target) * (2.0 if float(target.sum()) > 100 else 1.0)

    model = Twice().double()
    sums = [
        flat(clipped_sum(model, list(model.parameters()), ward(), picky, max_grad_norm=0.1, engine=engine).gradients)
        for engine in ("loop", "one_pass")
    ]
    assert np.abs(sums[0] - sums[1]).max() < 1e-12


# -- the promises, by both engines ------------------------------------------------------------------------------------

ENGINES = pytest.mark.parametrize("engine", ["loop", "one_pass"])
BOUND = 0.02


def single(patients):
    return [(x.float(), y) for x, y in patients]


def summed(model, patients, engine, loss=voxels, **more):
    result = clipped_sum(model, list(model.parameters()), patients, loss, max_grad_norm=BOUND, engine=engine, **more)
    return flat(result.gradients), result


@pytest.fixture
def twice():
    torch.manual_seed(0)
    return Twice()


@ENGINES
def test_a_patient_more_or_less_moves_the_sum_by_at_most_the_bound(twice, engine):
    patients = single(ward((3,) * 6))
    everyone, result = summed(twice, patients, engine)
    assert min(result.norms) > BOUND
    for i in range(len(patients)):
        moved = np.linalg.norm(everyone - summed(twice, patients[:i] + patients[i + 1 :], engine)[0])
        assert moved <= BOUND * (1 + 1e-12)
        assert moved >= BOUND * (1 - 1e-12)


@pytest.mark.parametrize("name", ["heart", "SegResNet, 2D", "DynUNet, 2D", "SwinUNETR, 2D", "logistic"])
def test_one_pass_adds_for_each_patient_what_it_adds_alone(name):
    model, patients, loss = made(name)
    model, patients = model.float(), [(x.float(), y if y.dim() > 1 else y.float()) for x, y in patients]
    parameters = list(model.parameters())

    def share(some):
        return flat(clipped_sum(model, parameters, some, loss, max_grad_norm=1e-3, engine="one_pass").gradients)

    total, alone = share(patients), [share([patient]) for patient in patients]
    assert np.abs(total - sum(alone)).max() < 1e-17  # double precision; single has 1e-10
    for i in range(len(patients)):
        moved = total - share(patients[:i] + patients[i + 1 :])
        assert np.abs(moved - alone[i]).max() < 1e-17
        assert np.linalg.norm(moved) <= 1e-3 * (1 + 1e-12)


class RoundsByPlace(nn.Module):
    """As kernels do that take what is left over at the end in another order."""

    def __init__(self):
        super().__init__()
        self.layer = small_conv()

    def forward(self, x):
        place = torch.arange(len(x)).view(-1, 1, 1, 1)
        return self.layer(x) * (1 + place * torch.finfo(x.dtype).eps)


class RoundsByOthers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = small_conv()

    def forward(self, x):
        return self.layer(x) * (1 + x.abs().max().detach() * torch.finfo(x.dtype).eps)


@pytest.mark.parametrize(
    ("build", "what"), [(RoundsByPlace, "the place moves"), (RoundsByOthers, "moves? a patient's gradient")]
)
def test_one_pass_is_left_where_single_precision_depends_on_who_else_is_there(build, what):
    model = build()
    chosen = tried(model, list(model.parameters()), *single(ward())[0], voxels, 4)
    assert chosen.name == "loop"
    assert re.search(what, chosen.why)


def test_one_pass_is_left_for_a_loss_that_rounds_by_the_others():
    def rounds(output, target):
        return voxels(output, target) * (1 + output.detach().abs().max() * 1e-6)

    def by_all(output, target):
        everybody = torch._C._functorch.get_unwrapped(output) if torch._C._functorch.is_batchedtensor(output) else output
        return voxels(output, target) * (1 + everybody.detach().abs().max() * 1e-6)

    model = small_conv()
    x, y = single(ward())[0]
    assert tried(model, list(model.parameters()), x, y, rounds, 4).name == "one_pass"  # within the patient: free
    chosen = tried(model, list(model.parameters()), x, y, by_all, 4)
    assert (chosen.name, chosen.why) == ("loop", "in one pass the others move a patient's gradient")


@ENGINES
@pytest.mark.parametrize("where", [0, 2, 5])
def test_a_patient_that_fails_or_is_not_finite_leaves_no_trace_to_the_last_bit(twice, engine, where):
    patients = single(ward((3,) * 5))
    expected, _ = summed(twice, patients, engine)
    x, y = patients[0]
    hurt = {
        "nan": (torch.full_like(x, math.nan), y),
        "huge": (x * 1e38, y),
        "another shape": (torch.zeros(2, 7, 3), torch.zeros(2)),
        "an unknown label": (x, torch.full_like(y, 77)),
    }
    for what, broken in hurt.items():
        if what == "another shape" and where == 0 and engine == "one_pass":
            continue  # one who is asked for by name has to suit the first patient
        got, result = summed(twice, [*patients[:where], broken, *patients[where:]], engine)
        assert np.array_equal(got, expected), what
        assert len(result.failed) == ("nan" not in what and "huge" not in what)
        assert sum(math.isfinite(norm) for norm in result.norms) == 5


@ENGINES
def test_patients_with_different_numbers_of_rows_weigh_the_same(twice, engine):
    model = twice.double()
    patients = ward((1, 4, 2, 4, 1, 3))
    expected, norms = by_hand(model, patients, voxels, BOUND)
    got, result = summed(model, patients, engine)
    assert np.abs(got - expected).max() <= 1e-9 * np.linalg.norm(expected)
    assert sorted(result.norms) == pytest.approx(sorted(norms))


@ENGINES
def test_nobody_sums_to_zero(twice, engine):
    got, result = summed(twice, [], engine)
    assert not got.any()
    assert result.norms == result.losses == result.failed == []


@ENGINES
def test_the_same_patients_give_the_same_bits(twice, engine):
    patients = single(ward())
    assert np.array_equal(summed(twice, patients, engine)[0], summed(twice, patients, engine)[0])


@pytest.mark.parametrize("engine", ["loop", "auto"])
def test_in_brain_float_the_bound_is_kept_as_exactly(twice, engine):
    patients = single(ward((4,) * 3))
    low, result = summed(twice, patients[:1], engine, autocast=torch.bfloat16)
    assert result.norms[0] > BOUND
    assert np.linalg.norm(low) == pytest.approx(BOUND, rel=1e-12)
    full, _ = summed(twice, patients, engine)
    low, _ = summed(twice, patients, engine, autocast=torch.bfloat16)
    assert 0 < np.linalg.norm(low - full) < 0.05 * np.linalg.norm(full)
    for i in range(3):
        without, _ = summed(twice, patients[:i] + patients[i + 1 :], engine, autocast=torch.bfloat16)
        assert np.linalg.norm(low - without) <= BOUND * (1 + 1e-12)


def test_one_pass_in_brain_float_is_refused(twice):
    with pytest.raises(ValueError, match="doesn't suit autocast"):
        summed(twice, single(ward()), "one_pass", autocast=torch.bfloat16)


def test_memory_is_bounded_by_taking_fewer_patients_at_a_time(twice, monkeypatch):
    from fl_client.privacy import clip

    model, patients = twice.double(), ward((2,) * 7)
    seen, real = [], clip.each_gradient
    monkeypatch.setattr(clip, "each_gradient", lambda *a, **k: seen.append(len(a[2])) or real(*a, **k))
    together, _ = summed(model, patients, "one_pass")
    weights = sum(p.numel() for p in model.parameters())
    monkeypatch.setitem(clip._BYTES, "cpu", 3 * 8 * weights)  # places come in powers of two
    few, _ = summed(model, patients, "one_pass")
    monkeypatch.setitem(clip._BYTES, "cpu", 1)
    one, _ = summed(model, patients, "one_pass")
    assert [seen[0], *seen[-11:]] == [64, *[2] * 4, *[1] * 7]
    assert np.abs(few - together).max() < 1e-14
    assert np.abs(one - together).max() < 1e-14


def test_a_pass_that_is_impossible_for_everybody_becomes_a_loop(twice, monkeypatch):
    from fl_client.privacy import clip

    patients = single(ward())
    expected, _ = summed(twice, patients, "loop")

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(clip, "each_gradient", full)
    got, result = summed(twice, patients, "one_pass")
    assert np.abs(got - expected).max() < 1e-15
    assert len(result.norms) == 5
    assert not result.failed


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_patients_as_groups_of_channels_give_what_a_call_for_each_gives(axes, groups, transposed):
    """The way that a GPU takes, here on the CPU."""
    torch.manual_seed(0)
    shape = (4, 6 // groups) if transposed else (6, 4 // groups)
    weight = torch.randn(*shape, *[3] * axes).double()
    how = ([2] * axes, [1] * axes, [1] * axes, transposed, [1 if transposed else 0] * axes, groups)
    x = torch.randn(6, 4, *[6] * axes).double()
    dy = torch.randn_like(torch.ops.aten.convolution(x, weight, None, *how))
    assert torch.allclose(by_groups(x, weight, dy, how, 3), one_by_one(x, weight, dy, how, 3), rtol=0, atol=1e-11)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["heart", "UNet, instance with weights, 3D", "SegResNet, 2D", "SwinUNETR, 2D", "perceptron"])
def test_a_gpu_gives_the_same_sum_by_either_engine(name):
    model, patients, loss = made(name)
    expected, norms = by_hand(model, patients, loss, 0.05)
    model.cuda()
    there = [(x.cuda(), y.cuda()) for x, y in patients]
    for engine in ("loop", "one_pass", "auto"):
        result = clipped_sum(model, list(model.parameters()), there, loss, max_grad_norm=0.05, engine=engine)
        assert np.abs(flat([g.cpu() for g in result.gradients]) - expected).max() <= 1e-7 * np.linalg.norm(expected)
        assert result.norms == pytest.approx(norms, rel=1e-7)
