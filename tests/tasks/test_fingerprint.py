import torch

from tasks.fingerprint import fingerprint


def test_a_fingerprint_tells_names_shapes_dtypes_and_values_apart_but_not_the_order():
    a, b = torch.zeros(4), torch.arange(2.0)
    one = fingerprint({"a": a, "b": b})
    assert fingerprint({"b": b.clone(), "a": a.clone()}) == one
    others = [{"a": a, "c": b}, {"a": a.reshape(2, 2), "b": b}, {"a": a.to(torch.int32), "b": b}, {"a": a, "b": b + 1}]
    assert len({one, *(fingerprint(state) for state in others)}) == 5
