"""Series of one's own, and what series of a file are made into: splits, units, lengths and masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pyro_delta.data.numerals import number_of
from pyro_delta.data.series.files import SPLITS, Found, held, padded, read_file
from pyro_delta.data.series.spec import SeriesSpec
from pyro_delta.data.splits import TEST_SEED, Split, Splits, hold_out, reordered
from pyro_delta.data.values import in_range
from pyro_delta.errors import UserError
from pyro_delta.validation import Seed

Resolution = Annotated[float, Field(gt=0)]


class Series(Splits):
    """series of your own, series:FILE: a table (.csv) or arrays (.npz) of numbers in several variables

    `pyro_delta.data.series.files` says what a file may hold. Where it does not say which series are of which split, a
    tenth of them is the test split, always the same.

    Args:
        root: FILE itself.
        resolution: that numbers are rounded to; None for a density, whose bounds depend on the units of the data.
        validation: number of validation series; a tenth of the others if None, or those that the file says.
        seed: of their choice.
    """

    preset = "vowels"

    def __init__(
        self, *, root: str, resolution: Resolution | None = None, validation: int | None = None, seed: Seed = 0
    ) -> None:
        path = Path(root).expanduser()
        super().__init__(*made_of(read_file(path), str(path), resolution, validation, seed))


def made_of(
    found: Found, title: str, resolution: float | None, validation: int | None, seed: int
) -> tuple[SeriesSpec, Split, Split, Split, tuple[str, ...] | None]:
    """Spec, splits and classes of the series of a file.

    Location and scale are mean and deviation of what is known outside the test split, the same for every seed.

    Raises:
        UserError: if a split would be empty, or a variable tells nothing.
    """
    classes = None if found.labels is None else tuple(sorted(set(found.labels), key=_by_number))
    labels = None if classes is None else torch.tensor([classes.index(label) for label in found.labels or ()])
    part = _parts(found, labels, title)
    x_ntc = padded(found.series, max(map(len, found.series)))
    location, scale = _units(x_ntc[part != 2], found.names, title)
    spec = SeriesSpec(x_ntc.shape[1], found.names, location, scale, resolution)
    x = held(spec, x_ntc, title)
    for name, values in zip(found.names, x[torch.from_numpy(part != 2)].flatten(0, 1).T):
        known = values[~values.isnan()]
        if (known == known[0]).all():
            raise UserError(
                f"data.resolution={resolution:g} rounds all of {name!r} to {known[0]:g} in the training data of "
                f"{title}; give a finer one."
            )
    beside = spec.beside(x)
    whole = Split(beside.pop("x"), labels, beside)
    train, held_out, test = (whole.take(torch.from_numpy(np.flatnonzero(part == which))) for which in range(3))
    if not len(held_out):
        train, held_out = hold_out(train, max(1, len(train) // 10) if validation is None else validation, seed)
    else:
        count = len(held_out) if validation is None else validation
        if not 1 <= count <= len(held_out):
            raise UserError(
                f"{title} has {len(held_out)} validation series, not {count}; ask for 1 to {len(held_out)}."
            )
        train, held_out = reordered(train, seed), reordered(held_out, seed).take(slice(count))
    return spec, train, held_out, reordered(test, TEST_SEED), classes


def _parts(found: Found, labels: Tensor | None, title: str) -> np.ndarray:
    """0, 1 or 2 for each series: of training, validation or test."""
    count = len(found.series)
    if found.split is None:
        if count < 3:
            raise UserError(f"{title} has {count} series, and each of three splits needs one; give 3 at least.")
        part = np.zeros(count, int)
        _, test = hold_out(Split(torch.arange(count), labels), max(1, count // 10), TEST_SEED)
        part[test.x.numpy()] = 2
        return part
    part = np.array([SPLITS.index(name) for name in found.split])
    for which, least in ((0, 1 if (part == 1).any() else 2), (2, 1)):
        if (there := int((part == which).sum())) < least:
            raise UserError(f"{title} has {there} series of the split {SPLITS[which]}; give {least} at least.")
    return part


def _units(x_ntc: np.ndarray, names: tuple[str, ...], title: str) -> tuple[Any, Any]:
    """Mean and deviation of each variable over what is known."""
    units = []
    for name, values in zip(names, x_ntc.reshape(-1, len(names)).T):
        known = values[~np.isnan(values)]
        part, exponent = in_range(known)
        if not known.size or not part.std() > 1e-12 * np.abs(part).max():
            always = f"always {known[0]:g}" if known.size else "never known"
            raise UserError(f"{name!r} is {always} in the training data of {title}; leave it out.")
        units.append((np.ldexp(part.mean(), exponent), np.ldexp(part.std(), exponent)))
    return zip(*units, strict=True)  # type: ignore[return-value]


def _by_number(label: str) -> tuple[bool, float, str]:
    """Labels that are numbers in their order, before the others."""
    try:
        number = number_of(label)
    except ValueError:
        number = math.nan
    return (True, 0.0, label) if math.isnan(number) else (False, number, label)
