import json
import struct

import numpy as np
import pytest

from tasks.packing import pack, unpack


def arrays():
    rng = np.random.default_rng(0)
    return {
        "weight": rng.normal(size=(3, 4, 2)).astype(np.float32),
        "total": rng.normal(size=5),
        "steps": np.array(7),
        "empty": np.zeros((0, 3), np.float16),
        "seen": np.array([True, False]),
        "ü x": np.asfortranarray(rng.integers(-9, 9, size=(2, 3))),
        "foreign": np.arange(3, dtype=">i4"),
    }


def block_of(header, data=b""):
    return block_of_text(json.dumps(header).encode(), data)


def block_of_text(text, data=b""):
    return struct.pack("<Q", len(text)) + text + data


def test_what_is_packed_comes_back_bit_by_bit_in_its_order():
    given, back = arrays(), unpack(pack(arrays()))
    assert list(back) == list(given)
    for name, array in given.items():
        assert np.array_equal(back[name], array)
        assert (back[name].shape, back[name].dtype) == (array.shape, array.dtype.newbyteorder("="))
        assert back[name].flags.writeable


def test_numbers_that_are_not_finite_come_back_as_they_are():
    odd = np.array([np.nan, np.inf, -np.inf, -0.0])
    assert unpack(pack({"odd": odd}))["odd"].tobytes() == odd.tobytes()


def test_a_block_is_as_long_as_its_arrays_and_a_line_for_each():
    big = {"a": np.zeros(10**6, np.float32)}
    assert len(pack(big)) < 4 * 10**6 + 100


def test_the_block_is_what_its_page_says():
    assert pack({"a": np.array([1, 2], np.int16)}) == block_of([["a", "<i2", [2]]], b"\x01\x00\x02\x00")


def test_objects_are_not_packed():
    with pytest.raises(ValueError, match=r"numbers .* can be packed"):
        pack({"a": np.array([object()])})


def test_numbers_that_other_machines_write_in_another_size_are_not_packed():
    with pytest.raises(ValueError, match=r"numbers of up to 64 bits can be packed"):
        pack({"a": np.zeros(2, np.longdouble)})


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 9) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xfe\x00\x00",
        block_of({"a": 1}),
        block_of([["a", "|O", [1]]], b"x" * 8),
        block_of([["a", "<f4,<i4", [1]]], b"x" * 8),
        block_of([["a", "|S8", [1]]], b"x" * 8),
        block_of([["a", "__import__('os')", [1]]], b"x" * 8),
        block_of([["a", "<f8", [2]]], b"x" * 8),
        block_of([["a", "<f8", [2**62, 2**62]]], b"x" * 8),
        block_of([["a", "<f8", [-1]]], b"x" * 8),
        block_of([["a", "<f8", [-1, -1]]], b"x" * 8),
        block_of([["a", "<f8", [1]]], b"x" * 9),
        block_of([["a", "<f8", [1] * 70]], b"x" * 8),
        block_of([["a", "<f8", [1]], ["a", "<f8", [1]]], b"x" * 16),
        block_of([["a", "<f8", "x"]], b"x" * 8),
        block_of([["a", "<f8"]], b"x" * 8),
        pack({"a": np.arange(3.0)})[:-1],
        block_of_text(b'[["a", "<f4", [1e999]]]'),
        block_of_text(b'[["a", "<f4", [NaN]]]'),
        block_of_text(b'[["a", "<f4", [' + b"9" * 5000 + b"]]]"),
        block_of([["a", "<f4", [True]]], b"x" * 4),
        block_of([["a", "<f4", [1.0]]], b"x" * 4),
        block_of([["a", "<f4", ["1"]]], b"x" * 4),
        block_of([["a", "<f4", [0, 10**30]]]),
        block_of([["a", "<f4", [0, 2**63]]]),
        block_of([["a", "<f16", [1]]], b"x" * 16),
        block_of([["a", "|f1", [1]]], b"x"),
        block_of([["a", ">f4", [1]]], b"x" * 4),
        block_of([["a", "f4,", [1]]], b"x" * 4),
        block_of([["a", ["<f4"], [1]]], b"x" * 4),
        block_of([[7, "<f4", [1]]], b"x" * 4),
        block_of([["\ud800", "<f4", [1]]], b"x" * 4),
    ],
)
def test_a_block_that_nobody_has_packed_is_refused_in_words(block):
    with pytest.raises(ValueError, match=r"block|header|bytes"):
        unpack(block)
