import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from small_ward import Ward, row_loss, small_unet, some_patients

from fl_client.privacy import os_noise, seeded_noise, train

BOUND, RATE, SIZE, STEP = 0.05, 0.5, 10, 0.2


def trained(model, ward, **changes):
    """The parameters after training a copy of `model`, as one vector, and the report."""
    model = copy.deepcopy(model)
    settings = {
        "parameters": list(model.parameters()),
        "loss": row_loss,
        "steps": 1,
        "sample_rate": RATE,
        "views": 3,
        "declared_size": SIZE,
        "max_grad_norm": BOUND,
        "noise_multiplier": 0.0,
        "optimizer": "sgd",
        "learning_rate": STEP,
        "noise": seeded_noise(1),
        "sampling_rng": np.random.default_rng(4),
    }
    report = train(model, ward, **{**settings, **changes})
    return vector(model), report


def vector(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def without(ward, patient):
    return Ward({name: rows for name, rows in ward.rows.items() if name != patient})


# -- the promise: one patient more or less ----------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, RATE])
def test_a_patient_moves_a_step_by_at_most_the_bound_over_the_public_denominator(unet, ward, rate):
    everyone, report = trained(unet, ward, sample_rate=rate)
    moved = [np.linalg.norm(everyone - trained(unet, without(ward, patient), sample_rate=rate)[0]) for patient in ward.patients]
    allowed = STEP * BOUND / (rate * SIZE)
    assert max(moved) <= allowed * (1 + 1e-9)
    # every drawn patient is longer than the bound here, and moves the step by all that it allows; the others by nothing
    assert sorted(np.round(np.array(moved) / allowed, 6)) == [0.0] * (5 - len(report.norms[0])) + [1.0] * len(report.norms[0])


def test_a_sixth_patient_does_not_change_the_denominator(unet):
    five, six = (Ward({f"p{i}": rows for i, rows in enumerate(some_patients(6)[:count])}) for count in (5, 6))
    difference = trained(unet, six, sample_rate=1.0)[0] - trained(unet, five, sample_rate=1.0)[0]
    assert np.linalg.norm(difference) == pytest.approx(STEP * BOUND / SIZE, rel=1e-6)


def test_a_patient_that_is_not_finite_changes_nothing(unet, ward):
    broken = Ward({**ward.rows, "x": (torch.full_like(ward.rows["p0"][0], math.nan), ward.rows["p0"][1])})
    assert np.array_equal(trained(unet, broken, steps=3)[0], trained(unet, ward, steps=3)[0])


def test_who_else_is_there_decides_neither_a_patient_s_draw_nor_its_rows(unet):
    class Seen(Ward):
        def example(self, patient, views, rng):
            seen.setdefault(patient, []).append(rng.random())
            return super().example(patient, views, rng)

    everyone = {f"p{i}": rows for i, rows in enumerate(some_patients(5))}
    seen: dict[str, list[float]] = {}
    trained(unet, Seen(everyone), steps=6)
    together, seen = seen, {}
    trained(unet, Seen(dict(reversed(list(everyone.items())[2:]))), steps=6)
    assert seen == {patient: draws for patient, draws in together.items() if patient in ("p2", "p3", "p4")}


# -- the noise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [seeded_noise(3), os_noise()], ids=["seeded", "os"])
def test_the_released_step_carries_noise_of_the_promised_size(unet, ward, noise):
    quiet, _ = trained(unet, ward)
    loud, _ = trained(unet, ward, noise_multiplier=2.5, noise=noise)
    deviates = (loud - quiet) * RATE * SIZE / (STEP * 2.5 * BOUND)  # standard normal, if the promise holds
    assert 1e-9 < stats.chi2.cdf((deviates**2).sum(), deviates.size) < 1 - 1e-9
    assert stats.kstest(deviates, "norm").pvalue > 1e-9


def test_every_parameter_and_step_has_noise_of_its_own(unet, ward):
    one, _ = trained(unet, Ward(), noise_multiplier=1.0, noise=os_noise())
    two, _ = trained(unet, Ward(), noise_multiplier=1.0, noise=os_noise(), steps=2)
    start = vector(unet)
    assert len(np.unique(one - start)) > 0.99 * start.size
    ratio = (two - start).std() / (one - start).std()
    assert ratio == pytest.approx(math.sqrt(2), rel=0.15)


def test_a_step_that_draws_nobody_is_noise_alone_and_still_a_step(unet):
    moved, report = trained(unet, Ward(), noise_multiplier=1.0)
    assert report.norms == [[]]
    assert (moved != vector(unet)).all()


# -- no privacy is a setting, not another loop ------------------------------------------------------------------------


def test_without_privacy_it_is_ordinary_gradient_descent(unet, ward):
    ours, _ = trained(unet, ward, steps=4, sample_rate=1.0, declared_size=5, max_grad_norm=math.inf)
    model = copy.deepcopy(unet).train()
    plain = torch.optim.SGD(model.parameters(), lr=STEP)
    x, y = (torch.cat(parts) for parts in zip(*ward.rows.values(), strict=True))
    for _ in range(4):
        plain.zero_grad()
        row_loss(model(x), y).mean().backward()  # five patients of three rows each: the mean of means
        plain.step()
    assert np.abs(ours - vector(model)).max() < 1e-10


def test_adam_follows_the_gradient_it_is_given(unet, ward):
    ours, _ = trained(unet, ward, sample_rate=1.0, declared_size=5, max_grad_norm=math.inf, optimizer="adam", weight_decay=0.1)
    model = copy.deepcopy(unet).train()
    adam = torch.optim.Adam(model.parameters(), lr=STEP, weight_decay=0.1)
    x, y = (torch.cat(parts) for parts in zip(*ward.rows.values(), strict=True))
    row_loss(model(x), y).mean().backward()
    adam.step()
    assert np.abs(ours - vector(model)).max() < 1e-5  # Adam divides by |g|: rounding of tiny gradients grows


def test_the_proximal_pull_is_towards_the_start_and_depends_on_no_patient(unet):
    """Noise alone: w1 = w0 - lr n1 and w2 = w1 - lr (n2 + mu (w1 - w0)), so the pull is lr mu times the first step."""
    settings = {"noise_multiplier": 1.0, "steps": 2}
    free, pulled, first = (
        trained(unet, Ward(), noise=seeded_noise(2), **{**settings, **more})[0]
        for more in ({}, {"proximal_mu": 0.5}, {"steps": 1})
    )
    assert np.allclose(pulled - free, -STEP * 0.5 * (first - vector(unet)), atol=1e-12)


def test_the_pull_comes_after_the_clipping(unet, ward):
    moved = [
        trained(unet, ward if all_ else without(ward, "p0"), steps=1, proximal_mu=1e6, sample_rate=1.0)[0]
        for all_ in (True, False)
    ]
    assert np.linalg.norm(moved[0] - moved[1]) <= STEP * BOUND / SIZE * (1 + 1e-9)


# -- what moves, and what leaves --------------------------------------------------------------------------------------


def test_only_the_listed_parameters_move(unet, ward):
    model = copy.deepcopy(unet)
    first, *others = model.parameters()
    before = [p.detach().clone() for p in model.parameters()]
    settings = {
        "sample_rate": 1.0,
        "views": 3,
        "declared_size": 5,
        "max_grad_norm": 1.0,
        "noise_multiplier": 1.0,
        "optimizer": "adam",
    }
    train(
        model,
        ward,
        parameters=[first],
        loss=row_loss,
        steps=2,
        learning_rate=0.1,
        noise=os_noise(),
        sampling_rng=np.random.default_rng(),
        **settings,
    )
    assert not torch.equal(first, before[0])
    assert all(torch.equal(p, b) for p, b in zip(others, before[1:], strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_the_report_keeps_its_numbers_to_itself_when_printed(unet, ward):
    _, report = trained(unet, ward, steps=3, sample_rate=1.0)
    assert repr(report) == "TrainingReport(steps=3)"
    assert [len(step) for step in report.norms] == [len(step) for step in report.losses] == [5, 5, 5]
    assert report.clipped_fraction(BOUND) == 1.0
    assert report.clipped_fraction(math.inf) == 0.0


def test_patients_are_drawn_at_the_rate_asked_for():
    ward = Ward({f"p{i}": (torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)) for i in range(50)})
    model = torch.nn.Conv2d(1, 4, 1)
    _, report = trained(model, ward, steps=40, sample_rate=0.3, sampling_rng=np.random.default_rng(0))
    drawn = [len(step) for step in report.norms]
    assert 1e-4 < stats.binom.cdf(sum(drawn), 2000, 0.3) < 1 - 1e-4
    assert np.var(drawn) == pytest.approx(50 * 0.3 * 0.7, rel=0.5)  # binomial: independent, not a fixed number


def test_the_same_seeds_repeat_and_the_operating_system_does_not(unet, ward):
    settings = {"noise_multiplier": 1.0, "steps": 2}
    once, again = (trained(unet, ward, noise=seeded_noise(9, 1), **settings)[0] for _ in range(2))
    assert np.array_equal(once, again)
    once, again = (trained(unet, ward, noise=os_noise(), **settings)[0] for _ in range(2))
    assert not np.array_equal(once, again)


def test_single_precision_models_train(ward):
    ward = Ward({name: (x.float(), y) for name, (x, y) in ward.rows.items()})
    moved, _ = trained(small_unet(), ward, noise_multiplier=1.0, steps=2)
    assert moved.dtype == np.float32
    assert np.isfinite(moved).all()


def test_brain_floats_train_and_keep_the_bound(ward):
    ward = Ward({name: (x.float(), y) for name, (x, y) in ward.rows.items()})
    low, _ = trained(small_unet(), ward, sample_rate=1.0, precision="bfloat16")
    full, report = trained(small_unet(), ward, sample_rate=1.0)
    start = vector(small_unet())
    assert min(report.norms[0]) > BOUND
    assert np.linalg.norm(low - start) <= STEP * 5 * BOUND / SIZE * (1 + 1e-4)  # float32 parameters
    assert 0 < np.linalg.norm(low - full) < 0.1 * np.linalg.norm(full - start)


def test_patients_made_ahead_are_the_same_in_the_same_order(unet, ward, monkeypatch):
    from fl_client.privacy import dp_sgd

    plain, _ = trained(unet, ward, steps=3)
    real = dp_sgd._draw
    monkeypatch.setattr(dp_sgd, "_draw", lambda *args, **kwargs: dp_sgd._ahead(real(*args, **kwargs)))
    assert np.array_equal(trained(unet, ward, steps=3)[0], plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_computes_the_same_step(unet, ward):
    on_cpu, _ = trained(unet, ward, noise_multiplier=1.0, sample_rate=1.0)
    model = copy.deepcopy(unet)
    settings = {
        "steps": 1,
        "sample_rate": 1.0,
        "views": 3,
        "declared_size": SIZE,
        "max_grad_norm": BOUND,
        "noise_multiplier": 1.0,
        "optimizer": "sgd",
    }
    train(
        model,
        ward,
        parameters=list(model.parameters()),
        loss=row_loss,
        learning_rate=STEP,
        noise=seeded_noise(1),
        sampling_rng=np.random.default_rng(4),
        device="cuda",
        **settings,
    )
    assert np.abs(vector(model.cpu()) - on_cpu).max() < 1e-9


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("sample_rate", 0.0, r"sample_rate must lie in \(0, 1\], not 0"),
        ("sample_rate", 1.5, "sample_rate must lie in"),
        ("steps", 0, "steps must be at least 1"),
        ("views", 0, "views must be at least 1"),
        ("declared_size", 0, "declared_size must be at least 1"),
        ("parameters", [], "no parameters to train"),
        ("optimizer", "lion", "no optimizer named 'lion'; there are 'sgd' and 'adam'"),
        ("max_grad_norm", math.inf, "needs a finite bound"),
    ],
)
def test_settings_that_can_not_be_right_are_refused(unet, ward, setting, value, words):
    with pytest.raises(ValueError, match=words):
        trained(unet, ward, **{"noise_multiplier": 1.0, setting: value})


def test_a_patient_who_is_listed_twice_is_refused(unet):
    class Twice(Ward):
        @property
        def patients(self):
            return [*self.rows, next(iter(self.rows))]

    with pytest.raises(ValueError, match="a patient is listed more than once"):
        trained(unet, Twice({"p": some_patients(1)[0]}))


def test_the_gate_is_asked_first(ward):
    with pytest.raises(TypeError, match="BatchNorm2d"):
        trained(small_unet(norm="batch").double(), ward)
