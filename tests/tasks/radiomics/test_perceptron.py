import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fl_client.privacy import require_private, seeded_noise, train
from tasks.radiomics.forest import Feature
from tasks.radiomics.perceptron import Perceptron, loss, scaled

COLUMNS = (Feature(name="a", lower=0, upper=10), Feature(name="b", lower=1, upper=100, scale="log"))


def test_bounds_are_minus_one_and_one_and_the_middle_is_zero_on_each_columns_own_scale():
    found = scaled([[0, 1], [10, 100], [5, 10], [-3, 1e6], [math.nan, math.nan]], COLUMNS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[-1, -1], [1, 1], [0, 0], [-1, 1], [0, 0]], atol=1e-6)


def test_a_value_below_a_log_scales_bound_is_the_bound_even_below_zero():
    assert scaled([[5, -2.0]], COLUMNS)[0, 1] == -1


def test_the_loss_of_a_row_is_its_cross_entropy_times_its_weight():
    logit, target = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([[1.0, 1.0], [0.0, 0.5], [1.0, 0.0]])
    expected = [math.log(2), 0.5 * (2 + math.log1p(math.exp(-2))), 0.0]
    torch.testing.assert_close(loss(logit, target), torch.tensor(expected))


@pytest.mark.parametrize("hidden", [(), (4,), (5, 3)])
def test_the_gate_lets_it_through_and_an_untrained_regression_is_undecided(hidden):
    model = Perceptron(2, hidden)
    require_private(model)
    answer = model(torch.randn(7, 2))
    assert answer.shape == (7,)
    if not hidden:
        assert not answer.detach().any()


class OneRowEach:
    """Patients of one row each, as the training loop sees them."""

    def __init__(self, X, y):
        self.X, self.y = torch.from_numpy(X.astype(np.float32)), torch.from_numpy(y.astype(np.float32))
        self.patients = [f"p{i}" for i in range(len(y))]

    def example(self, patient, views, rng):
        i = int(patient[1:])
        return self.X[i : i + 1], torch.stack([self.y[i : i + 1], torch.ones(1)], dim=1)


def test_without_noise_full_batch_descent_finds_scikit_learns_logistic_regression():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (120, 2))
    y = (X @ [2.0, -1.0] + 0.3 + rng.logistic(size=120) > 0).astype(int)
    reference = LogisticRegression(C=1e6, tol=1e-10, max_iter=1000).fit(X, y)
    model = Perceptron(2, ())
    train(
        model,
        OneRowEach(X, y),
        parameters=list(model.parameters()),
        loss=loss,
        steps=40,
        sample_rate=1.0,
        views=1,
        declared_size=120,
        max_grad_norm=math.inf,
        noise_multiplier=0.0,
        optimizer="sgd",
        learning_rate=8.0,
        noise=seeded_noise(0),
        sampling_rng=np.random.default_rng(0),
    )
    np.testing.assert_allclose(model.out.weight.detach().numpy(), reference.coef_, atol=1e-4)
    np.testing.assert_allclose(model.out.bias.detach().numpy(), reference.intercept_, atol=1e-4)
