"""What must be known of data before there are any: the usual answers, and plain arrays. Free of torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pyro_delta.errors import UserError
from pyro_delta.limits import LARGEST_LEVELS

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Spec:
    """The usual answers of a `pyro_delta.protocol.Spec`; a subclass is a frozen dataclass and says at least `shape`.

    Positions are the places along the first axis, and numbers may depend on those at earlier positions.
    """

    levels: int | None = None
    resolution: float | None = None
    unit: ClassVar[str] = "bits/dim"
    suffix: ClassVar[str] = ".txt"
    what: ClassVar[str] = "data"
    """the word for them in messages, …"""
    datum: ClassVar[str] = "datum"
    """… for one of them, …"""
    place: ClassVar[str] = "position"
    """… and for a position"""

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape of a datum."""
        raise NotImplementedError

    @property
    def positions(self) -> int:
        """Places along the first axis; 1 where there is none."""
        return self.shape[0] if self.shape else 1

    @property
    def scored(self) -> int:
        """Numbers of a datum that the likelihood scores."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> str:
        """How data are held: the name of a torch type."""
        if self.levels is None:
            return "float32"
        return "uint8" if self.levels <= 256 else "int64"

    def places(self) -> np.ndarray:
        """The position of every number, integers of the event shape."""
        import numpy as np

        if not self.shape:
            return np.zeros((), int)
        return np.indices(self.shape)[0] * self.positions // self.shape[0]

    def order(self) -> np.ndarray:
        """The rank of every number, integers of the event shape: here its place along the first axis."""
        return self.places()

    def group(self, rank: int) -> str:
        """A group of numbers in words."""
        return f"{self.place} {rank}"

    def show(self, x: Tensor, path: Path, columns: int) -> None:
        """Writes data as numbers, a line each, with as many digits as it takes."""
        from pyro_delta.data.texts import save_text

        values = x.detach().cpu() if self.levels is None else x.detach().cpu().long()
        lines = (" ".join(map(str, datum.ravel())) for datum in values.numpy())
        save_text("".join(f"{line}\n" for line in lines), path)

    def open(self, path: Path, count: int | None = None) -> tuple[Tensor, list[str]]:
        """Numbers of a text file as `show` writes them, or of a NumPy array (.npy).

        Raises:
            UserError: if they are not of this shape or outside the support.
        """
        from pyro_delta.data.values import read_numbers

        return read_numbers(self, path, count)


@dataclass(frozen=True)
class ArraySpec(Spec):
    """Arrays of one shape: real numbers, or integers 0 … levels − 1.

    Args:
        event: shape of a datum.
        levels: of integers; None for real numbers.
        resolution: of real numbers: bounds are then those of data rounded to it, otherwise of a density.
        ordered: whether the first axis is an order (time, rows). If not, there is one position, and all numbers of a
            datum form one group.

    Raises:
        UserError: if no data can be of that kind.
    """

    event: tuple[int, ...]
    levels: int | None = None
    resolution: float | None = None
    ordered: bool = True

    def __post_init__(self) -> None:
        """Refuse what no data are."""
        object.__setattr__(self, "event", tuple(self.event))  # JSON knows lists alone
        check_sizes(self.event, self.levels)
        if self.resolution is not None and not (self.levels is None and 0 < self.resolution < math.inf):
            raise UserError(f"resolution {self.resolution!r} is of real numbers, and finite and above 0; leave it out.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape."""
        return self.event

    @property
    def positions(self) -> int:
        """Places along the first axis, if it is an order."""
        return self.event[0] if self.ordered and self.event else 1


def check_sizes(shape: tuple[int, ...], levels: int | None) -> None:
    """Refuse sizes that no data have.

    Raises:
        UserError: if one is below 1, or `levels` is below 2 or above 2³¹.
    """
    if any(size < 1 for size in shape):
        raise UserError(f"data of shape {tuple(shape)} hold nothing; every size must be at least 1.")
    if levels is not None and not 2 <= levels <= LARGEST_LEVELS:
        raise UserError(f"levels = {levels} is out of range; integers have 2 to {LARGEST_LEVELS} levels.")


def spec_as_dict(spec: Any) -> dict[str, Any]:
    """A spec as plain values: its class as `module:Class`, and its fields."""
    return {"kind": f"{type(spec).__module__}:{type(spec).__qualname__}", **asdict(spec)}


def spec_of_dict(values: dict[str, Any]) -> Any:
    """The spec that `spec_as_dict` took apart; its module must be one that can be imported.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, ImportError: if it cannot be put together again.
    """
    fields = {name: _tuples(value) for name, value in values.items()}
    module, _, name = fields.pop("kind").partition(":")
    return getattr(import_module(module), name)(**fields)


def _tuples(value: Any) -> Any:
    """Lists as tuples, which JSON does not know and a frozen spec holds."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
