"""Figures of a comparison: the rate–distortion plane, its families along a grid, or bounds beside those of others."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_delta.report.comparison import Comparison

Families = dict[str, list[dict[str, Any]]]
TOLD = "told, calibrated, nats"


def comparison_figure(found: Comparison) -> Figure:
    """Draws arms with their standard errors; a family is joined by a line.

    Where others' bounds are cited: all bounds, the lowest first, with the operations of ours. Where a grid goes through
    all families, as that of decoders of growing strength: rate, told and −ELBO along it. Else distortion, what z
    tells and, where data have labels, a probe, against the rate.

    Args:
        found: the arms.

    Returns:
        a matplotlib figure that belongs to no window.
    """
    families: Families = {}
    for row in found.rows:
        if row["rate_nats_mean"] is not None:
            families.setdefault(row["family"], []).append(row)
    along = list(dict.fromkeys(row["across"] for row in found.rows if row["across"]))
    if found.cited:
        figure = _bounds(found)
    else:
        figure = _along(found, families, along) if len(along) > 1 else _plane(found, families)
    figure.suptitle(plain(found.title), x=0.01, ha="left", fontsize=11)
    return figure


def _plane(found: Comparison, families: Families) -> Figure:
    panels = {"distortion_bpd": f"distortion −log p(x|z), {found.unit}", "told_calibrated_nats": TOLD}
    if any(row["probe_accuracy"] is not None for rows in families.values() for row in rows):
        panels["probe_accuracy"] = "accuracy of a linear probe on z"
    figure = Figure(figsize=(1.2 + 4.2 * len(panels), 4.4), layout="constrained")
    drawn = dict(zip(panels, figure.subplots(1, len(panels))))
    for family, rows in families.items():
        rows = sorted(rows, key=lambda row: row["rate_nats_mean"])
        errors = [row["rate_nats_mean_se"] or 0 for row in rows]
        for key, axes in drawn.items():
            _line(axes, family, [row["rate_nats_mean"] for row in rows], rows, key, errors)
    end = max((row["rate_nats_mean"] for rows in families.values() for row in rows), default=1.0)
    told = drawn["told_calibrated_nats"]
    told.set_ylim(told.get_ylim())  # as far as what is told goes, not the rate
    told.axline((0, 0), (end or 1.0, end or 1.0), color="0.7", linewidth=1, linestyle=":", label="all of the rate")
    for key, axes in drawn.items():
        finish(axes, "rate KL(q‖p), nats", panels[key])
    told.legend(frameon=False, fontsize=8)
    return figure


def _along(found: Comparison, families: Families, along: list[str]) -> Figure:
    figure = Figure(figsize=(13.2, 4.4), layout="constrained")
    panels = {
        "rate_nats_mean": "rate KL(q‖p), nats",
        "told_calibrated_nats": TOLD,
        "neg_elbo_bpd": f"−ELBO, {found.unit}",
    }
    for axes, (key, name) in zip(figure.subplots(1, 3), panels.items()):
        for family, rows in families.items():
            shown = [row for row in rows if row["across"]]
            _line(axes, family, [along.index(row["across"]) for row in shown], shown, key)
        axes.set_xticks(range(len(along)), [place.replace(",", "\n") for place in along], fontsize=8)
        finish(axes, "", name)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _bounds(found: Comparison) -> Figure:
    ours = [row for row in found.rows if row["neg_elbo_bpd"] is not None]
    bounds = sorted([*ours, *found.cited], key=lambda bound: bound["neg_elbo_bpd"])
    figure = Figure(figsize=(8.4, 1.4 + 0.3 * len(bounds)), layout="constrained")
    axes = figure.subplots()
    for place, bound in enumerate(bounds):
        cited = "arm" not in bound
        style: dict[str, Any] = (
            {"color": "0.45", "markerfacecolor": "white"} if cited else {"color": "C0", "capsize": 2}
        )
        error = None if cited else bound["neg_elbo_bpd_se"]
        axes.errorbar(bound["neg_elbo_bpd"], place, xerr=error, marker="o", markersize=5, **style)
        flops = bound.get("training_flops")
        text = f"{bound['neg_elbo_bpd']:.2f}" + ("" if flops is None else f", {flops:.1e} FLOPs")
        axes.annotate(text, (bound["neg_elbo_bpd"], place), (8, 0), textcoords="offset points", va="center", fontsize=8)
    names = [plain(bound["arm"]) if "arm" in bound else f"{plain(bound['name'])} (cited)" for bound in bounds]
    axes.set_yticks(range(len(bounds)), names, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    finish(axes, f"−ELBO or −log p(x), {found.unit}", "")
    return figure


def _line(
    axes: Axes, family: str, at: list[float], rows: list[dict[str, Any]], key: str, at_errors: list[float] | None = None
) -> None:
    """A family, of which what is not known is left out."""
    values = [float("nan") if row[key] is None else row[key] for row in rows]
    errors = [row[f"{key}_se"] or 0 for row in rows]
    style: dict[str, Any] = {"marker": "o", "markersize": 4.5, "linewidth": 1.4, "capsize": 2}
    axes.errorbar(at, values, xerr=at_errors, yerr=errors, label=plain(family), **style)


def plain(text: str) -> str:
    """A name as matplotlib is to write it: without formulas between dollars, and in the legend where _ begins it."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def finish(axes: Axes, across: str, up: str) -> None:
    """Names the axes, and takes the frame away."""
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
