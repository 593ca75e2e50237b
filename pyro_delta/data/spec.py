"""What must be known of data before there are any: the usual answers, and plain arrays. Free of torch."""

from __future__ import annotations

import inspect
import math
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib import import_module
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pyro_delta.data.condition import Condition
from pyro_delta.data.condition import in_words as condition_in_words
from pyro_delta.errors import UserError, in_a_line
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
    condition: Condition | None = None
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
        condition: what data are conditioned on.

    Raises:
        UserError: if no data can be of that kind.
    """

    event: tuple[int, ...]
    levels: int | None = None
    resolution: float | None = None
    ordered: bool = True
    condition: Condition | None = field(default=None, kw_only=True)

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


MEMBERS = ("shape", "levels", "resolution", "positions", "scored", "unit", "suffix", "places", "order", "show", "open")
"""Of `pyro_delta.protocol.Spec`."""


def check_answers(spec: Any, title: str) -> None:
    """Refuses a spec that lacks a member of the protocol, or whose answers are malformed or contradict one another.

    Args:
        spec: of a user's own, perhaps.
        title: whose it is, such as "the data 'mine.py:Mine'".

    Raises:
        UserError: with the member, what it says, and what it should.
    """
    import numpy as np

    if not is_spec(spec):
        raise UserError(f"{title} have spec {spec!r}; see pyro_delta.protocol.Spec.")
    whose = f"the spec {type(spec).__name__} of {title}"

    def answer(member: str) -> Any:
        try:
            found = getattr(spec, member)
            return found() if member in ("places", "order") else found
        except Exception as error:
            raise UserError(f"{whose} fails at {member}: {in_a_line(error)}; mend it.") from error

    def need(holds: bool, member: str, said: Any, needed: str) -> None:
        if not holds:
            shown = _array_in_words(said) if isinstance(said, np.ndarray) else repr(said)
            raise UserError(f"{whose} has {member} {shown}; it must be {needed}.")

    shape, levels, resolution = answer("shape"), answer("levels"), answer("resolution")
    in_range = levels is None or (_counts(levels) and 2 <= levels <= LARGEST_LEVELS)
    is_step = resolution is None or (isinstance(resolution, Real) and 0 < float(resolution) < math.inf)
    sizes = isinstance(shape, tuple) and all(map(_counts, shape))
    need(sizes, "shape", shape, "a tuple of whole numbers, each 1 or more")
    need(in_range, "levels", levels, f"None, or a whole number from 2 to {LARGEST_LEVELS}")
    need(is_step, "resolution", resolution, "None, or a finite number above 0")
    for member in ("positions", "scored"):
        need(_counts(said := answer(member)), member, said, "a whole number, 1 or more")
    for member in ("unit", "suffix"):
        need(isinstance(said := answer(member), str), member, said, "text")
    places, order, last = answer("places"), answer("order"), answer("positions") - 1
    for member, said in (("places", places), ("order", order)):
        fits = isinstance(said, np.ndarray) and said.dtype.kind in "iu" and said.shape == shape
        need(fits, member, said, f"an array of integers of shape {shape}")
    need(places.min() >= 0 and places.max() <= last, "places", places, f"of positions, 0 to {last}")
    ranks = np.unique(order)
    need(bool((ranks == np.arange(len(ranks))).all()), "order", order, "of the ranks 0, 1, 2, … without a gap")


def is_spec(spec: Any) -> bool:
    """Whether an object has the members of a spec; none of them is asked."""
    missing = object()
    has = (inspect.getattr_static(spec, member, missing) is not missing for member in MEMBERS)
    return not isinstance(spec, type) and all(has)


def _counts(value: Any) -> bool:
    """Whether it is a whole number from 1 up."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _array_in_words(values: np.ndarray) -> str:
    """Type, shape and range of an array."""
    inside = f", {values.min()} to {values.max()}" if values.size and values.dtype.kind in "iuf" else ""
    return f"an array of {values.dtype} of shape {values.shape}{inside}"


def require(spec: Any, types: type | tuple[type, ...], takes: str, kind: str, name: str) -> Any:
    """The spec, which must be of the types.

    Args:
        spec: of data.
        types: of spec.
        takes: data of these types, in words.
        kind: of the program that takes nothing else, such as guide.
        name: of that program.

    Raises:
        UserError: naming the program, and the option that names another.
    """
    if not isinstance(spec, types):
        raise UserError(
            f"the {kind} {name} takes {takes}, not data of {type(spec).__name__}; name another with --{kind}."
        )
    return spec


def check_sizes(shape: tuple[int, ...], levels: int | None) -> None:
    """Refuse sizes that no data have.

    Raises:
        UserError: if one is below 1, or `levels` is below 2 or above 2³¹.
    """
    if any(size < 1 for size in shape):
        raise UserError(f"data of shape {tuple(shape)} hold nothing; every size must be at least 1.")
    if levels is not None and not 2 <= levels <= LARGEST_LEVELS:
        raise UserError(f"levels = {levels} is out of range; integers have 2 to {LARGEST_LEVELS} levels.")


def in_words(spec: Any) -> str:
    """What data of a spec are, such as: images of shape 1×8×8 with 17 levels."""
    shape = f"of shape {'×'.join(map(str, spec.shape))}" if spec.shape else "of one number each"
    kind = "real numbers" if spec.levels is None else f"{spec.levels} levels"
    if spec.resolution is not None:
        kind += f" to {spec.resolution:g}"
    told = getattr(spec, "condition", None)
    known = "" if told is None else f", conditioned on {condition_in_words(told)}"
    return f"{getattr(spec, 'what', 'data')} {shape} with {kind}{known}"


def told_apart(one: Any, other: Any) -> tuple[str, str]:
    """Two specs in words, with what sets them apart where the words are the same."""
    words = in_words(one), in_words(other)
    if words[0] != words[1] or not (is_dataclass(one) and is_dataclass(other)):
        return words
    ours, theirs = (_flat(spec_as_dict(spec)) for spec in (one, other))
    apart = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))

    def also(known: dict[str, str]) -> str:
        return ", ".join(f"{key} {known.get(key, 'none')}" for key in apart)

    return f"{words[0]} ({also(ours)})", f"{words[1]} ({also(theirs)})"


def _flat(values: dict[str, Any], before: str = "") -> dict[str, str]:
    """Plain values of any depth under dotted names, cut where they are long."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = "none" if value is None else str(value)[:60]
    return found


def spec_as_dict(spec: Any) -> dict[str, Any]:
    """A spec as plain values: its class as `module:Class`, and its fields."""
    return {"kind": f"{type(spec).__module__}:{type(spec).__qualname__}", **asdict(spec)}


def spec_of_dict(values: dict[str, Any]) -> Any:
    """The spec that `spec_as_dict` took apart; its module must be one that can be imported.

    Nothing but a dataclass that shows and opens data is called: the values may be a stranger's.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, ImportError: if it cannot be put together again.
    """
    fields = {name: _tuples(value) for name, value in values.items()}
    if isinstance(given := fields.get("condition"), dict):
        fields["condition"] = Condition(**{name: _tuples(value) for name, value in given.items()})
    module, _, name = fields.pop("kind").partition(":")
    made = getattr(import_module(module), name)
    if not (isinstance(made, type) and is_dataclass(made) and hasattr(made, "show") and hasattr(made, "open")):
        raise TypeError(f"{module}:{name} is not the class of a spec")
    return made(**fields)


def _tuples(value: Any) -> Any:
    """Lists as tuples, which JSON does not know and a frozen spec holds."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
