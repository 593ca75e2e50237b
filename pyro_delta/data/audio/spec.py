"""What a model must know of sounds: μ-law levels in positions of some milliseconds. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pyro_delta.data.condition import Condition
from pyro_delta.data.spec import Spec, check_sizes, require
from pyro_delta.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class SoundSpec(Spec):
    """Sounds of up to P positions of S samples each: μ-law levels (P, S), integers 0 … levels − 1.

    A sample may depend on all earlier ones. Each sound has a length in positions, `lengths` beside it in a batch. Its
    last position is filled up with silence, and those behind its end hold level 0 throughout, which no sound does:
    so the length shows.

    Args:
        length: P, positions of the longest sound.
        samples: S, of a position.
        rate: samples a second.
        levels: of μ-law, μ = levels − 1; an even number, so that silence lies between two levels.
        mono: whether the channels of a file are averaged; if not, a file of several is refused.
        condition: what sounds are conditioned on.

    Raises:
        UserError: if a size is below 1, or the levels are odd, below 2 or above 256.
    """

    length: int
    samples: int = 160
    rate: int = 8000
    levels: int = 256
    mono: bool = False
    condition: Condition | None = field(default=None, kw_only=True)

    unit: ClassVar[str] = "bits/sample"
    suffix: ClassVar[str] = ".wav"
    what: ClassVar[str] = "sounds"
    datum: ClassVar[str] = "sound"

    def __post_init__(self) -> None:
        """Refuse what no sounds are."""
        check_sizes((*self.shape, self.rate), self.levels)
        if self.levels > 256 or self.levels % 2:
            raise UserError(f"levels = {self.levels}: sounds have an even number of them, 2 to 256.")

    @property
    def shape(self) -> tuple[int, int]:
        """(P, S)."""
        return self.length, self.samples

    @property
    def seconds(self) -> float:
        """Of a sound of all positions."""
        return self.scored / self.rate

    def order(self) -> np.ndarray:
        """Place of every sample."""
        import numpy as np

        return np.arange(self.scored).reshape(self.shape)

    def group(self, rank: int) -> str:
        """A sample of a position."""
        position, sample = divmod(rank, self.samples)
        return f"sample {sample} of position {position}"

    def show(self, x: Tensor, path: Path, columns: int) -> None:
        """Writes sounds one after the other into a wav file, and beside it their spectrograms, a .png of its name."""
        from pyro_delta.data.audio.sounds import save_sounds
        from pyro_delta.data.audio.spectrogram import save_spectrograms

        save_sounds(self, x, path)
        save_spectrograms(self, x, path.with_suffix(".png"), columns)

    def open(self, path: Path, count: int | None = None) -> tuple[Tensor, list[str]]:
        """The sounds of a file of `show`, as they were; any other file as one sound, or those of a folder.

        Raises:
            UserError: if a file cannot be read, is too long, or has several channels.
        """
        from pyro_delta.data.audio.sounds import read_sounds

        return read_sounds(self, path, count)

    def beside(self, x: Tensor) -> dict[str, Tensor]:
        """What goes with sounds (N, P, S) that were read from a file: their lengths, as they show."""
        from pyro_delta.data.audio.sounds import lengths_of

        return {"lengths": lengths_of(x)}

    def measures(self, x: Tensor) -> dict[str, list[float]]:
        """How long each sound (N, P, S) lasts, up to the end of its last position."""
        from pyro_delta.data.audio.sounds import lengths_of

        return {"second": (lengths_of(x) * (self.samples / self.rate)).tolist()}


def require_sounds(spec: object, kind: str, name: str) -> SoundSpec:
    """The spec, which must be one of sounds; see `require`."""
    return require(spec, SoundSpec, "sounds", kind, name)
