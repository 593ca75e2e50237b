"""Series as a picture: a panel for each, a line for each variable, from its location in units of its scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from pyro_delta.data.series.spec import SeriesSpec
from pyro_delta.errors import UserError
from pyro_delta.files import written_whole

PANEL = (1.6, 1.1)
"""Inches."""
MOST = 256
"""Panels; further series are left out."""
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
    try:
        with written_whole(path) as file:
            figure.savefig(file, format="png")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); give another path.") from None
