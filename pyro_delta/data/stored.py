"""Data larger than memory: one array of bytes in a file, of which rows are read as they are asked for."""

from __future__ import annotations

import os
import weakref
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_delta.errors import UserError

HELD = 64 << 20
"""Bytes: a part of stored data that takes no more is read into memory at once."""


class StoredFile:
    """An array of bytes in a file, every row of which is compared with its checksum when it is first read.

    Rows are read by their place. A memory map would be slower for random rows, and whatever it maps around them would
    count as the process's own memory, soon all of it; read, they stay in the system's cache as long as there is room.

    Args:
        path: of the file.
        offset: of the first row in it, in bytes.
        sums: (N,) uint32, CRC-32 of every row.
        shape: of a row.
    """

    def __init__(self, path: Path, offset: int, sums: np.ndarray, shape: tuple[int, ...]) -> None:
        self.path, self.offset, self.sums = path, offset, sums
        self.shape = torch.Size((len(sums), *shape))
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        self.known = np.zeros(len(sums), bool)

    def read(self, rows: Tensor) -> Tensor:
        """Rows by number, int64 (M,) → (M, *shape).

        Raises:
            UserError: if one is not what was written.
        """
        size = self.shape[1:].numel()
        found = torch.empty(len(rows), *self.shape[1:], dtype=torch.uint8)
        memory = found.numpy().reshape(-1).data
        for place, row in enumerate(rows.tolist()):
            part = memory[place * size : (place + 1) * size]
            whole = os.preadv(self.descriptor, [part], self.offset + row * size) == size
            if not self.known[row]:
                self.known[row] = whole and zlib.crc32(part) == self.sums[row]
            if not (whole and self.known[row]):
                raise UserError(
                    f"{self.path} is damaged at datum {row}; delete the folder {self.path.parent}, and it is made anew "
                    "from the data."
                )
        return found


class Stored:
    """Rows of a `StoredFile` in an order of their own: what splits, batches and checks ask of a tensor (N, *shape).

    Indexing reads; `part` does not, unless the part is small.

    Args:
        file: that holds the rows.
        rows: their numbers in it, int64 (N,).
        target: the device that what is read is moved to.
        step: that bytes in the file are multiples of: what is read is how many.
    """

    dtype = torch.uint8
    device = torch.device("cpu")
    """Where indices live: what is read goes to `target`."""

    def __init__(self, file: StoredFile, rows: Tensor, target: torch.device | str = "cpu", step: int = 1) -> None:
        self.file, self.rows, self.target, self.step = file, rows, torch.device(target), step

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
        if self.step > 1:
            found //= self.step
        if self.target.type != "cuda":
            return found.to(self.target)
        return found.pin_memory().to(self.target, non_blocking=True)  # the host need not wait for the steps under way

    def part(self, order: Tensor | slice) -> Tensor | Stored:
        """The rows at the indices, as stored data, or read if they are few."""
        made = Stored(self.file, self.rows[order], self.target, self.step)
        return made[:] if made.shape.numel() <= HELD else made

    def to(self, device: torch.device | str) -> Stored:
        """The same, read to a device."""
        return Stored(self.file, self.rows, device, self.step)

    def in_steps(self, step: int) -> Stored:
        """The same, as multiples of a step."""
        return Stored(self.file, self.rows, self.target, step)

    def sums(self) -> np.ndarray:
        """CRC-32 of every row, (N,) uint32: what tells them from others without a look at them."""
        return self.file.sums[self.rows.numpy()]
