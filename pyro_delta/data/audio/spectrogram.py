"""Sounds as pictures: time to the right, frequency upwards, how loud by colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from pyro_delta.data.audio.companding import expanded
from pyro_delta.data.audio.sounds import lengths_of
from pyro_delta.data.audio.spec import SoundSpec
from pyro_delta.errors import UserError
from pyro_delta.files import written_whole

FLOOR = -80.0
"""Decibels below full scale that are black."""
WINDOW = 256
"""Samples of a spectrum, if a sound has as many: bands of 31 Hz at 8 kHz."""
FRAME, MARGIN = 255, 2
"""White, and dots of it around a picture."""


def spectrograms(spec: SoundSpec, x: Tensor, columns: int) -> np.ndarray:
    """One picture (H, W, 3) uint8 of sounds (N, P, S), `columns` to a row; white behind the end of each."""
    from matplotlib import colormaps  # here, because it takes a while to import
    from scipy.signal import ShortTimeFFT
    from scipy.signal.windows import hann

    x = x.detach().cpu()
    window = min(WINDOW, spec.scored)
    hop = max(1, window // 4)
    spectra = ShortTimeFFT(hann(window, sym=False) if window > 1 else np.ones(1), hop, spec.rate, scale_to="magnitude")
    shown, steps = [], -(-spec.scored // hop)
    for sound, length in zip(x, lengths_of(x).tolist()):
        amplitude = expanded(sound.flatten().double(), spec.levels).numpy()
        amplitude[length * spec.samples :] = 0.0
        power_ft = spectra.spectrogram(amplitude, p0=0, p1=steps)
        loud_ft = np.maximum(10 * np.log10(power_ft + 1e-12), FLOOR) / -FLOOR + 1
        picture_ftc = (colormaps["magma"](loud_ft[::-1])[..., :3] * 255).astype(np.uint8)
        picture_ftc[:, -(-length * spec.samples // hop) :] = FRAME
        shown.append(np.pad(picture_ftc, ((0, MARGIN), (0, MARGIN), (0, 0)), constant_values=FRAME))
    rows = -(-len(shown) // columns)
    shown += [np.full_like(shown[0], FRAME)] * (rows * columns - len(shown))
    lines = [np.concatenate(shown[row * columns : (row + 1) * columns], axis=1) for row in range(rows)]
    return np.pad(np.concatenate(lines), ((MARGIN, 0), (MARGIN, 0), (0, 0)), constant_values=FRAME)


def save_spectrograms(spec: SoundSpec, x: Tensor, path: Path, columns: int) -> None:
    """Writes that picture.

    Raises:
        UserError: if the path cannot be written.
    """
    from matplotlib.image import imsave

    try:
        with written_whole(path) as file:
            imsave(file, spectrograms(spec, x, columns), format="png")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); give another path.") from None
