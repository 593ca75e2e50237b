"""What data are conditioned on, the key `condition` of a batch: a class, or real numbers. Free of torch."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pyro_delta.data.numerals import NUMBER
from pyro_delta.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_delta.data.splits import Split, Splits
    from pyro_delta.protocol import Data, Spec

LOG = logging.getLogger("pyro_delta.data")
KEY = "condition"
"""Of a batch: whole numbers (N,), a class for each datum, or real numbers (N, C), standardised."""
LABELS = "labels"
MOST_CLASSES = 2**16
SHOWN = 5
"""Classes that a message names."""
NEARLY_CONSTANT = 1e-6
"""Deviation, in parts of the largest value, below which numbers count as constant."""


@dataclass(frozen=True)
class Condition:
    """What a spec says of it: the names of K classes, or where C real numbers lie.

    Args:
        classes: a name for each; none for real numbers.
        location: mean of each of the real numbers over the training data, …
        scale: … and their standard deviation: programs are told how far from the mean a number is, in these.

    Raises:
        UserError: if two classes have one name.
    """

    classes: tuple[str, ...] = ()
    location: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse names that mean two things."""
        check_names(self.classes, "a condition has")

    @property
    def size(self) -> int:
        """Numbers by which programs are told of it: K, of which one is 1, or C."""
        return len(self.classes) or len(self.location)

    def parsed(self, text: str) -> Tensor:
        """A condition as it is typed, for one datum: the name of a class, or its number if no name is one, (1,); or
        numbers with commas, in their own units, (1, C).

        Raises:
            UserError: if it is none.
        """
        import torch

        if self.classes:
            if text in self.classes:
                return torch.tensor([self.classes.index(text)])
            numbered = re.fullmatch("[0-9]{1,9}", text) and not any(name.isdigit() for name in self.classes)
            if numbered and int(text) < len(self.classes):
                return torch.tensor([int(text)])
            raise unknown_name("condition", text, self.classes)
        parts = [part.strip() for part in text.split(",")]
        if len(parts) == self.size and all(map(NUMBER.fullmatch, parts)):
            found = self.standardised(torch.tensor([list(map(float, parts))], dtype=torch.float64))
            if found.isfinite().all():
                return found
        raise UserError(f"the condition {text!r} is none of these data; give {self.size} numbers with commas.")

    def standardised(self, numbers: Tensor) -> Tensor:
        """Numbers (N, C) in their own units, in double precision, as programs are told of them."""
        import torch

        location, scale = (torch.tensor(each, dtype=torch.float64) for each in (self.location, self.scale))
        return ((numbers - location) / scale).to(torch.get_default_dtype())

    def numbers(self, standardised: Tensor) -> Tensor:
        """Standardised numbers (N, C) in their own units, in double precision."""
        import torch

        location, scale = (torch.tensor(each, dtype=torch.float64) for each in (self.location, self.scale))
        return location + scale * standardised.double()


def check_names(names: Sequence[str], has: str, what: str = "classes") -> None:
    """Refuses names of which two are the same, for who says it would be given the first.

    Args:
        names: of classes.
        has: what has them, and the verb.
        what: is named, if not classes.

    Raises:
        UserError: with the name.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{has} two {what} of the name {twice[0]!r}; give each a name of its own.")


def condition_of(spec: Spec | None) -> Condition | None:
    """What data of a spec are conditioned on; None if on nothing."""
    found: Condition | None = getattr(spec, KEY, None)
    return found


def some_conditions(spec: Spec, count: int) -> dict[str, Tensor]:
    """What goes with data that are made up: classes in turn, or numbers around their mean; nothing without a condition.

    Args:
        spec: of the data.
        count: of them.
    """
    import torch

    condition = condition_of(spec)
    if condition is None:
        return {}
    turns = torch.arange(count)
    if condition.classes:
        return {KEY: turns % len(condition.classes)}
    return {KEY: (turns % 3 - 1.0).unsqueeze(1).expand(-1, condition.size)}


def classes_given(split: Any) -> Tensor | None:
    """The class (N,) that each datum of a split is conditioned on; None where it is on none, or on real numbers.

    What z tells of data whose class is given is told within classes: between them, c itself would tell data apart.
    """
    found: Any = split.extras.get(KEY)
    whole = found is not None and found.dim() == 1 and not found.is_floating_point()
    return found.cpu() if whole else None


def given_alike(split: Any) -> Tensor | None:
    """Which data are alike in what goes with x and is given, a number for each kind (N,); None where nothing is.

    That is the class that they are conditioned on, and their length: z has more steps where there are more positions,
    and would tell data of different lengths apart by that alone.
    """
    import torch

    lengths, classes = split.extras.get("lengths"), classes_given(split)
    found = [] if classes is None else [classes]
    if lengths is not None and lengths.dim() == 1 and bool((lengths != lengths[0]).any()):
        found.append(lengths.cpu())
    if not found:
        return None
    kinds: Tensor = torch.stack(found, 1).unique(dim=0, return_inverse=True)[1]
    return kinds


def of_numbers(split: Any) -> bool:
    """Whether data are conditioned on real numbers, in which hardly any two are alike."""
    return KEY in split.extras and classes_given(split) is None


def conditioned(data: Data, on: str) -> Splits:
    """The same data, of which every batch has the key `condition`, and the spec says so.

    Args:
        data: with labels, or with what `on` names beside x.
        on: "labels", or the name of what goes with x: whole numbers (N,), classes 0, 1, …; or real numbers, (N,) or
            (N, C).

    Raises:
        UserError: if there is no such thing, it is neither, or differs between splits, or the spec has no field for it.
    """
    import numpy as np
    import torch

    from pyro_delta.data.splits import SPLITS, Splits
    from pyro_delta.data.values import in_range

    if (already := condition_of(data.spec)) is not None:
        raise UserError(f"the data are conditioned already, on {in_words(already)}; leave data.condition out.")
    values = {name: _values(getattr(data, name), on, name) for name in SPLITS}
    train = values["train"]
    for name, each in values.items():
        if (each.dtype, each.shape[1:]) != (train.dtype, train.shape[1:]):
            raise UserError(
                f"data.condition={on!r} is {_kind(each)} in {name}, and {_kind(train)} in train; make them alike."
            )
    if train.is_floating_point():
        quotients, exponent = in_range(train.numpy())
        part = torch.from_numpy(quotients)
        deviation = part.std(0, correction=0)
        varies = (deviation > NEARLY_CONSTANT * part.abs().amax(0)).numpy()
        location = np.ldexp(part.mean(0).numpy(), exponent)
        scale = np.where(varies, np.ldexp(deviation.numpy(), exponent), 1.0)
        found = Condition(location=tuple(location.tolist()), scale=tuple(scale.tolist()))
        values = {name: found.standardised(each) for name, each in values.items()}
    else:
        count = 1 + max(int(each.max()) for each in values.values())
        names = data.classes if on == LABELS and data.classes is not None else tuple(map(str, range(count)))
        if count > len(names):
            raise UserError(f"labels go up to {count - 1}, but there are names for {len(names)} classes; name all.")
        found = Condition(classes=tuple(names))
        for name, each in values.items():
            if unknown := sorted(set(each.tolist()) - set(train.tolist())):
                LOG.warning(
                    "%d of the %s data are conditioned on %s, of which no training datum is: nothing is learned of it",
                    *(int(torch.isin(each, torch.tensor(unknown)).sum()), name),
                    ", ".join(repr(names[place]) for place in unknown[:SHOWN])
                    + (", …" if len(unknown) > SHOWN else ""),
                )
    splits = {name: _with(getattr(data, name), values[name]) for name in SPLITS}
    return Splits(_spec_with(data.spec, found), **splits, classes=data.classes)


def told_alike(data: Data, spec: Spec) -> Data:
    """New data as a run's programs are told of them: classes by its numbers for them, numbers in its units.

    Args:
        data: perhaps conditioned, by their own training split.
        spec: of the run.

    Returns:
        The data as they are, if they are not conditioned as the run's, or on a class that it does not know.
    """
    import torch

    own, condition = condition_of(data.spec), condition_of(spec)
    if own is None or condition is None or own == condition or bool(own.classes) != bool(condition.classes):
        return data
    if not set(own.classes) <= set(condition.classes) or (not own.classes and own.size != condition.size):
        return data
    place = torch.tensor([condition.classes.index(name) for name in own.classes])

    def told(values: Tensor) -> Tensor:
        return place[values] if own.classes else condition.standardised(own.numbers(values))

    from pyro_delta.data.splits import SPLITS, Splits

    splits = {name: _with(getattr(data, name), told(getattr(data, name).extras[KEY])) for name in SPLITS}
    return Splits(_spec_with(data.spec, condition), **splits, classes=data.classes)


def in_words(condition: Condition) -> str:
    """What data are conditioned on, such as `10 classes`."""
    if condition.classes:
        return f"{len(condition.classes)} classes"
    return "a number" if condition.size == 1 else f"{condition.size} numbers"


def _values(split: Any, on: str, name: str) -> Tensor:
    """Whole numbers (N,) from 0 up, or real ones (N, C), of a split."""
    extras = split.extras
    found = split.labels if on == LABELS else extras.get(on)
    if found is None:
        have = [*(() if split.labels is None else (LABELS,)), *extras]
        told = f"they have {', '.join(map(repr, have))}" if have else "they have no labels, and nothing beside x"
        raise UserError(f"data.condition={on!r} is not there to condition {name} on; {told}.")
    if found.is_floating_point() and found.dim() in (1, 2) and found.shape[1:] != (0,):
        return found.reshape(len(found), -1).double()
    if found.dim() != 1 or found.is_floating_point():
        shape = tuple(found.shape)
        raise UserError(f"data.condition={on!r} has shape {shape} in {name}; give a class or a few numbers for each.")
    if int(found.min()) < 0:
        raise UserError(f"data.condition={on!r} is {int(found.min())} in {name}; classes are whole numbers from 0 up.")
    if int(found.max()) >= MOST_CLASSES:
        raise UserError(
            f"data.condition={on!r} is {int(found.max())} in {name}; classes are numbered 0, 1, 2, …, without large "
            "gaps."
        )
    return found.long()


def _kind(values: Tensor) -> str:
    return f"real numbers, {values.shape[1]} each" if values.is_floating_point() else "classes"


def _with(split: Any, values: Tensor) -> Split:
    return replace(split, extras={**split.extras, KEY: values})


def _spec_with(spec: Any, condition: Condition) -> Spec:
    try:
        made: Spec = replace(spec, condition=condition)
    except TypeError:
        raise UserError(
            f"the spec {type(spec).__name__} of the data has no field `condition`; give it one, as "
            "pyro_delta.data.ArraySpec has, to condition data on something."
        ) from None
    return made
