"""Interrupts and termination signals, which end work in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ended_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Has SIGINT and SIGTERM handled so for a while.

    NOTE: Python lets the main thread alone take signals; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Keeps SIGINT from this thread, and for good from the processes that it starts: the terminal sends it to all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
