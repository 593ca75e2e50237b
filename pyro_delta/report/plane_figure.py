"""The figure of a comparison: the rate–distortion plane, and what is told against the rate."""

from __future__ import annotations

from matplotlib.figure import Figure

from pyro_delta.report.comparison import Comparison


def plane_figure(found: Comparison) -> Figure:
    """Draws distortion, and what z tells, against the rate, with standard errors; a family of arms is joined by a line.

    Args:
        found: the arms.

    Returns:
        a matplotlib figure that belongs to no window.
    """
    figure = Figure(figsize=(10.4, 4.4), layout="constrained")
    plane, told = figure.subplots(1, 2)
    families: dict[str, list[dict]] = {}
    for row in found.rows:
        if row["rate_nats_mean"] is not None:
            families.setdefault(row["family"], []).append(row)
    for family, rows in families.items():
        rows = sorted(rows, key=lambda row: row["rate_nats_mean"])
        for axes, key in ((plane, "distortion_bpd"), (told, "told_calibrated_nats")):
            shown = [row for row in rows if row[key] is not None]
            axes.errorbar(
                [row["rate_nats_mean"] for row in shown],
                [row[key] for row in shown],
                xerr=[row["rate_nats_mean_se"] or 0 for row in shown],
                yerr=[row[f"{key}_se"] or 0 for row in shown],
                marker="o",
                markersize=4.5,
                linewidth=1.4,
                capsize=2,
                label=family,
            )
    end = max((row["rate_nats_mean"] for rows in families.values() for row in rows), default=1.0)
    told.axline((0, 0), (end, end), color="0.7", linewidth=1, linestyle=":", label="all of the rate")
    plane.set_ylabel(f"distortion −log p(x|z), {found.unit}")
    told.set_ylabel("told, calibrated, nats")
    for axes in (plane, told):
        axes.set_xlabel("rate KL(q‖p), nats")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
    plane.set_title(found.title, loc="left", fontsize=11)
    told.legend(frameon=False, fontsize=8)
    return figure
