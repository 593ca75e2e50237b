"""Series as a picture: a panel for each, a line for each variable, from its location in units of its scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_delta.data.series.spec import SeriesSpec
from pyro_delta.errors import UserError
from pyro_delta.files import written_whole

PANEL = (1.6, 1.1)
"""Inches."""
MOST = 256
"""Panels; further series are left out."""
ROWS, COLUMNS = 8, 12
"""Series and variables of a picture with bands at most."""
HIGHEST = 4.0
"""Scales from the location that are drawn."""


def save_picture(spec: SeriesSpec, x: Tensor, path: Path, columns: int) -> None:
    """Writes a picture of series (N, T, C), NaN where there is nothing, `columns` to a row.

    Raises:
        UserError: if the path cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure  # here, because it takes a while to import

    x_ntc = (x.detach().cpu().double().numpy()[:MOST] - spec.location) / spec.scale
    rows = -(-len(x_ntc) // columns)
    colours = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(spec.names)))
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), dpi=80)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, x_tc in zip(panels, x_ntc):
        panel.set(xlim=(-0.5, spec.length - 0.5), ylim=(-HIGHEST, HIGHEST), xticks=[], yticks=[])
        for variable, colour in enumerate(colours):
            panel.plot(x_tc[:, variable], color=colour, linewidth=0.8, marker=".", markersize=1.5)
    for panel in panels[len(x_ntc) :]:
        panel.set_axis_off()
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99, 0.04, 0.06)
    _save(figure, path)


def save_bands(
    spec: SeriesSpec,
    draws: list[np.ndarray],
    x: list[np.ndarray],
    keep: list[np.ndarray],
    hidden: list[np.ndarray],
    band: tuple[float, float],
    path: Path,
) -> None:
    """Writes a picture of completed series: a row for each, a panel for each variable.

    Args:
        spec: of the series.
        draws: (S, T, C) of each, NaN behind the end: median and band.
        x: numbers (T, C).
        keep: of these, what was kept, boolean: dots.
        hidden: and what is known besides: crosses.
        band: its quantiles.
        path: of a .png file.

    Raises:
        UserError: if the path cannot be written.
    """
    from matplotlib.figure import Figure

    rows, columns = min(len(draws), ROWS), min(len(spec.names), COLUMNS)
    figure = Figure(figsize=(PANEL[0] * columns, 1.3 * PANEL[1] * rows), dpi=80)
    panels = figure.subplots(rows, columns, squeeze=False)
    places = np.arange(spec.length)
    for row, (draws_stc, x_tc, keep_tc, hidden_tc) in enumerate(zip(draws[:rows], x, keep, hidden)):
        inside = ~np.isnan(draws_stc).any((0, 2))
        low, middle, high = np.quantile(draws_stc[:, inside], (band[0], 0.5, band[1]), axis=0)
        for variable, panel in enumerate(panels[row]):
            panel.set(xlim=(-0.5, spec.length - 0.5), xticks=[])
            panel.tick_params(labelsize=5, length=2, pad=1)
            panel.fill_between(places[inside], low[:, variable], high[:, variable], color="C0", alpha=0.3, linewidth=0)
            panel.plot(places[inside], middle[:, variable], color="C0", linewidth=0.8)
            for known, marker, colour in ((keep_tc, ".", "black"), (hidden_tc, "x", "C3")):
                here = known[:, variable]
                panel.plot(places[here], x_tc[here, variable], marker, color=colour, markersize=2.5, linewidth=0)
            if row == 0:
                panel.set_title(spec.names[variable].replace("$", r"\$"), fontsize=6, pad=2)
    figure.subplots_adjust(0.05, 0.02, 0.99, 0.93, 0.3, 0.1)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    try:
        with written_whole(path) as file:
            figure.savefig(file, format="png")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); give another path.") from None
