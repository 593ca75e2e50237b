"""The Japanese vowels: utterances of nine speakers, as the UCI archive and the archive of time series have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyro_delta.data.numerals import number_of, whole_of
from pyro_delta.data.series.files import Found
from pyro_delta.data.series.own import Resolution, made_of
from pyro_delta.data.splits import Splits
from pyro_delta.errors import UserError
from pyro_delta.validation import Seed

COEFFICIENTS = 12
TS = ("JapaneseVowels_TRAIN.ts", "JapaneseVowels_TEST.ts")
AE = ("ae.train", "ae.test")
SIZES = ("size_ae.train", "size_ae.test")
"""Utterances of each speaker, one number after the other, of the two files of `AE`."""
VALIDATION = 45
"""Utterances, five of each speaker."""


class Vowels(Splits):
    """The Japanese vowels: 640 utterances /ae/ of nine men, 7 to 29 frames of 12 LPC cepstra

    Labels are the speakers. The training and test utterances are those of the archive, 270 and 370.

    Args:
        root: folder of `vowels/`, or that folder: with JapaneseVowels_TRAIN.ts and _TEST.ts, or ae.train, ae.test,
            size_ae.train and size_ae.test.
        resolution: that numbers are rounded to, of deviations of 0.1 to 0.5; None for a density.
        validation: number of validation utterances; 45 of the 270 if None.
        seed: of their choice.

    References:
        M. Kudo, J. Toyama, M. Shimbo, "Multidimensional Curve Classification Using Passing-Through Regions", Pattern
        Recognition Letters 20, 1999.
    """

    preset = "vowels"

    def __init__(
        self,
        *,
        root: str = "data",
        resolution: Resolution | None = 0.01,
        validation: int | None = None,
        seed: Seed = 0,
    ) -> None:
        found, folder = read_vowels(Path(root).expanduser())
        count = VALIDATION if validation is None else validation
        super().__init__(*made_of(found, str(folder), resolution, count, seed))


def read_vowels(root: Path) -> tuple[Found, Path]:
    """All utterances, and the folder that they were in.

    Raises:
        UserError: if there are none, or a file holds something else.
    """
    series: list[np.ndarray] = []
    speakers: list[str] = []
    split: list[str] = []
    for folder in (root / "vowels", root):
        for names, read in ((TS, _read_ts), (AE, _read_ae)):
            if not all((folder / name).is_file() for name in names):
                continue
            for which, name in enumerate(names):
                found, labels = read(folder, name)
                series, speakers = series + found, speakers + labels
                split += [("train", "test")[which]] * len(found)
            titles = [str(number) for number in range(len(series))]
            return Found(series, tuple(f"c{i}" for i in range(COEFFICIENTS)), titles, speakers, split), folder
    raise UserError(
        f"there are no vowels in {root / 'vowels'}; put {TS[0]} and {TS[1]} there (timeseriesclassification.com, "
        f"JapaneseVowels), or {', '.join(AE + SIZES)} (archive.ics.uci.edu, Japanese Vowels)."
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); give another.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; give it as the archive has it.") from None


def _read_ts(folder: Path, name: str) -> tuple[list[np.ndarray], list[str]]:
    """An utterance a line: its coefficients, one after the other through all frames, and the speaker."""
    series, speakers, begun = [], [], False
    for number, line in enumerate(_lines(folder / name), 1):
        if not begun or not line.strip():
            begun = begun or line.strip().lower() == "@data"
            continue
        *parts, speaker = line.strip().split(":")
        try:
            series.append(_utterance([list(map(number_of, part.split(","))) for part in parts]).T)
        except ValueError:
            raise _damaged(folder / name, number) from None
        speakers.append(speaker)
    if not series:
        raise _damaged(folder / name, 1)
    return series, speakers


def _read_ae(folder: Path, name: str) -> tuple[list[np.ndarray], list[str]]:
    """A frame a line, an empty line after each utterance; those of each speaker are counted beside."""
    series: list[np.ndarray] = []
    frames: list[list[float]] = []
    for number, line in enumerate([*_lines(folder / name), ""], 1):
        try:
            if line.strip():
                frames.append(list(map(number_of, line.split())))
            elif frames:
                series.append(_utterance(list(zip(*frames, strict=True))).T)
                frames = []
        except ValueError:
            raise _damaged(folder / name, number) from None
    sizes = folder / SIZES[AE.index(name)]
    words = " ".join(_lines(sizes)).split()
    try:
        counts = [whole_of(word) for word in words]
    except ValueError:
        raise _damaged(sizes, 1) from None
    if sum(counts) != len(series) or min(counts, default=0) < 0:
        raise UserError(f"{sizes} counts {sum(counts)} utterances, and {folder / name} has {len(series)}; mend one.")
    return series, [str(speaker) for speaker, count in enumerate(counts, 1) for _ in range(count)]


def _utterance(coefficients: list) -> np.ndarray:
    """Coefficients (12, frames).

    Raises:
        ValueError: if they are something else.
    """
    values = np.array(coefficients, dtype=np.float64)
    if values.ndim != 2 or len(values) != COEFFICIENTS or not values.size or not np.isfinite(values).all():
        raise ValueError
    return values


def _damaged(path: Path, line: int) -> UserError:
    return UserError(
        f"line {line} of {path} is not {COEFFICIENTS} coefficients of each frame; give the file as the archive has it."
    )
