"""Scores as a picture: time to the right, pitch upwards, a colour for each voice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from pyro_delta.data.music.spec import ScoreSpec
from pyro_delta.errors import UserError
from pyro_delta.files import written_whole

COLOURS = ((214, 69, 65), (242, 158, 46), (63, 155, 95), (52, 101, 190))
"""Red, green and blue of each voice, from the highest; over and over if there are more."""
PAPER, FRAME = 245, 255
SIDE, MARGIN = 4, 2
"""Of a note, and of the frame around a score, in dots."""


def roll(spec: ScoreSpec, x: Tensor, columns: int) -> np.ndarray:
    """One picture (H, W, 3) uint8 of scores (N, T, K), `columns` to a row; voices above are drawn over those below."""
    x_ntk = x.detach().cpu().long().numpy()
    count, rows = len(x_ntk), -(-len(x_ntk) // columns)
    paper_nptc = np.full((rows * columns, spec.levels - 1, spec.length, 3), PAPER, np.uint8)
    paper_nptc[count:] = FRAME
    for voice in reversed(range(spec.voices)):
        score, step = x_ntk[..., voice].nonzero()
        paper_nptc[score, spec.levels - 1 - x_ntk[score, step, voice], step] = COLOURS[voice % len(COLOURS)]
    large = paper_nptc.repeat(SIDE, 1).repeat(SIDE, 2)
    framed = np.pad(large, ((0, 0), (0, MARGIN), (0, MARGIN), (0, 0)), constant_values=FRAME)
    height, width = framed.shape[1:3]
    grid = framed.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    return np.pad(grid, ((MARGIN, 0), (MARGIN, 0), (0, 0)), constant_values=FRAME)


def save_roll(spec: ScoreSpec, x: Tensor, path: Path, columns: int) -> None:
    """Writes that picture.

    Raises:
        UserError: if the path cannot be written.
    """
    from matplotlib.image import imsave  # here, because it takes a while to import

    try:
        with written_whole(path) as file:
            imsave(file, roll(spec, x, columns), format="png")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); give another path.") from None
