"""The same operations on the same memory, over and over: on CUDA captured as a graph and replayed.

A pixel of a picture is some fifty operations on little data, for which a GPU takes less time than the host needs to
launch them. A graph of a row is launched at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

Run = Callable[[], None]
Capture = Callable[[Run], Run]
"""Makes of what runs operations what runs them again, on the memory that they had."""

FEWEST = 8
"""Rows of a picture from which on a capture is worth its time."""


class Replayed:
    """Runs operations at the first call, which may allocate what they work on; captures and replays them from then on.

    Args:
        run: the operations; whatever they read and write lies where it lay at the last call, and no number of the host
            that they depend on changes.
        capture: of the device.
    """

    def __init__(self, run: Run, capture: Capture) -> None:
        self.run, self.capture, self.warm = run, capture, False
        self.replay: Run | None = None

    def __call__(self) -> None:
        """The operations once."""
        if self.replay is None and self.warm:
            self.replay = self.capture(self.run)
        (self.replay or self.run)()
        self.warm = True


def capture_on(device: torch.device) -> Capture | None:
    """What captures operations on a device; None where nothing is won by it."""
    return partial(cuda_graph, device=device) if device.type == "cuda" else None


def cuda_graph(run: Run, device: torch.device) -> Run:
    """Captures without running; where an operation does not go into a graph, what is returned runs them as ever."""
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                run()
        except RuntimeError:
            return run
    return graph.replay
