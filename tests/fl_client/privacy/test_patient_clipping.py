import math

import numpy as np
import pytest
import torch
from small_ward import row_loss, small_unet, some_patients

from fl_client.privacy import clipped_sum

BOUND = 0.05


def by_hand(model, patients, bound):
    """The slow obvious way: one backward pass per row, one long numpy vector per patient."""
    total = 0.0
    for x, y in patients:
        rows = []
        for i in range(len(x)):
            model.zero_grad()
            row_loss(model(x[i : i + 1]), y[i : i + 1]).sum().backward()
            rows.append(np.concatenate([p.grad.numpy().ravel().copy() for p in model.parameters()]))
        model.zero_grad()
        gradient = sum(rows) / len(rows)
        total = total + gradient * min(1.0, bound / np.sqrt((gradient**2).sum()))
    return total


def flat(tensors):
    return np.concatenate([t.detach().numpy().ravel() for t in tensors])


def clipped(model, patients, bound=BOUND, loss=row_loss):
    return flat(clipped_sum(model, list(model.parameters()), patients, loss, max_grad_norm=bound).gradients)


@pytest.mark.parametrize("bound", [BOUND, 0.3, 1e6, math.inf])
def test_the_sum_is_that_of_one_backward_pass_per_row(unet, patients, bound):
    assert np.abs(clipped(unet, patients, bound) - by_hand(unet, patients, bound)).max() < 1e-10


def test_three_dimensional_networks_clip_alike():
    model = small_unet(spatial_dims=3).double()
    rng = np.random.default_rng(1)
    patients = [
        (torch.from_numpy(rng.normal(size=(2, 1, 8, 8, 8))), torch.from_numpy(rng.integers(0, 4, (2, 8, 8, 8))))
        for _ in range(3)
    ]
    assert np.abs(clipped(model, patients) - by_hand(model, patients, BOUND)).max() < 1e-10


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("rows", [1, 3])
def test_opacus_per_sample_gradients_grouped_by_patient_give_the_same_sum(rows):
    from opacus import GradSampleModule

    patients = some_patients(4, rows=rows)
    model = small_unet().double()
    expected = clipped(model, patients)
    hooked = GradSampleModule(small_unet().double(), loss_reduction="sum")
    row_loss(hooked(torch.cat([x for x, _ in patients])), torch.cat([y for _, y in patients])).sum().backward()
    samples = np.concatenate([p.grad_sample.flatten(1).numpy() for p in hooked.parameters()], axis=1)  # (patients * rows, all)
    gradients = samples.reshape(len(patients), rows, -1).mean(axis=1)
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    assert np.abs((gradients * np.minimum(1, BOUND / norms)).sum(axis=0) - expected).max() < 1e-10


def test_every_patient_is_clipped_alone_over_all_parameters_at_once(unet, patients):
    for patient in patients:
        raw = clipped(unet, [patient], math.inf)
        assert np.linalg.norm(raw) > BOUND
        assert np.allclose(clipped(unet, [patient]), raw * BOUND / np.linalg.norm(raw), rtol=1e-12, atol=0)


def test_neighbouring_cohorts_differ_by_at_most_the_bound(unet, patients):
    everyone = clipped(unet, patients)
    for i in range(len(patients)):
        without = clipped(unet, patients[:i] + patients[i + 1 :])
        assert np.linalg.norm(everyone - without) <= BOUND * (1 + 1e-12)


def loud(output, target):
    """Rows that contain label 3 only shout: a patient made to be noticed."""
    return row_loss(output, target) * torch.where((target == 3).flatten(1).all(1), 1e9, 1.0)


def test_a_patient_made_to_be_noticed_moves_the_sum_by_no_more(unet, patients):
    shouting = (patients[0][0], torch.full_like(patients[0][1], 3))
    result = clipped_sum(unet, list(unet.parameters()), [shouting], loud, max_grad_norm=BOUND)
    assert result.norms[0] > 1e6 * BOUND
    difference = clipped(unet, [*patients, shouting], loss=loud) - clipped(unet, patients, loss=loud)
    assert np.linalg.norm(difference) <= BOUND * (1 + 1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_a_patient_whose_gradient_is_not_finite_contributes_exactly_nothing(unet, patients, value):
    broken = (torch.full_like(patients[0][0], value), patients[0][1])
    expected = clipped(unet, patients)
    for order in ([broken, *patients], [*patients, broken]):
        result = clipped_sum(unet, list(unet.parameters()), order, row_loss, max_grad_norm=BOUND)
        assert sum(not math.isfinite(norm) for norm in result.norms) == 1
        assert np.array_equal(flat(result.gradients), expected)


def test_a_patient_that_is_not_finite_contributes_nothing_without_privacy_too(unet, patients):
    broken = (torch.full_like(patients[0][0], math.nan), patients[0][1])
    assert np.array_equal(clipped(unet, [*patients, broken], math.inf), clipped(unet, patients, math.inf))


def test_a_patient_s_share_does_not_move_when_the_others_change(unet, patients):
    first, *others = patients
    alone = clipped(unet, [first])
    for company in (others, some_patients(2, seed=7), [(x * 100, y.flip(0)) for x, y in others]):
        assert np.abs(clipped(unet, [first, *company]) - clipped(unet, company) - alone).max() < 1e-14


def test_no_patients_sum_to_zero(unet):
    assert not clipped(unet, []).any()


def test_parameters_outside_the_computation_get_zero(unet, patients):
    unused = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    result = clipped_sum(unet, [*unet.parameters(), unused], patients, row_loss, max_grad_norm=BOUND)
    assert not result.gradients[-1].any()


def test_single_precision_networks_sum_in_double_and_keep_the_bound(patients):
    model = small_unet()
    single = [(x.float(), y) for x, y in patients]
    sums = clipped_sum(model, list(model.parameters()), single, row_loss, max_grad_norm=BOUND).gradients
    assert {g.dtype for g in sums} == {torch.float64}
    one = clipped(model, single[:1])
    assert np.linalg.norm(one) <= BOUND * (1 + 1e-12)


@pytest.mark.parametrize(
    "loss", [lambda o, t: row_loss(o, t).mean(), lambda o, t: row_loss(o, t)[:1], lambda o, t: row_loss(o, t)[:, None]]
)
def test_a_loss_that_is_not_one_number_per_row_is_refused(unet, patients, loss):
    with pytest.raises(ValueError, match=r"one patient with 3 rows has shape .* must be \(3,\)"):
        clipped(unet, patients, loss=loss)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_a_bound_that_bounds_nothing_is_refused(unet, patients, bound):
    with pytest.raises(ValueError, match="max_grad_norm must be positive"):
        clipped(unet, patients, bound)


def test_the_printed_sum_says_nothing_about_patients(unet, patients):
    result = clipped_sum(unet, [], [], row_loss, max_grad_norm=1.0)
    assert "norms" not in repr(result)
    assert "losses" not in repr(result)


def test_gradients_already_on_the_parameters_are_left_alone(unet, patients):
    for p in unet.parameters():
        p.grad = torch.ones_like(p)
    clipped(unet, patients)
    assert all(bool((p.grad == 1).all()) for p in unet.parameters())


def test_a_patient_on_whom_the_network_breaks_contributes_nothing_and_the_step_goes_on(unet, patients):
    broken = (torch.zeros(2, 7, 3), torch.zeros(2))
    parameters = list(unet.parameters())
    alone = clipped_sum(unet, parameters, patients, row_loss, max_grad_norm=1.0)
    beside = clipped_sum(unet, parameters, [patients[0], broken, *patients[1:]], row_loss, max_grad_norm=1.0)
    assert all(torch.equal(one, other) for one, other in zip(alone.gradients, beside.gradients, strict=True))
    assert len(beside.norms) == len(patients)
    assert len(beside.failed) == 1
