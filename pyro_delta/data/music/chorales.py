"""Chorales in four voices by J. S. Bach, embedded."""

from __future__ import annotations

from importlib import resources
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pyro_delta.data.music.spec import ScoreSpec
from pyro_delta.data.splits import TEST_SEED, Split, Splits, reordered
from pyro_delta.errors import UserError
from pyro_delta.validation import Count, Seed

LOWEST, LEVELS = 36, 47
"""46 pitches, from the lowest bass to the highest soprano, and the rest."""
KEYS = tuple(f"{abs(n)} {'sharp' if n > 0 else 'flat'}{'s' * (abs(n) > 1)}" if n else "none" for n in range(-5, 7))
"""Key signatures, the labels."""
SAME_MELODY = 15
"""Steps in a row that two sopranos share, whatever their pitch, where they sing one melody."""
TEST, VALIDATION = 60, 45
"""Pieces that these have at least."""
STRIDE = 4
"""Quarter notes between the windows of training: a bar."""
ROOM = 200
"""Quarter notes that whole pieces are filled up to; the longest has 193."""


class Chorales(Splits):
    """362 four-part chorales of J. S. Bach on a grid of quarter notes, in windows of 32 (embedded)

    Tokens are pitches, 0 a rest, soprano to bass. Pieces whose sopranos sing the same melody, of which there are many,
    are in one split, so that no window of a test piece, transposed or not, is known from training. Training windows
    overlap, and come in all transpositions that keep within the pitches; those of validation and test do neither.
    Labels are key signatures.

    The pitches were read from the MusicXML corpus of music21 10.5.1 (BSD-3; its encodings are distributed with the
    permission of those who made them); the music is out of copyright.

    Args:
        length: quarter notes of a window.
        whole: whole pieces in the place of windows, each with its length, filled up with rests to 200 quarter notes.
        transpose: semitones by which training windows are transposed at most, up and down.
        validation: number of validation windows; all if None.
        seed: of the order of training and validation windows; the pieces of each split are always the same.
    """

    preset = "chorales"

    def __init__(
        self,
        *,
        length: Count = 32,
        whole: bool = False,
        transpose: Annotated[int, Field(ge=0, le=6)] = 3,
        validation: int | None = None,
        seed: Seed = 0,
    ) -> None:
        pieces, fifths = read_pieces()
        spec = ScoreSpec(ROOM if whole else length, LEVELS, lowest=LOWEST, whole=whole)
        parts = split_pieces(melodies(pieces))
        splits = [
            windows(
                [pieces[i] for i in part],
                [fifths[i] for i in part],
                None if whole else length,
                stride=length if held_out else STRIDE,
                semitones=range(1) if held_out else range(-transpose, transpose + 1),
            )
            for part, held_out in zip(parts, (False, True, True), strict=True)
        ]
        if min(map(len, splits)) == 0:
            raise UserError(f"data.length={length} is longer than the chorales of a split; give 96 at most.")
        train, held_out, test = splits
        count = len(held_out) if validation is None else validation
        if not 1 <= count <= len(held_out):
            them = "pieces" if whole else "windows"
            raise UserError(
                f"chorales has {len(held_out)} validation {them}, not {count}; ask for 1 to {len(held_out)}."
            )
        held_out = reordered(held_out, seed).take(slice(count))
        super().__init__(spec, reordered(train, seed), held_out, reordered(test, TEST_SEED), KEYS)


def read_pieces() -> tuple[list[Tensor], list[int]]:
    """Tokens (T, 4) of each piece, and the sharps of its key signature, flats counting below zero."""
    with resources.files(__package__).joinpath("chorales.npz").open("rb") as file, np.load(file) as found:
        pitches, lengths, fifths = found["pitches"], found["lengths"], found["key_fifths"]
    tokens = torch.from_numpy(np.where(pitches == 0, 0, pitches - (LOWEST - 1)).astype(np.uint8))
    return list(tokens.split(lengths.tolist())), fifths.tolist()


def melodies(pieces: list[Tensor]) -> list[int]:
    """Which melody each piece has: the first piece with the same one."""
    first = list(range(len(pieces)))

    def of(piece: int) -> int:
        while first[piece] != piece:
            piece = first[piece]
        return piece

    seen: dict[bytes, int] = {}
    for number, piece in enumerate(pieces):
        steps = np.diff(piece[:, 0].numpy().astype(np.int8))
        for start in range(len(steps) - SAME_MELODY + 1):
            other = of(seen.setdefault(steps[start : start + SAME_MELODY].tobytes(), number))
            mine = of(number)
            first[max(mine, other)] = min(mine, other)
    return [of(number) for number in range(len(pieces))]


def split_pieces(melody: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Numbers of the pieces of training, validation and test: whole melodies in a random order, the same each time."""
    order = np.random.default_rng(TEST_SEED).permutation(sorted(set(melody))).tolist()
    parts: list[list[int]] = [[], [], []]
    for one in order:
        which = 2 if len(parts[2]) < TEST else 1 if len(parts[1]) < VALIDATION else 0
        parts[which] += [number for number, other in enumerate(melody) if other == one]
    train, validation, test = parts
    return train, validation, test


def windows(pieces: list[Tensor], fifths: list[int], length: int | None, *, stride: int, semitones: range) -> Split:
    """Windows of pieces with the key signature of each, transposed by all of `semitones` that keep all their pitches.

    Whole pieces have their lengths beside them.

    Args:
        pieces: tokens (T, 4).
        fifths: sharps of their signatures.
        length: of a window; shorter pieces have none. None for whole pieces.
        stride: from a window to the next.
        semitones: to transpose by.
    """
    found: list[Tensor] = []
    labels: list[int] = []
    lengths: list[int] = []
    for piece, sharps in zip(pieces, fifths, strict=True):
        size = len(piece) if length is None else length
        for start in range(0, len(piece) - size + 1, stride if length else size):
            window = piece[start : start + size].long()
            for shift in semitones:
                moved = torch.where(window == 0, 0, window + shift)
                if moved[window > 0].ge(1).all() and moved.max() < LEVELS:  # of rests alone, too
                    room = size if length else ROOM
                    found.append(torch.nn.functional.pad(moved.to(torch.uint8), (0, 0, 0, room - size)))
                    labels.append(KEYS.index(_signature(sharps + 7 * shift)))
                    lengths.append(size)
    x = torch.stack(found) if found else torch.zeros(0, length or ROOM, 4, dtype=torch.uint8)
    extras = {} if length else {"lengths": torch.tensor(lengths)}
    return Split(x, torch.tensor(labels, dtype=torch.int64), extras)


def _signature(sharps: int) -> str:
    """The key signature of so many sharps, in the circle of fifths."""
    return KEYS[(sharps + 5) % 12]
