"""What a model must know of series: variables, their units, and the resolution of their numbers. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pyro_delta.data.condition import Condition, check_names
from pyro_delta.data.sequences.spec import TokenSpec
from pyro_delta.data.spec import Spec, check_sizes, require
from pyro_delta.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SMALLEST, LARGEST = 1e-30, 1e30
"""Scales whose logistics, e⁷ times as narrow or as wide, single precision reckons with; and resolutions, in scales."""


@dataclass(frozen=True)
class SeriesSpec(Spec):
    """Series of up to T positions of C variables: real numbers (T, C) in the data's own units.

    A number may depend on all earlier positions, and on the variables before it at its own. Beside x, a batch has
    `lengths`, positions of each series, and, where some numbers are missing, the boolean `mask` (T, C) of those that
    are known. In x both have zeros in the place of numbers; in what is drawn, shown and read they are NaN.

    Args:
        length: T.
        names: of the C variables.
        location: of each variable, from which networks count, …
        scale: … and in which unit: mean and deviation of the training data, say. In single precision, as data are.
        resolution: distance of neighbouring values, which data are rounded to: a likelihood gives probabilities of bins
            of that width, and bounds are bits of these. Without it they are those of a density, and may be negative.
        condition: what series are conditioned on.

    Raises:
        UserError: if no data can be of that kind.
    """

    length: int
    names: tuple[str, ...]
    location: tuple[float, ...]
    scale: tuple[float, ...]
    resolution: float | None = None
    condition: Condition | None = field(default=None, kw_only=True)

    suffix: ClassVar[str] = ".csv"
    what: ClassVar[str] = "series"
    datum: ClassVar[str] = "series"

    def __post_init__(self) -> None:
        """Refuse what no series are."""
        import numpy as np

        for name in ("location", "scale"):
            with np.errstate(over="ignore"):
                object.__setattr__(self, name, tuple(float(np.float32(value)) for value in getattr(self, name)))
        object.__setattr__(self, "names", tuple(self.names))
        check_sizes(self.shape, None)
        if not len(self.names) == len(self.location) == len(self.scale):
            raise UserError(
                f"{len(self.names)} variables do not fit {len(self.location)} locations and {len(self.scale)} scales; "
                "give one of each."
            )
        check_names(self.names, "series have", "variables")
        for name, location, scale in zip(self.names, self.location, self.scale):
            if not math.isfinite(location) or not SMALLEST <= scale <= LARGEST:
                raise UserError(
                    f"{name!r} has location {location:g} and scale {scale:g} in single precision; multiply it by a "
                    f"constant, so that they are finite, and the scale lies between {SMALLEST:g} and {LARGEST:g}."
                )
        if self.resolution is not None and not 0 < self.resolution < math.inf:
            raise UserError(f"resolution {self.resolution!r} is none; give a finite number above 0, or leave it out.")
        for name, scale in zip(self.names, self.scale):
            if self.resolution is not None and not SMALLEST <= self.resolution / scale <= LARGEST:
                wrong = "fine" if self.resolution < scale else "coarse"
                raise UserError(
                    f"resolution {self.resolution!r} is too {wrong} for {name!r} of scale {scale:g}; give another."
                )

    @property
    def unit(self) -> str:  # type: ignore[override]
        """Of bounds."""
        return "bits/number" if self.resolution is not None else "bits/number of a density"

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, C)."""
        return self.length, len(self.names)

    def order(self) -> np.ndarray:
        """Place of every number in the order of positions, and of variables within each."""
        import numpy as np

        return np.arange(self.length * len(self.names)).reshape(self.shape)

    def group(self, rank: int) -> str:
        """A variable at a position."""
        position, variable = divmod(rank, len(self.names))
        return f"{self.names[variable]!r} at position {position}"

    def show(self, x: Tensor, path: Path, columns: int) -> None:
        """Writes series into a table, and beside it a picture of them, a .png of its name."""
        from pyro_delta.data.series.files import save_csv
        from pyro_delta.data.series.picture import save_picture

        save_csv(self, x, path)
        save_picture(self, x, path.with_suffix(".png"), columns)

    def open(self, path: Path, count: int | None = None) -> tuple[Tensor, list[str]]:
        """Series of a .csv or .npz file, NaN where a number is missing and behind the end; see `data.series.files`.

        Raises:
            UserError: if the file cannot be read, has other variables, or a series longer than T.
        """
        from pyro_delta.data.series.files import read_series

        return read_series(self, path, count)

    def beside(self, x: Tensor) -> dict[str, Tensor]:
        """What goes with series (N, T, C) of a file: x without NaN, lengths, and the mask of what is known, if needed.

        A series ends with the last position at which something is known.
        """
        import torch

        known = ~x.isnan()
        lengths = torch.where(known.any(-1), torch.arange(1, self.length + 1, device=x.device), 1).amax(-1)
        inside = (torch.arange(self.length, device=x.device) < lengths.unsqueeze(-1)).unsqueeze(-1)
        found = {"x": x.nan_to_num(nan=0.0), "lengths": lengths}
        return found if (known | ~inside).all() else found | {"mask": known}


def require_sequences(spec: object, kind: str, name: str) -> TokenSpec | SeriesSpec:
    """The spec, which must be one of sequences: of tokens, or of numbers; see `require`."""
    return require(spec, (TokenSpec, SeriesSpec), "sequences of tokens, and series", kind, name)
