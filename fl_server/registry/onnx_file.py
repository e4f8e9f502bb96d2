"""A network as ONNX, for runtimes without PyTorch, and proof that it computes the same."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

OPSET = 20
TOLERANCE = 1e-4
"""Largest difference in a logit that two orders of summation may make."""


def write(model: torch.nn.Module, example: torch.Tensor, path: Path) -> float:
    """Write the network, with any number of rows, and return the largest difference to PyTorch's own outputs.

    Raises `ValueError` if the packages of `konsil[export]` are missing, `RuntimeError` if the file computes something else.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch needs it, and would say so less plainly
    except ModuleNotFoundError as error:
        raise ValueError(f"ONNX needs the package {error.name}: pip install 'konsil[export]'") from None
    with _quiet():
        torch.onnx.export(
            model,
            (example,),
            str(path),
            input_names=["input"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("rows", min=1)},),
            external_data=False,
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rows = torch.cat([example, example[:1].flip(-1)])  # another number than it was traced with
    with torch.no_grad():
        expected = model(rows).numpy()
    (found,) = session.run(None, {"input": rows.numpy()})
    worst = float(np.abs(found - expected).max())
    if not worst <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise RuntimeError(f"{path} differs from the model by {worst:g} in a logit")
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of its steps, of packages that aren't needed, and of its own deprecated parts."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
