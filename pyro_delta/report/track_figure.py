"""Figure of trainings beside the recorded ones: the validation bound by step, and by floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from pyro_delta.errors import UserError
from pyro_delta.report.comparison_figure import finish, plain
from pyro_delta.report.track import Curve


def track_figure(own: Sequence[Curve], recorded: Sequence[Curve]) -> Figure:
    """Draws the mean over the seeds, and a band of one deviation of single runs where there are several.

    Args:
        own: of the runs at hand.
        recorded: those of the same unit are drawn, dotted.

    Returns:
        a matplotlib figure that belongs to no window.

    Raises:
        UserError: if bounds are in different units.
    """
    units = sorted({curve.unit for curve in own})
    if len(units) > 1:
        raise UserError(f"the runs' bounds are in {' and '.join(units)}; draw runs of one kind of data.")
    figure = Figure(figsize=(10.4, 4.4), layout="constrained")
    by_step, by_flops = figure.subplots(1, 2, sharey=True)
    for axes, across in ((by_step, "step"), (by_flops, "floating-point operations")):
        for number, curve in enumerate(own):
            _line(axes, curve, across, curve.name, color=f"C{number}", linestyle="-")
        for number, curve in enumerate(recorded, len(own)):
            if curve.unit == units[0]:
                _line(axes, curve, across, f"{curve.name}, recorded", color=f"C{number}", linestyle=":")
        finish(axes, across, f"validation −ELBO, {units[0]}")
    at = [place for drawn in by_flops.get_lines() for place in drawn.get_xdata()]
    if max(at) > 10 * min(at):  # else no power of ten may lie between them
        by_flops.set_xscale("log")
        by_flops.xaxis.set_minor_formatter(NullFormatter())
    by_flops.legend(frameon=False, fontsize=8)
    return figure


def _line(axes: Axes, curve: Curve, across: str, label: str, *, color: str, linestyle: str) -> None:
    each = 1 if across == "step" else curve.seen * curve.flops_per_datum
    at = [step * each for step in curve.steps]
    found = [curve.at(step) for step in curve.steps]
    means = [known[0] for known in found if known]
    deviations = [known[1] for known in found if known]
    axes.plot(at, means, label=plain(label), color=color, linestyle=linestyle, marker="o", markersize=3.5)
    if any(deviations):
        low, high = zip(*((mean - off, mean + off) for mean, off in zip(means, deviations)))
        axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
