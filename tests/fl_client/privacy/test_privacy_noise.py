import math

import numpy as np
import pytest
import torch
from scipy import stats

from fl_client.privacy import noised, noisy_sum, os_noise, seeded_noise
from fl_client.privacy.noise import noise_std

SOURCES = [pytest.param(os_noise, id="os"), pytest.param(lambda: seeded_noise(5, 1), id="seeded")]
ONE_IN_A_BILLION = 1e-9  # the operating system's noise can't be repeated: fail this rarely without a reason


@pytest.mark.parametrize("source", SOURCES)
def test_noise_is_normal_with_the_standard_deviation_asked_for(source):
    draws = source().gaussian(torch.empty(400, 500), 3.0).numpy().ravel()
    assert draws.shape == (200_000,)
    chi2 = float((draws**2).sum() / 9)
    assert ONE_IN_A_BILLION < stats.chi2.cdf(chi2, draws.size) < 1 - ONE_IN_A_BILLION
    assert stats.kstest(draws, "norm", args=(0, 3)).pvalue > ONE_IN_A_BILLION
    halves = draws[:100_000], draws[100_000:]  # cosines and sines of the same radii: uncorrelated, also in their squares
    assert abs(np.corrcoef(*halves)[0, 1]) < 6 / math.sqrt(100_000)
    assert abs(np.corrcoef(halves[0] ** 2, halves[1] ** 2)[0, 1]) < 6 / math.sqrt(100_000)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1001, (1 << 16) + 3, 3 << 16])
def test_any_number_of_deviates_can_be_had(count):
    draws = os_noise().gaussian(torch.empty(count), 1.0)
    assert draws.shape == (count,)
    assert draws.dtype == torch.float64
    assert bool(torch.isfinite(draws).all())


def test_the_operating_system_never_repeats_itself():
    like = torch.empty(1000)
    assert len(torch.cat([os_noise().gaussian(like, 1.0) for _ in range(3)]).unique()) == 3000


def test_every_stretch_of_noise_has_a_key_of_its_own_from_the_operating_system(monkeypatch):
    from fl_client.privacy import noise

    asked, real = [], noise.os.urandom
    monkeypatch.setattr(noise.os, "urandom", lambda count: asked.append(real(count)) or asked[-1])
    for count in (5, 5, (1 << 16) + 1):
        os_noise().gaussian(torch.empty(count), 1.0)
    assert [len(key) for key in asked] == [32] * 4
    assert len(set(asked)) == 4


def test_the_bytes_are_the_keystream_of_aes_256(monkeypatch):
    """NIST SP 800-38A's counter mode of FIPS 197: the blocks are the cipher's answers to 0, 1, 2, ..."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    from fl_client.privacy import noise

    key = bytes(range(32))
    monkeypatch.setattr(noise.os, "urandom", lambda count: key[:count])
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    assert noise._fresh_bytes(40) == b"".join(block.update(n.to_bytes(16, "big")) for n in range(3))[:40]


def test_torch_and_numpy_seeds_do_not_reach_production_noise():
    like = torch.empty(8)
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global generator is what must not matter
        draws.append(os_noise().gaussian(like, 1.0))
    assert not torch.equal(*draws)


def test_rehearsal_noise_repeats_and_differs_by_every_number_of_its_seed():
    like = torch.empty(100)
    assert torch.equal(seeded_noise(1, 2, 3).gaussian(like, 1.0), seeded_noise(1, 2, 3).gaussian(like, 1.0))
    assert not torch.equal(seeded_noise(1, 2, 3).gaussian(like, 1.0), seeded_noise(1, 2, 4).gaussian(like, 1.0))
    assert (os_noise().source, seeded_noise(1).source) == ("os", "seeded")


def test_rehearsal_noise_is_not_the_stream_that_samples_patients_with_the_same_seed():
    assert not np.isin(seeded_noise(7).gaussian(torch.empty(64), 1.0), np.random.default_rng(7).standard_normal(64)).any()


def test_the_noised_sum_lies_on_a_grid_a_millionth_of_the_noise_wide():
    total = torch.linspace(-1, 1, 1001, dtype=torch.float64) + 1e-13
    released = noised(total, 0.7, os_noise())
    grid = 2.0**-21  # the largest power of two below 0.7 is 2**-1
    assert bool((released / grid == (released / grid).round()).all())
    assert float((released - total).std()) == pytest.approx(0.7, rel=0.2)


def test_no_noise_leaves_the_sum_as_it_is():
    total = torch.tensor([1e-9, 1 / 3, 1e9], dtype=torch.float64)
    assert torch.equal(noised(total, 0.0, os_noise()), total)


def test_no_privacy_is_an_infinite_bound_and_no_noise_and_not_nan():
    assert noise_std(noise_multiplier=0.0, bound=math.inf) == 0.0
    assert noise_std(noise_multiplier=1.5, bound=2.0) == 3.0


@pytest.mark.parametrize(
    ("multiplier", "bound", "words"),
    [
        (1.0, math.inf, "needs a finite bound"),
        (-1.0, 1.0, "noise_multiplier must be"),
        (math.nan, 1.0, "noise_multiplier must be"),
        (math.inf, 1.0, "noise_multiplier must be"),
        (1.0, 0.0, "must be positive"),
        (1.0, math.nan, "must be positive"),
    ],
)
def test_settings_that_promise_nothing_are_refused(multiplier, bound, words):
    with pytest.raises(ValueError, match=words):
        noise_std(noise_multiplier=multiplier, bound=bound)


# -- the noisy sum of anything that is one vector per patient ---------------------------------------------------------


def test_each_patient_s_vector_is_clipped_to_the_bound_and_summed():
    vectors = [[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]  # norms 5, 0.5, 0
    assert noisy_sum(vectors, bound=1.0, noise_multiplier=0.0, noise=os_noise()) == pytest.approx([0.6 + 0.3, 0.8 + 0.4])
    assert noisy_sum(vectors, bound=math.inf, noise_multiplier=0.0, noise=os_noise()) == pytest.approx([3.3, 4.4])


@pytest.mark.parametrize("extreme", [[1e300, -1e300], [math.nan, 1.0], [math.inf, 0.0], [0.3, 0.4], [1e-320, 0.0]])
def test_one_patient_more_moves_the_sum_by_at_most_the_bound(extreme):
    vectors = np.random.default_rng(0).normal(size=(20, 2))
    settings = {"bound": 0.5, "noise_multiplier": 0.0, "noise": os_noise()}
    difference = noisy_sum(np.vstack([vectors, extreme]), **settings) - noisy_sum(vectors, **settings)
    assert np.linalg.norm(difference) <= 0.5 * (1 + 1e-12)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_vector_that_is_not_finite_counts_as_zero_whole(broken):
    total = noisy_sum([[0.1, 0.2], [0.3, broken]], bound=1.0, noise_multiplier=0.0, noise=os_noise())
    assert total == pytest.approx([0.1, 0.2])


def test_its_noise_has_the_multiplier_times_the_bound():
    released = noisy_sum(np.zeros((4, 50_000)), bound=0.5, noise_multiplier=4.0, noise=seeded_noise(1))
    assert ONE_IN_A_BILLION < stats.chi2.cdf((released**2).sum() / 2.0**2, 50_000) < 1 - ONE_IN_A_BILLION


def test_no_patients_are_noise_alone():
    released = noisy_sum(np.empty((0, 3)), bound=1.0, noise_multiplier=1.0, noise=os_noise())
    assert released.shape == (3,)
    assert (released != 0).all()


def test_vectors_without_a_patient_axis_are_refused():
    with pytest.raises(ValueError, match=r"\(patients, length\).*not \(3,\)"):
        noisy_sum([1.0, 2.0, 3.0], bound=1.0, noise_multiplier=1.0, noise=os_noise())
