"""Figures of a run's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pyro_delta.report.comparison_figure import finish, plain
from pyro_delta.report.delta_figure import ACCENT

Lines = Sequence[Mapping[str, Any]]
MANY = 20
"""Values, of which the largest need not be seen."""


def training_figure(runs: Mapping[str, Lines], unit: str, recorded: tuple[list[int], list[float]] | None) -> Figure:
    """−ELBO and distortion of validations, and the rate beside δ, along the steps.

    Args:
        runs: name → lines of metrics; the first is the run, another its control.
        unit: of bounds.
        recorded: steps and bounds that were recorded of the same settings, if there are any.

    Returns:
        a matplotlib figure that belongs to no window.
    """
    figure = Figure(figsize=(10.4, 3.9), layout="constrained")
    bound, rate = figure.subplots(1, 2)
    for number, (name, lines) in enumerate(runs.items()):
        name, color = plain(name), f"C{number}"
        _draw(bound, lines, "train", "neg_elbo_bpd", color=color, label=f"{name}, −ELBO, train", alpha=0.35)
        _draw(bound, lines, "validation", "neg_elbo_bpd", color=color, label=f"{name}, −ELBO, validation", marker="o")
        _draw(bound, lines, "validation", "distortion_bpd", color=color, linestyle=":", label=f"{name}, distortion")
    if recorded is not None:
        bound.plot(*recorded, color="0.4", linestyle="--", label="recorded of these settings")
    keys, every = ("neg_elbo_bpd", "distortion_bpd"), [line for lines in runs.values() for line in lines]
    shown = sorted(line[key] for line in every for key in keys if line.get(key) is not None)
    if shown:
        low, high = shown[0], _most(shown, 0.85)
        bound.set_ylim(low - 0.05 * (high - low or 0.1), high + 0.05 * (high - low or 0.1))
    finish(bound, "step", unit)
    _explain(bound)
    lines = next(iter(runs.values()))
    _draw(rate, lines, "train", "rate_nats_mean", color="C0", label="mean of a batch")
    _draw(rate, lines, "train", "rate_nats_min", color="C0", alpha=0.4, label="least of a batch")
    _draw(rate, lines, "train", "delta_nats", color=ACCENT, linestyle="--", label="δ")
    finish(rate, "step", "rate KL(q‖p), nats")
    rates = sorted(line["rate_nats_mean"] for line in lines if line.get("rate_nats_mean"))
    if rates:
        rate.set_ylim(0, 1.3 * _most(rates, 0.9))
    _explain(rate)
    for axes in (bound, rate):
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # there is no step between two
    return figure


def _most(values: Sequence[float], part: float) -> float:
    """The largest of sorted values that is seen: the beginning of a long training would flatten the rest."""
    return values[int(part * (len(values) - 1))] if len(values) >= MANY else values[-1]


def _explain(axes: Any) -> None:
    """A legend, where anything was drawn."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _draw(axes: Any, lines: Lines, split: str, key: str, **style: Any) -> None:
    known = [(line["step"], line[key]) for line in lines if line["split"] == split and line.get(key) is not None]
    if known:
        axes.plot(*zip(*known), **({"marker": "."} if len(known) == 1 else {}) | style)


def steps_figure(rate_nd: Tensor, floor_nd: Tensor) -> Figure:
    """The mean rate of each latent step, and of each dimension, beside what δ has there.

    Args:
        rate_nd: nats.
        floor_nd: nats.

    Returns:
        a matplotlib figure that belongs to no window.
    """
    figure = Figure(figsize=(10.4, 3.6), layout="constrained")
    for axes, axis, name in zip(figure.subplots(1, 2), (1, 0), ("latent step", "latent dimension")):
        rate, floor = rate_nd.sum(axis).numpy(), floor_nd.sum(axis).numpy()
        at = np.arange(1, len(rate) + 1)
        axes.bar(at, rate, width=0.85, color="#9ecae1", label="rate, mean over the data")
        axes.step(np.append(at - 0.5, at[-1] + 0.5), np.append(floor, floor[-1]), where="post", color=ACCENT, label="δ")
        finish(axes, name, "nats")
        axes.set_ylim(bottom=min(0.0, float(floor.min())))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(0.4, at[-1] + 0.6)
        if len(at) <= 2:
            axes.set_xticks(at)
    axes.legend(frameon=False, fontsize=8)
    return figure


def confusion_figure(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """What a linear probe on z takes each class for, as parts of the class.

    Args:
        counts: (K, K) data, true classes in rows.
        classes: their names.

    Returns:
        a matplotlib figure that belongs to no window.
    """
    size = min(2.5 + 0.42 * len(classes), 9.0)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    parts = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=max(parts.max(), 1e-9))
    places = range(len(classes))
    classes = [plain(name) for name in classes]
    axes.set_xticks(places, classes, rotation=90 if max(map(len, classes)) > 2 else 0)
    axes.set_yticks(places, classes)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    if len(classes) <= 12:
        for i in places:
            for j in places:
                color = "w" if parts[i, j] > 0.6 * parts.max() else "0.2"
                axes.text(j, i, f"{100 * parts[i, j]:.0f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(image, ax=axes, shrink=0.8, label="part of the class")
    return figure
