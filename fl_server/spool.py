"""Where a round's answers wait for the round's end: one flat block each, in memory while there are few, on the disk beyond.

So the coordinator's memory does not grow with the number of hospitals. The file has no name from the moment it is made:
whatever ends this process, the disk gets its place back. Aggregation reads one hospital after the other, or a few columns of
all of them.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]

IN_MEMORY = 256 * 1024**2
"""Bytes of answers of one round that are kept in memory, if nothing else is said."""

COLUMNS = 32 * 1024**2
"""Bytes of one batch of columns, over all hospitals."""


class Spool:
    """The answers of one round. All hold arrays of the same names, shapes and dtypes: those of `like`.

    A block is the arrays' numbers, those of one dtype side by side: numbers of one dtype are a `group`, and `columns` are
    numbers of a group by their place in it. `folder` is where the file lies (None: where the system has its temporary files,
    which may be memory); `in_memory` is how many bytes of blocks stay out of it.

    >>> with Spool({"w": np.zeros(2, np.float32)}) as spool:
    ...     spool.put("a", {"w": np.array([1, 2], np.float32)})
    ...     spool.arrays("a")["w"].tolist()
    [1.0, 2.0]
    """

    def __init__(self, like: Arrays, *, folder: Path | None = None, in_memory: int = IN_MEMORY) -> None:
        self._shapes = {name: array.shape for name, array in like.items()}
        self.dtypes = {name: array.dtype for name, array in like.items()}
        self.groups: list[np.dtype[Any]] = list(dict.fromkeys(self.dtypes.values()))
        self._of_group = [[name for name in like if self.dtypes[name] == dtype] for dtype in self.groups]
        self.counts = [sum(math.prod(self._shapes[name]) for name in names) for names in self._of_group]
        sizes = [count * dtype.itemsize for count, dtype in zip(self.counts, self.groups, strict=True)]
        self._starts = [sum(sizes[:group]) for group in range(len(sizes))]
        self.block_bytes = sum(sizes)
        """Bytes of one answer."""
        self._folder, self._in_memory = folder, in_memory
        self._blocks: dict[str, bytearray] = {}
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._file: IO[bytes] | None = None

    def __contains__(self, site: str) -> bool:
        return site in self._blocks or site in self._slots

    def __len__(self) -> int:
        return len(self._blocks) + len(self._slots)

    # -- in -----------------------------------------------------------------------------------------------------------

    def put(self, site: str, arrays: Arrays) -> None:
        """Keep a hospital's answer, in place of an earlier one. Raises `OSError` when the disk is full; then it is not kept."""
        self.drop(site)
        block = self._filled(arrays)
        if (len(self._blocks) + 1) * self.block_bytes <= self._in_memory:
            self._blocks[site] = block
            return
        slot = self._free.pop() if self._free else len(self._slots)
        try:
            self._write(block, slot * self.block_bytes)
        except OSError:
            self._free.append(slot)
            raise
        self._slots[site] = slot

    def drop(self, site: str) -> None:
        """Forget a hospital's answer, if there is one."""
        self._blocks.pop(site, None)
        if (slot := self._slots.pop(site, None)) is not None:
            self._free.append(slot)

    # -- out ----------------------------------------------------------------------------------------------------------

    def arrays(self, site: str) -> dict[str, npt.NDArray[Any]]:
        """A hospital's answer by name, in the order of `like`. Raises `OSError` if the disk fails."""
        return self.named(self.flat(site))

    def named(self, groups: Sequence[npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Flat arrays, one of each group, as arrays by name; views of them, in the order of `like`."""
        views: dict[str, npt.NDArray[Any]] = {}
        for names, flat in zip(self._of_group, groups, strict=True):
            start = 0
            for name in names:
                count = math.prod(self._shapes[name])
                views[name] = flat[start : start + count].reshape(self._shapes[name])
                start += count
        return {name: views[name] for name in self._shapes}

    def flat(self, site: str) -> list[npt.NDArray[Any]]:
        """A hospital's answer as one flat array of each group. Raises `OSError` if the disk fails."""
        return self._flat(self._blocks[site] if site in self._blocks else self._read(self._slots[site] * self.block_bytes))

    def flattened(self, arrays: Arrays) -> list[npt.NDArray[Any]]:
        """Arrays such as those that are kept, as one flat array of each group."""
        return self._flat(self._filled(arrays))

    def columns(self, sites: Sequence[str], group: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The numbers of all `sites` in a group, as many columns at a time as fit in `COLUMNS` bytes: (first column, (S, C)).

        Raises `OSError` if the disk fails.
        """
        dtype, count = self.groups[group], self.counts[group]
        width = max(1, COLUMNS // max(1, len(sites) * dtype.itemsize))
        for first in range(0, count, width):
            last = min(first + width, count)
            found = np.empty((len(sites), last - first), dtype)
            for row, site in zip(found, sites, strict=True):
                at = self._starts[group] + first * dtype.itemsize
                length = (last - first) * dtype.itemsize
                if site in self._blocks:
                    row[:] = np.frombuffer(self._blocks[site], dtype, count=last - first, offset=at)
                else:
                    row[:] = np.frombuffer(self._read(self._slots[site] * self.block_bytes + at, length), dtype)
            yield first, found

    def close(self) -> None:
        """Forget everything, and give the disk its place back."""
        self._blocks.clear()
        self._slots.clear()
        self._free.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _flat(self, block: bytearray) -> list[npt.NDArray[Any]]:
        parts = zip(self.groups, self.counts, self._starts, strict=True)
        return [np.frombuffer(block, dtype, count=count, offset=start) for dtype, count, start in parts]

    def _filled(self, arrays: Arrays) -> bytearray:
        block = bytearray(self.block_bytes)
        for name, view in self.named(self._flat(block)).items():
            view[...] = arrays[name]
        return block

    def _write(self, block: bytearray, at: int) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (it lives until close)
        left = memoryview(block)
        while left:  # a nearly full disk takes a part of what it is given, and then nothing
            written = os.pwrite(self._file.fileno(), left, at)
            left, at = left[written:], at + written

    def _read(self, at: int, length: int | None = None) -> bytearray:
        found = bytearray(self.block_bytes if length is None else length)
        left = memoryview(found)
        while left:
            if self._file is None or not (read := os.preadv(self._file.fileno(), [left], at)):
                raise OSError(f"the file of the round's answers ends at byte {at}, {len(left)} bytes too early")
            left, at = left[read:], at + read
        return found
