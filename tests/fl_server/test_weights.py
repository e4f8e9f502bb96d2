import pytest
import torch

from fl_server.weights import fingerprint, initial_state, save


def test_equal_seeds_give_equal_first_weights_and_leave_torchs_generator_alone(hospitals):
    before = torch.random.get_rng_state()
    first, second = (initial_state(hospitals.study(seed=3)) for _ in range(2))
    assert fingerprint(first) == fingerprint(second) != fingerprint(initial_state(hospitals.study(seed=4)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_fingerprint_tells_names_shapes_dtypes_and_values_apart_but_not_the_order():
    a, b = torch.zeros(4), torch.arange(2.0)
    one = fingerprint({"a": a, "b": b})
    assert fingerprint({"b": b.clone(), "a": a.clone()}) == one
    others = [{"a": a, "c": b}, {"a": a.reshape(2, 2), "b": b}, {"a": a.to(torch.int32), "b": b}, {"a": a, "b": b + 1}]
    assert len({one, *(fingerprint(state) for state in others)}) == 5


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
