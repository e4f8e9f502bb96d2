"""Masks are AES-256's keystream, cancel exactly, and take no memory of their own."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from circle_of import NOW, circle_of, key_of

from tasks.secure import keys, masks
from tasks.secure.grid import Grid
from tasks.secure.noise import os_bits


def test_a_mask_is_the_keystream_of_aes_256() -> None:
    vector = np.zeros(4, dtype=np.uint32)
    masks.add(vector, bytes(32))
    # AES-256 of a zero block under the zero key: NIST's AESAVS, known answer tests
    assert vector.astype("<u4").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@pytest.mark.parametrize("length", [1, 3, 65_535, 65_536, 65_537, 200_001])
def test_what_is_added_is_taken_off_exactly(length: int) -> None:
    vector = np.random.default_rng(length).integers(0, 2**32, length, dtype=np.uint32)
    before, key = vector.copy(), bytes(range(32))
    masks.add(vector, key)
    assert (vector != before).mean() > 0.99 or length < 4
    masks.subtract(vector, key)
    assert vector.tolist() == before.tolist()


def test_the_mask_of_a_longer_vector_begins_like_that_of_a_shorter() -> None:
    short, long = np.zeros(70_000, dtype=np.uint32), np.zeros(200_000, dtype=np.uint32)
    for vector in (short, long):
        masks.add(vector, bytes(32))
    assert (short == long[:70_000]).all()
    assert len(np.unique(long)) > 199_900  # and does not begin again


def test_two_sites_derive_one_mask_and_nobody_else_does() -> None:
    one, other, third = (keys.mask_private(bytes([number]) * 16, NOW, f"site0{number}") for number in range(3))
    shared = keys.pair_mask_key(one, keys.public_half(other), NOW, "site00", "site01")
    assert shared == keys.pair_mask_key(other, keys.public_half(one), NOW, "site01", "site00")
    assert shared != keys.pair_mask_key(third, keys.public_half(one), NOW, "site00", "site01")
    assert shared != keys.pair_mask_key(one, keys.public_half(other), NOW, "site00", "site02")


def test_contexts_of_different_names_are_never_the_same_bytes() -> None:
    assert NOW.context("keys", "ab", "c") != NOW.context("keys", "a", "bc")
    assert NOW.context("keys", "a") != NOW.context("shares", "a")
    assert len({NOW.context("keys", "a"), NOW.context("keysa"), NOW.context("keys", "a", "")}) == 3


def test_masking_and_rounding_a_long_vector_take_little_memory() -> None:
    length = 2_000_000
    grid = Grid(circle=circle_of(3), shapes={"a": (length,)}, bound=1.0, patients=120, noise_multiplier=2.0)
    total = {"a": np.zeros(length, dtype=np.float32)}
    tracemalloc.start()
    try:
        vector = grid.encode(total, patients=40, bits=os_bits())
        _, peak = tracemalloc.get_traced_memory()
        assert peak - vector.nbytes < 16e6
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        masks.add(vector, bytes(32))
        assert tracemalloc.get_traced_memory()[1] - before < 1e6
    finally:
        tracemalloc.stop()


def test_a_public_line_fits_its_own_key_only() -> None:
    lines = circle_of(3).keys
    assert keys.is_half_of(lines["site00"], key_of("site00"))
    assert not keys.is_half_of(lines["site01"], key_of("site00"))
    assert not keys.verified("ssh-ed25519 nonsense", b"", b"")
