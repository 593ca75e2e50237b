"""What a model must know of scores: voices on a grid of quarter notes. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pyro_delta.data.sequences.spec import TokenSpec
from pyro_delta.data.spec import check_sizes
from pyro_delta.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

HIGHEST = 127
"""Pitch of MIDI."""


@dataclass(frozen=True)
class ScoreSpec(TokenSpec):
    """Scores of T quarter notes in K voices: tokens (T, K), 0 a rest, v the MIDI pitch `lowest` + v − 1.

    Positions are quarter notes. A token may depend on all earlier quarter notes, and on the voices above it.

    Args:
        length: T.
        levels: V, of which one is the rest.
        voices: K, from the highest to the lowest.
        lowest: MIDI pitch of token 1.
        whole: whether scores are whole pieces of up to T quarter notes, with rests behind their end, and `lengths`
            beside them in a batch.

    Raises:
        UserError: if a size is below 1, or the pitches are none of MIDI.
    """

    voices: int = 4
    lowest: int = 36
    whole: bool = False

    unit: ClassVar[str] = "bits/note"
    suffix: ClassVar[str] = ".mid"
    what: ClassVar[str] = "scores"
    datum: ClassVar[str] = "score"
    place: ClassVar[str] = "quarter note"

    def __post_init__(self) -> None:
        """Refuse what no scores are."""
        check_sizes(self.shape, self.levels)
        if self.alphabet is not None:
            raise UserError(f"a score has pitches, and no alphabet {self.alphabet!r}; leave it out.")
        if not 0 <= self.lowest <= self.highest <= HIGHEST:
            raise UserError(f"the pitches {self.lowest} to {self.highest} are not in 0 to {HIGHEST}, those of MIDI.")

    @property
    def highest(self) -> int:
        """MIDI pitch of the last token."""
        return self.lowest + self.levels - 2

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, K)."""
        return self.length, self.voices

    def order(self) -> np.ndarray:
        """Place of every token in the order of quarter notes, and of voices within each."""
        import numpy as np

        return np.arange(self.length * self.voices).reshape(self.shape)

    def group(self, rank: int) -> str:
        """A voice of a quarter note."""
        step, voice = divmod(rank, self.voices)
        return f"voice {voice} of quarter note {step}"

    def show(self, x: Tensor, path: Path, columns: int) -> None:
        """Writes scores one after the other into a MIDI file, and beside it a picture of them, a .png of its name."""
        from pyro_delta.data.music.midi import save_midi
        from pyro_delta.data.music.roll import save_roll

        save_midi(self, x, path)
        save_roll(self, x, path.with_suffix(".png"), columns)

    def open(self, path: Path, count: int | None = None) -> tuple[Tensor, list[str]]:
        """Scores of a MIDI file of K tracks, in windows that do not overlap; those of `show` as they were.

        Where scores are whole pieces, a file is one.

        Raises:
            UserError: if the file cannot be read, is too short or too long, or has other voices or pitches.
        """
        from pyro_delta.data.music.midi import read_midi

        return read_midi(self, path, count)

    def beside(self, x: Tensor) -> dict[str, Tensor]:
        """What goes with scores (N, T, K) that were read from a file: lengths of whole pieces, to their last note."""
        if not self.whole:
            return {}
        import torch

        steps = torch.arange(1, self.length + 1, device=x.device)
        return {"lengths": torch.where((x > 0).any(-1), steps, 1).amax(-1)}
