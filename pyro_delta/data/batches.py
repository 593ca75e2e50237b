"""Training batches as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_delta.errors import UserError
from pyro_delta.protocol import Batch, Split

BUCKETS = 17
"""Keeps the order of batches by length apart from what else the seed decides."""


def epoch_order(count: int, epoch: int, seed: int) -> Tensor:
    """The order in which an epoch visits the data: a function of its arguments alone, so that a resumed run agrees.

    Returns:
        A permutation of 0 … count−1, int64 of shape (count,), on the CPU.
    """
    # A pair of integers seeds without collisions; seed + epoch would make epoch 1 of seed 0 epoch 0 of seed 1.
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))


def by_length(order: Tensor, lengths: Tensor, batch_size: int, seed: list[int]) -> Tensor:
    """An epoch's order, cut into batches of data that are about as long as one another, in a random order of batches.

    Which data are left over is up to `order`, as without lengths, and so is who shares a batch among those of a length.

    Args:
        order: a permutation of the data, (N,).
        lengths: of the data, (N,).
        batch_size: B.
        seed: of the order of the batches.

    Returns:
        int64 of shape (N,), of which each full batch is a run.
    """
    count = len(order) // batch_size
    kept = order[: count * batch_size]
    batches = kept[torch.argsort(lengths[kept], stable=True)].reshape(count, batch_size)
    shuffled = batches[torch.from_numpy(np.random.default_rng(seed).permutation(count))]
    return torch.cat((shuffled.reshape(-1), order[count * batch_size :]))


class Batches:
    """An endless stream of training batches, addressed by the global step.

    Each epoch is a new permutation of the split cut into full batches; the N mod B data left over wait for a later
    epoch. Data with `lengths` are put together by these: those of a batch are about as long as one another.

    Args:
        split: the data, moved to the device once, here.
        batch_size: B.
        seed: of the permutations.
        device: where the batches live.
        share: which of so many equal parts of each batch are given, 0 of 1 for whole ones; the number of parts
            divides B.

    Raises:
        UserError: if `batch_size` is below 1 or exceeds the number of data.
    """

    def __init__(
        self, split: Split, batch_size: int, seed: int, device: torch.device | str, share: tuple[int, int] = (0, 1)
    ) -> None:
        if not 1 <= batch_size <= len(split):
            raise UserError(
                f"batch size {batch_size} does not fit {len(split)} training data; choose 1 to {len(split)}."
            )
        self.split = split.to(device)
        self.batch_size, self.share = batch_size, share
        self.seed = seed
        self.batches_per_epoch = len(split) // batch_size
        lengths = split.extras.get("lengths")
        self._lengths = None if lengths is None or lengths.dim() != 1 else lengths.cpu()
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Batch:
        """The batch of global step 0, 1, 2, …, or the share of it: B data, or as many as fall to it, on the device.

        Raises:
            ValueError: if `step` is negative.
        """
        return self.split.batch(self.indices(step))

    def indices(self, step: int) -> Tensor:
        """Which data the batch of a step holds, or the share of it, int64 of shape (B,) or less, on the device.

        Raises:
            ValueError: if `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step {step} is negative; the first batch is that of step 0")
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            order, device = epoch_order(len(self.split), epoch, self.seed), self.split.x.device
            if self._lengths is not None:
                order = by_length(order, self._lengths, self.batch_size, [self.seed, epoch, BUCKETS])
            # From pinned memory, the copy to a GPU does not make the host wait for the steps under way.
            self._order = order.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else order
            self._epoch = epoch
        part, parts = self.share
        size = self.batch_size // parts
        start = position * self.batch_size + part * size
        return self._order[start : start + size]
