"""Data larger than memory: one array of bytes in a file, of which rows are read as they are asked for."""

from __future__ import annotations

import mmap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_delta.errors import UserError

HELD = 64 << 20
"""Bytes: a part of stored data that takes no more is read into memory at once, …"""
MAPPED = 64 << 20
"""… and so much is read through the map before its pages are handed back."""


class StoredFile:
    """A memory-mapped array of bytes (N, *shape), every row of which is compared with its checksum when first read.

    Pages that were read count as the process's own until they are handed back, which is done every `MAPPED` bytes; the
    system keeps them as long as it has memory for them, and they come back without the disk.

    Args:
        path: of the file.
        offset: of the first row in it, in bytes.
        sums: (N,) uint32, CRC-32 of every row.
        shape: of a row.
    """

    def __init__(self, path: Path, offset: int, sums: np.ndarray, shape: tuple[int, ...]) -> None:
        self.path, self.sums = path, sums
        with path.open("rb") as file:
            # Private, so that torch may take the memory for writable; nothing writes to it.
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        # Rows are read in random order, for evaluation, too: reading ahead would read the file many times over.
        self._advise("MADV_RANDOM")
        count = len(sums) * int(np.prod(shape))
        rows = np.frombuffer(self.map, np.uint8, count=count, offset=offset)
        self.values = torch.from_numpy(rows).view(len(sums), *shape)
        self.known = np.zeros(len(sums), bool)
        self.read_since = 0

    @property
    def shape(self) -> torch.Size:
        """(N, *shape)."""
        return self.values.shape

    def read(self, rows: Tensor) -> Tensor:
        """Rows by number, a copy.

        Raises:
            UserError: if one is not what was written.
        """
        found = self.values[rows]
        numbers = rows.numpy()
        if not self.known[numbers].all():
            bytes_of = found.numpy().reshape(len(numbers), -1)
            for number, row in zip(numbers.tolist(), bytes_of, strict=True):
                if zlib.crc32(row.data) != self.sums[number]:
                    raise UserError(
                        f"{self.path} is damaged at datum {number}; delete the folder {self.path.parent}, and it is "
                        "made anew from the data."
                    )
            self.known[numbers] = True
        self.read_since += found.numel()
        if self.read_since > MAPPED:
            self._advise("MADV_DONTNEED")
            self.read_since = 0
        return found

    def _advise(self, name: str) -> None:
        if (advice := getattr(mmap, name, None)) is not None:  # not every system knows it
            self.map.madvise(advice)


class Stored:
    """Rows of a `StoredFile` in an order of their own: what splits, batches and checks ask of a tensor (N, *shape).

    Indexing reads; `part` does not, unless the part is small.

    Args:
        file: that holds the rows.
        rows: their numbers in it, int64 (N,).
        target: the device that what is read is moved to.
    """

    dtype = torch.uint8
    device = torch.device("cpu")
    """Where indices live: what is read goes to `target`."""

    def __init__(self, file: StoredFile, rows: Tensor, target: torch.device | str = "cpu") -> None:
        self.file, self.rows, self.target = file, rows, torch.device(target)

    @property
    def shape(self) -> torch.Size:
        """(N, *shape)."""
        return torch.Size((len(self.rows), *self.file.shape[1:]))

    def __len__(self) -> int:
        """N."""
        return len(self.rows)

    def __getitem__(self, index: Any) -> Tensor:
        """The rows at an index, as a tensor's: read, and moved to the target."""
        chosen = self.rows[index.cpu() if isinstance(index, Tensor) else index]
        found = self.file.read(chosen.reshape(-1)).reshape(*chosen.shape, *self.shape[1:])
        if self.target.type != "cuda":
            return found.to(self.target)
        return found.pin_memory().to(self.target, non_blocking=True)  # the host need not wait for the steps under way

    def part(self, order: Tensor | slice) -> Tensor | Stored:
        """The rows at the indices, as stored data, or read if they are few."""
        made = Stored(self.file, self.rows[order], self.target)
        return made[:] if made.shape.numel() <= HELD else made

    def to(self, device: torch.device | str) -> Stored:
        """The same, read to a device."""
        return Stored(self.file, self.rows, device)

    def sums(self) -> np.ndarray:
        """CRC-32 of every row, (N,) uint32: what tells them from others without a look at them."""
        return self.file.sums[self.rows.numpy()]
