"""The mode of a network while it draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Protocol
from weakref import WeakKeyDictionary

_LOCK = Lock()
_DRAWING: WeakKeyDictionary[HasMode, tuple[int, bool]] = WeakKeyDictionary()
"""How many draw from a network now, and the mode that it had before the first of them."""


class HasMode(Protocol):
    """What a `torch.nn.Module` has."""

    training: bool

    def train(self, mode: bool = True) -> object:
        """Training mode, or that of evaluation."""


@contextmanager
def in_evaluation(network: HasMode) -> Iterator[None]:
    """A network in evaluation mode; the last of the threads that draw from it puts back the mode that it had."""
    with _LOCK:
        count, training = _DRAWING.get(network, (0, network.training))
        _DRAWING[network] = count + 1, training
        network.train(False)
    try:
        yield
    finally:
        with _LOCK:
            count, training = _DRAWING.pop(network)
            if count > 1:
                _DRAWING[network] = count - 1, training
            else:
                network.train(training)
