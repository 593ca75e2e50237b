"""Speech, and folders of sounds of one's own, as programs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_delta.data.audio.sounds import SUFFIXES, Clipped, filled, lengths_of, read_levels
from pyro_delta.data.audio.spec import SoundSpec
from pyro_delta.data.folders import labels_of, list_files, list_splits, names_of
from pyro_delta.data.splits import TEST_SEED, Split, Splits, chosen_count, hold_out, reordered, with_test
from pyro_delta.errors import UserError
from pyro_delta.validation import Count, Seed

FOLDERS = ("digits", "letters", "phonetic")
TEST, VALIDATION = 36, 22
"""Files of these."""
LENGTH = 80
"""Positions of 20 ms: 1.6 seconds, in which each word of the speech has room."""


class Speech(Splits):
    """182 spoken digits, letters and words of one voice, 8 kHz, up to 1.6 s (in --data-root, see its help)

    Asterisk's core sounds in English, in the folders digits, letters and phonetic, which are the labels: put them as
    `speech/digits/…` (or `speech/en/digits/…`) below --data-root. They were spoken by Allison Smith, and are
    CC-BY-SA 3.0: https://downloads.asterisk.org/pub/telephony/sounds (asterisk-core-sounds-en-wav).

    Args:
        root: the folder that holds `speech`.
        length: positions of 20 ms that the longest sound may have.
        cut: longer sounds are cut into pieces of `length` positions, one after the other, rather than refused.
        validation: number of files whose sounds validate.
        seed: of their choice; the test files are the same for every seed.
    """

    preset = "speech"

    def __init__(
        self,
        *,
        root: str = "data",
        length: Count = LENGTH,
        cut: bool = False,
        validation: int | None = None,
        seed: Seed = 0,
    ) -> None:
        home = Path(root).expanduser() / "speech"
        home = home / "en" if (home / "en").is_dir() else home
        if missing := [name for name in FOLDERS if not (home / name).is_dir()]:
            raise UserError(
                f"there is no folder {home / missing[0]}; put the folders {', '.join(FOLDERS)} of Asterisk's core "
                "sounds there (asterisk-core-sounds-en-wav of https://downloads.asterisk.org/pub/telephony/sounds)."
            )
        found = {name: list_files(home / name, "sounds", SUFFIXES) for name in FOLDERS}
        listed = [[f"{name}/{file}" for file in files] for name, (files, _) in found.items()]
        spec = SoundSpec(length)
        train, test = hold_out(_numbered(listed), TEST, TEST_SEED)
        left, held_out = hold_out(train, VALIDATION if validation is None else validation, seed)
        super().__init__(*_read(spec, home, (left, held_out, test), seed, cut), FOLDERS)
        for name, (_, account) in found.items():
            if account.left:
                account.tell(home / name)


class Audio(Splits):
    """your own sounds, audio:FOLDER: wav, flac or ogg in FOLDER/train and FOLDER/test, with or without class folders

    FOLDER/val validates if it is there. Where FOLDER holds sounds or classes themselves, a tenth of the files, the same
    for every seed, is for test. They are brought to 8 kHz and 256 μ-law levels. A position is 20 ms; the last one of a
    sound is filled up with silence.

    Args:
        root: FOLDER itself.
        length: positions of 20 ms that the longest sound may have.
        cut: longer sounds are cut into pieces of `length` positions, one after the other, rather than refused.
        mono: the channels of a file are averaged; without it, a file of several is refused.
        validation: number of files whose sounds validate, of FOLDER/val; without that folder a tenth of the training
            files if None.
        seed: of their choice.
    """

    preset = "speech"

    def __init__(
        self,
        *,
        root: str,
        length: Count = LENGTH,
        cut: bool = False,
        mono: bool = False,
        validation: int | None = None,
        seed: Seed = 0,
    ) -> None:
        home = Path(root).expanduser()
        listed = list_splits(home, "sounds", SUFFIXES)
        parts = (listed.train, listed.validation, listed.test)
        train, held_out, test = (
            None if part is None else _numbered(part, listed.classes is not None) for part in parts
        )
        assert train is not None
        train, tested = with_test(train, test, home, "sounds")
        if held_out is None:
            train, held_out = hold_out(train, max(1, len(train) // 10) if validation is None else validation, seed)
        else:
            held_out = reordered(held_out, seed).take(slice(chosen_count(held_out, validation)))
        spec = SoundSpec(length, mono=mono)
        super().__init__(*_read(spec, home, (train, held_out, tested), seed, cut), listed.classes)
        listed.account.tell(home, len(tested) if test is None else None)


def _numbered(listed: Sequence[Sequence[str]], labelled: bool = True) -> Split:
    """Files as data, with their classes: a file is in one split, whatever it is cut into."""
    files = np.array([*chain(*listed)], dtype=object)
    labels = torch.from_numpy(labels_of(listed)) if labelled else None
    return Split(torch.arange(len(files)), labels, names=files)


def _read(
    spec: SoundSpec, home: Path, parts: Sequence[Split], seed: int, cut: bool
) -> tuple[SoundSpec, Split, Split, Split]:
    """The spec and the sounds of three splits, from those of the files."""
    clipped = Clipped()
    read = [_sounds(spec, home, part, cut, clipped) for part in parts]
    clipped.tell(home)
    return spec, reordered(read[0], seed), reordered(read[1], seed), reordered(read[2], TEST_SEED)


def _sounds(spec: SoundSpec, home: Path, part: Split, cut: bool, clipped: Clipped) -> Split:
    """The sounds of files, each with its length and the name of its file."""
    assert part.names is not None
    found: list[Tensor] = []
    names: list[str] = []
    for file in part.names:
        sounds = filled(spec, read_levels(spec, home / file, clipped, cut=cut))
        found.append(sounds)
        names += [file] if len(sounds) == 1 else [f"{file}/{number}" for number in range(len(sounds))]
    x = torch.cat(found)
    counts = torch.tensor([len(sounds) for sounds in found])
    labels = None if part.labels is None else part.labels.repeat_interleave(counts)
    return Split(x, labels, {"lengths": lengths_of(x)}, names=names_of(names))
