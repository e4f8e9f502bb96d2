import pytest
import torch

from fl_server.weights import initial_state, save
from tasks.fingerprint import fingerprint


def test_equal_seeds_give_equal_first_weights_and_leave_torchs_generator_alone(hospitals):
    before = torch.random.get_rng_state()
    first, second = (initial_state(hospitals.study(seed=3)) for _ in range(2))
    assert fingerprint(first) == fingerprint(second) != fingerprint(initial_state(hospitals.study(seed=4)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_saved_weights_are_read_back_without_running_code(tmp_path):
    save({"weight": torch.arange(3.0)}, tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["weight"], torch.arange(3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_full_disk_is_an_error_of_the_disk_and_leaves_the_old_weights(tmp_path):
    """torch, left to open the file itself, raises a RuntimeError about positions."""
    save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    (tmp_path / "model.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        save({"weight": torch.zeros(100_000)}, tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["weight"], torch.ones(2))
    assert not (tmp_path / "model.part").is_symlink()
