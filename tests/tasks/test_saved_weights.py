import resource
import stat

import pytest
import torch

from tasks.weights import save


def test_saved_weights_are_read_back_without_running_code(tmp_path):
    save({"weight": torch.arange(3.0)}, tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["weight"], torch.arange(3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_file_that_cannot_be_finished_is_an_error_of_the_disk_and_leaves_the_old_weights(tmp_path):
    """torch, let loose on the file itself, raises a RuntimeError about positions."""
    save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save({"weight": torch.zeros(100_000)}, tmp_path / "model.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["weight"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_what_a_killed_process_left_lends_new_weights_no_permissions(tmp_path):
    (tmp_path / "model.part").write_bytes(b"half")
    (tmp_path / "model.part").chmod(0o666)
    save({"weight": torch.ones(2)}, tmp_path / "model.pt", mode=0o600)
    assert stat.S_IMODE((tmp_path / "model.pt").stat().st_mode) == 0o600
