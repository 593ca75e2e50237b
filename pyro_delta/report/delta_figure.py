"""Figures of the committed rate: δ against the correlation α, and the modes of a prior."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_delta.errors import UserError
from pyro_delta.files import written_whole
from pyro_delta.rate import Modes, ar1_committed_rate

ACCENT = "#c2410c"


def delta_figure(alpha: Sequence[float], length: int) -> Figure:
    """Draw δ of one latent dimension against α [1, fig. 1], with a dot for each dimension of a configuration.

    δ depends on α² only, so negative values are drawn at |α|.

    Args:
        alpha: one value for each latent dimension.
        length: number of steps n of the configuration.

    Returns:
        a matplotlib figure that belongs to no window.

    References:
        [1] A. Razavi, A. van den Oord, B. Poole, O. Vinyals, "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """
    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    axes = figure.subplots()
    curve_alpha = torch.linspace(0, 0.995, 400, dtype=torch.float64).unsqueeze(-1)  # one dimension each
    # Halvings from 32 (or more) down; one too near the configuration's own would only collide with its label.
    halvings = [max(length, 32) >> k for k in range(5)]
    lengths = sorted({length, *(n for n in halvings if max(n / length, length / n) > 1.5)})
    shades = matplotlib.colormaps["Blues"](np.linspace(0.4, 0.95, len(lengths)))
    for n, shade in zip(lengths, shades):
        color, width = (ACCENT, 2.4) if n == length else (shade, 1.6)
        delta = ar1_committed_rate(curve_alpha, n).numpy()
        axes.plot(curve_alpha, delta, color=color, linewidth=width)
        axes.annotate(
            f"n = {n}",
            (curve_alpha[-1].item(), delta[-1]),
            (5, 0),
            textcoords="offset points",
            va="center",
            color=color,
        )
    absolute = torch.tensor(alpha, dtype=torch.float64).abs()
    axes.plot(
        absolute,
        ar1_committed_rate(absolute.unsqueeze(-1), length).numpy(),
        "o",
        markersize=5.5,
        color=ACCENT,
        markeredgecolor="white",
        markeredgewidth=0.8,
        zorder=3,
        clip_on=False,  # α near 1 lies on the edge
    )
    total = ar1_committed_rate(alpha, length).item()
    axes.set_title(
        f"n = {length}, d = {len(alpha)}: {total:.4g} nats committed",
        loc="left",
        fontsize=11,
    )
    axes.set_xlabel("correlation of neighbouring steps, |α|")
    axes.set_ylabel("committed rate δ of one dimension, nats")
    axes.set_xlim(0, 1.0)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    return figure


def modes_figure(found: Modes, delta: float) -> Figure:
    """Draw what each mode of a prior tells ideally, and what it costs above δ or for nothing.

    Args:
        found: modes of one prior.
        delta: the committed rate in nats, for the title.

    Returns:
        a matplotlib figure that belongs to no window.
    """
    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    axes = figure.subplots()
    value = found.values.numpy()
    number = np.arange(1, len(value) + 1)
    speaks = value < 1
    axes.bar(number[speaks], -0.5 * np.log(value[speaks]), width=1.0, color="#9ecae1", label="told ideally")
    axes.bar(number[speaks], 0.5 * (1 - value[speaks]), width=1.0, color=ACCENT, label="its price above δ")
    waste = 0.5 * (value - 1 - np.log(value))
    axes.bar(number[~speaks], waste[~speaks], width=1.0, color="0.6", label="paid for nothing")
    axes.set_title(
        f"δ = {delta:.4g} nats: {found.ideal_nats.item():.4g} told ideally, "
        f"{found.excess_nats.item():.4g} above δ, {found.waste_nats.item():.4g} wasted",
        loc="left",
        fontsize=11,
    )
    axes.set_xlabel("mode, from the slowest")
    axes.set_ylabel("nats")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure to `path`; the suffix gives the format.

    Raises:
        UserError: the path cannot be written, or its suffix names no known format.
    """
    suffix = Path(path).suffix
    if not suffix:
        raise UserError(f"cannot tell the format of the figure {str(path)!r}; name a .png, .pdf or .svg file.")
    try:
        with written_whole(Path(path)) as file:
            figure.savefig(file, format=suffix[1:].lower(), dpi=160)
    except OSError as error:
        raise UserError(f"cannot write the figure {path} ({error.strerror}); give another path.") from None
    except ValueError as error:
        raise UserError(f"cannot write the figure {path} ({error}); name a .png, .pdf or .svg file.") from error
