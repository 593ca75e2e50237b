"""Series in files: tables (.csv) and arrays (.npz).

**Tables.** The first line names the columns. `series` says which series a row is of; rows of one stand together, in
their order. Optional: `position`, whole numbers that rise within a series, where those left out are missing; `label`
and `split` (train, validation or test), the same all through a series. All other columns are variables. An empty cell,
or `nan`, is a number that is missing.

**Arrays.** `x` (N, T, C), NaN where a number is missing, or (rows, C), series after series, with `lengths`. Optional:
`lengths` (N,), positions of each; `mask` (N, T, C) or (rows, C), true where a number is known; `labels` (N,); `split`
(N,); `names` (C,) of the variables. Nothing in it may be pickled.
"""

from __future__ import annotations

import csv
import io
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_delta.data.numerals import number_of, whole_of
from pyro_delta.data.series.spec import SeriesSpec
from pyro_delta.data.texts import save_text
from pyro_delta.errors import UserError, unknown_name
from pyro_delta.files import UNREADABLE

SPLITS = ("train", "validation", "test")
LONGEST = 100_000
"""Positions of a series that are read."""
SERIES, POSITION, LABEL, SPLIT = "series", "position", "label", "split"
FINEST = 1e-2
"""Part of a variable's deviation that rounding to single precision may take."""
KEYS = ("x", "lengths", "mask", "labels", "split", "names")
ZIP, ARRAY = b"PK", b"\x93NUMPY"
"""How files of np.savez begin, and those of np.save."""


class Found(NamedTuple):
    """What a file holds.

    Attributes:
        series: (t, C) each, in double precision, NaN where a number is missing, and something known at the end.
        names: of the C variables.
        titles: of the series.
        labels: of the series, or None.
        split: names of splits, or None.
    """

    series: list[np.ndarray]
    names: tuple[str, ...]
    titles: list[str]
    labels: list[str] | None = None
    split: list[str] | None = None


def read_file(path: Path) -> Found:
    """The series of a .csv or .npz file.

    Raises:
        UserError: if it cannot be read, or holds something else.
    """
    readers = {".csv": _read_csv, ".npz": _read_npz}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is no table and no arrays of NumPy; give a .csv or .npz file.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); give a .csv or .npz file.") from None
    found = readers[path.suffix.lower()](path, content)
    if not found.series:
        raise UserError(f"{path} holds no series; give one at least.")
    for title, values in zip(found.titles, found.series, strict=True):
        if np.isinf(values).any():
            raise UserError(f"{path} holds a number that is infinite in series {title!r}; take it out.")
        if not len(values):
            raise UserError(f"nothing is known of series {title!r} of {path}; take it out.")
    if found.split is not None and (wrong := sorted(set(found.split) - set(SPLITS))):
        raise UserError(f"{path} has a series of split {wrong[0]!r}; write train, validation or test.")
    return found


def _known_part(values: np.ndarray) -> np.ndarray:
    """A series up to the last position at which something is known."""
    known = np.flatnonzero(~np.isnan(values).all(1))
    return values[: known[-1] + 1 if known.size else 0]


def padded(found: list[np.ndarray], length: int) -> np.ndarray:
    """Series in one array (N, T, C), NaN behind their ends."""
    x_ntc = np.full((len(found), length, found[0].shape[1]), np.nan)
    for row, values in zip(x_ntc, found, strict=True):
        row[: len(values)] = values
    return x_ntc


# --- Tables ---


def _read_csv(path: Path, content: bytes) -> Found:
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; convert it.") from None
    except csv.Error as error:
        raise UserError(f"{path} is no table that can be read ({error}); separate its cells by commas.") from None
    rows = [(number, line) for number, line in enumerate(lines, 1) if line]
    if not rows:
        raise UserError(f"{path} is empty; give a table whose first line names the columns.")
    header = [name.strip() for name in rows[0][1]]
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{path} has two columns {twice[0]!r}; give each a name of its own.")
    if "" in header:
        raise UserError(f"column {header.index('') + 1} of {path} has no name; give it one, or take it out.")
    if len(header) == 1 and (other := [mark for mark in (";", "\t", "|") if mark in header[0]]):
        raise UserError(f"{path} has {other[0]!r} between its cells; separate them by commas, with points in numbers.")
    if SERIES not in header:
        raise UserError(f"{path} has no column {SERIES!r}, which says which series a row is of; add it.")
    names = tuple(name for name in header if name not in (SERIES, POSITION, LABEL, SPLIT))
    if not names:
        raise UserError(f"{path} has no column of a variable; add one.")
    for number, line in rows[1:]:
        if len(line) != len(header):
            raise UserError(f"line {number} of {path} has {len(line)} cells, the first line {len(header)}; mend it.")
    at = {name: place for place, name in enumerate(header)}
    series: list[np.ndarray] = []
    beside: dict[str, list[str]] = {name: [] for name in (SERIES, LABEL, SPLIT)}
    for title, group in groupby(rows[1:], lambda row: row[1][at[SERIES]].strip()):
        part = list(group)
        if title in beside[SERIES]:
            raise UserError(f"line {part[0][0]} of {path} goes on with series {title!r}; put its rows together.")
        values = np.array([[_number(path, n, name, line[at[name]]) for name in names] for n, line in part])
        if POSITION in at:
            values = _placed(path, values, [(n, line[at[POSITION]]) for n, line in part])
        series.append(_known_part(values))
        beside[SERIES].append(title)
        for name in {LABEL, SPLIT} & at.keys():
            if len(said := {line[at[name]].strip() for _, line in part}) > 1:
                raise UserError(f"series {title!r} of {path} has {len(said)} values of {name!r}; give it one.")
            beside[name].append(said.pop())
    return Found(series, names, beside[SERIES], beside[LABEL] or None, beside[SPLIT] or None)


def _number(path: Path, line: int, name: str, cell: str) -> float:
    """A cell; NaN where a number is missing."""
    try:
        return number_of(cell) if cell.strip() else np.nan
    except ValueError:
        raise UserError(
            f"line {line} of {path} has {cell!r} in the column {name!r}, which is no number; write it like -12.5 or "
            "1e3, or leave the cell empty if it is missing."
        ) from None


def _placed(path: Path, values: np.ndarray, positions: list[tuple[int, str]]) -> np.ndarray:
    """Rows at their positions, counted from that of the first."""
    places: list[int] = []
    for line, cell in positions:
        try:
            place = whole_of(cell)
        except ValueError:
            raise UserError(f"line {line} of {path} has the position {cell!r}; give a whole number.") from None
        if places and place <= places[-1]:
            raise UserError(f"line {line} of {path} has position {place} after {places[-1]}; positions must rise.")
        if places and place - places[0] >= LONGEST:
            raise UserError(f"line {line} of {path} is {place - places[0]} positions behind the first; {LONGEST} do.")
        places.append(place)
    placed = np.full((places[-1] - places[0] + 1, values.shape[1]), np.nan)
    placed[[place - places[0] for place in places]] = values
    return placed


def save_csv(spec: SeriesSpec, x: Tensor, path: Path, titles: list[str] | None = None) -> None:
    """Writes series (N, T, C), NaN where a number is missing and behind the end, as a table; numbered without titles.

    Raises:
        UserError: if the path cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([SERIES, POSITION, *spec.names])
    for number, values in enumerate(x.detach().cpu().float().numpy()):
        for position, row in enumerate(_known_part(values)):
            writer.writerow(
                [
                    titles[number] if titles else number,
                    position,
                    *("" if np.isnan(value) else str(value) for value in row),
                ]
            )
    save_text(text.getvalue(), path)


# --- Arrays ---


def _read_npz(path: Path, content: bytes) -> Found:
    if not content.startswith(ZIP):
        found = "a single array, as np.save writes it" if content.startswith(ARRAY) else "no archive of arrays"
        raise UserError(f"{path} is {found}; give what np.savez(…, x=…) writes.")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{path} holds no arrays that can be read ({reason.rstrip('.')}); give another.") from None
    for name in arrays:
        if name not in KEYS:
            raise unknown_name(f"array of {path}", name, KEYS)
    if "x" not in arrays:
        raise UserError(f"{path} has no array 'x' of series; add it.")
    x = _real(path, "x", arrays["x"], (2, 3))
    if x.ndim == 3 and not x.shape[1]:
        raise UserError(f"{path} has x of shape {x.shape}, which has no positions; give (N, T, C) with T of 1 or more.")
    mask = _bools(path, arrays["mask"], x.shape) if "mask" in arrays else None
    if mask is not None:
        if np.isnan(x[mask]).any():
            raise UserError(f"{path} has NaN in x where the mask says that a number is known; change one of them.")
        x = np.where(mask, x, np.nan)
    lengths = _counts(path, arrays["lengths"]) if "lengths" in arrays else None
    if x.ndim == 3:
        if lengths is None:
            lengths = [x.shape[1]] * len(x)
        if len(lengths) != len(x) or not all(1 <= length <= x.shape[1] for length in lengths):
            raise UserError(f"the lengths of {path} do not fit x {x.shape}; give {len(x)}, of 1 to {x.shape[1]}.")
        series = [values[:length] for values, length in zip(x, lengths, strict=True)]
    elif lengths is None:
        raise UserError(
            f"{path} has x of shape {x.shape} without lengths; give x (N, T, C), or lengths that divide it."
        )
    elif (least := min(lengths, default=1)) < 1:
        raise UserError(f"the lengths of {path} have {least} among them; give 1 or more each.")
    elif sum(lengths) != len(x):
        raise UserError(f"the lengths of {path} sum to {sum(lengths)}, and x has {len(x)} rows; make them fit.")
    else:
        series = np.split(x, np.cumsum(lengths)[:-1])
    given = {name: _words(path, name, arrays[name]) for name in ("labels", "split", "names") if name in arrays}
    for name, count in (("labels", len(series)), ("split", len(series)), ("names", x.shape[-1])):
        if name in given and len(given[name]) != count:
            raise UserError(f"{path} has {len(given[name])} entries of {name!r}; give {count}.")
    names = tuple(given.get("names", [f"x{number}" for number in range(x.shape[-1])]))
    if len(set(names)) != len(names) or not names:
        raise UserError(f"{path} has the variables {', '.join(names) or 'none'}; give each a name of its own.")
    titles = list(map(str, range(len(series))))
    return Found([_known_part(values) for values in series], names, titles, given.get("labels"), given.get("split"))


def _real(path: Path, name: str, values: np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
    if values.dtype.kind not in "biuf" or values.ndim not in dims:
        raise UserError(f"{path} has {name!r} of {values.dtype}, {values.shape}; give real numbers (N, T, C).")
    return values.astype(np.float64)


def _bools(path: Path, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if values.shape != shape or not np.isin(values, (0, 1)).all():
        raise UserError(f"the mask of {path} is of {values.dtype}, {values.shape}; give true and false, {shape}.")
    return values.astype(bool)


def _counts(path: Path, values: np.ndarray) -> list[int]:
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise UserError(f"the lengths of {path} are of {values.dtype}, {values.shape}; give whole numbers (N,).")
    return [int(value) for value in values]


def _words(path: Path, name: str, values: np.ndarray) -> list[str]:
    if values.dtype.kind not in "biuUS" or values.ndim != 1:
        raise UserError(
            f"{path} has {name!r} of {values.dtype}, {values.shape}; give words or whole numbers, one each."
        )
    return [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values.tolist()]


# --- For a model ---


def read_series(spec: SeriesSpec, path: Path, count: int | None) -> tuple[Tensor, list[str]]:
    """The series of a file as a model takes them, and their names; see `SeriesSpec.open`."""
    found = read_file(path)
    if set(found.names) != set(spec.names):
        raise UserError(
            f"{path} has the variables {', '.join(found.names)}, and this model {', '.join(spec.names)}; give these."
        )
    columns = [found.names.index(name) for name in spec.names]
    series = [values[:, columns] for values in found.series[:count]]
    for title, values in zip(found.titles, series):
        if len(values) > spec.length:
            raise UserError(
                f"series {title!r} of {path} has {len(values)} positions, and series of this model {spec.length} at "
                "most; cut it."
            )
    return held(spec, padded(series, spec.length), str(path)), [
        f"{path.name}/{title}" for title in found.titles[:count]
    ]


def held(spec: SeriesSpec, x: np.ndarray, title: str) -> Tensor:
    """Numbers (…, C) in single precision, rounded to the resolution.

    Raises:
        UserError: if single precision does not hold them.
    """
    resolution = spec.resolution
    finest = np.array(spec.scale) * FINEST if resolution is None else resolution / 4
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = x if resolution is None else np.round(x / resolution) * resolution
        single = rounded.astype(np.float32)
        lost = ~np.isnan(x) & ~(np.abs(single - rounded) <= finest)
    if lost.any():
        *_, variable = np.argwhere(lost)[0]
        raise UserError(
            f"{title} has {x[lost][0]:.9g} of {spec.names[variable]!r}, which single precision does not hold finely "
            "enough; subtract a constant, or give a coarser resolution."
        )
    return torch.from_numpy(single)
