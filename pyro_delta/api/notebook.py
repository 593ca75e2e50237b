"""How a training comes along in a notebook: one line, kept up to date; elsewhere nothing is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from typing import Any

from pyro_delta.inference.training import Training


@contextmanager
def following(training: Training) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields what to call with each line of metrics: it keeps one line in the output of a notebook's cell."""
    if not in_notebook():
        yield lambda line: None
        return
    display = import_module("IPython.display").display
    newest: dict[str, dict[str, Any]] = {}
    handle = display(_shown(training, newest), raw=True, display_id=True)

    def show(line: dict[str, Any]) -> None:
        newest[line["split"]] = line
        handle.update(_shown(training, newest), raw=True)

    yield show


def in_notebook() -> bool:
    """Whether a kernel of IPython runs this, not a terminal; IPython is not loaded to find out."""
    loaded = sys.modules.get("IPython")
    shell = None if loaded is None else loaded.get_ipython()
    return getattr(shell, "kernel", None) is not None


def _shown(training: Training, newest: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The line, as a page and as text."""
    text = in_words(newest, training.data.spec.unit, training.progress)
    return {
        "text/plain": text,
        "text/html": f'<progress value="{min(training.progress, 1):.3f}"></progress> {escape(text)}',
    }


def in_words(newest: dict[str, dict[str, Any]], unit: str, progress: float) -> str:
    """Step, the newest bound of each split, rate, δ and time left.

    Args:
        newest: lines of metrics, by split; what is not finite is None there.
        unit: of bounds.
        progress: part of the training that is over.
    """
    if not newest:
        return "starting"
    last = max(newest.values(), key=lambda line: line["step"])
    parts = [
        f"step {last['step']}",
        *(f"{split} {_number(line['neg_elbo_bpd'])} {unit}" for split, line in newest.items()),
    ]
    parts += [f"rate {_number(last['rate_nats_mean'])} nats", f"δ {_number(last['delta_nats'])}"]
    if 0 < progress < 1:
        left = round(last["train_s"] * (1 - progress) / progress)
        parts.append(f"{left // 60}:{left % 60:02} left")
    return " · ".join(parts)


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.4g}"
