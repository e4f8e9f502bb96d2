import torch

from fl_server.weights import initial_state
from tasks.fingerprint import fingerprint


def test_equal_seeds_give_equal_first_weights_and_leave_torchs_generator_alone(hospitals):
    before = torch.random.get_rng_state()
    first, second = (initial_state(hospitals.study(seed=3)) for _ in range(2))
    assert fingerprint(first) == fingerprint(second) != fingerprint(initial_state(hospitals.study(seed=4)))
    assert torch.equal(before, torch.random.get_rng_state())
