"""What data are conditioned on, the key `condition` of a batch: a class, or real numbers. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pyro_delta.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_delta.data.splits import Split, Splits
    from pyro_delta.protocol import Data, Spec

KEY = "condition"
"""Of a batch: whole numbers (N,), a class for each datum, or real numbers (N, C)."""
LABELS = "labels"


@dataclass(frozen=True)
class Condition:
    """What a spec says of it: the names of K classes, or where C real numbers lie.

    Args:
        classes: a name for each; none for real numbers.
        location: mean of each of the real numbers over the training data, …
        scale: … and their standard deviation, by which programs see them.
    """

    classes: tuple[str, ...] = ()
    location: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Numbers by which programs are told of it: K, of which one is 1, or C."""
        return len(self.classes) or len(self.location)

    def parsed(self, text: str) -> Tensor:
        """A condition as it is typed, for one datum: the name or the number of a class (1,), or numbers (1, C).

        Raises:
            UserError: if it is none.
        """
        import torch

        if self.classes:
            if text in self.classes:
                return torch.tensor([self.classes.index(text)])
            if text.isascii() and text.isdigit() and int(text) < len(self.classes):
                return torch.tensor([int(text)])
            raise unknown_name("condition", text, self.classes)
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != self.size or not all(map(math.isfinite, numbers)):
            raise UserError(f"the condition {text!r} is none of these data; give {self.size} numbers with commas.")
        return torch.tensor([numbers])


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
    return {KEY: torch.tensor(condition.location) + torch.tensor(condition.scale) * (turns % 3 - 1.0).unsqueeze(1)}


def classes_given(split: Any) -> Tensor | None:
    """The class (N,) that each datum of a split is conditioned on; None where it is on none, or on real numbers.

    What z tells of data whose class is given is told within classes: between them, c itself would tell data apart.
    """
    found: Any = split.extras.get(KEY)
    whole = found is not None and found.dim() == 1 and not found.is_floating_point()
    return found.cpu() if whole else None


def conditioned(data: Data, on: str) -> Splits:
    """The same data, of which every batch has the key `condition`, and the spec says so.

    Args:
        data: with labels, or with what `on` names beside x.
        on: "labels", or the name of what goes with x: whole numbers (N,), classes 0, 1, …; or real numbers, (N,) or
            (N, C).

    Raises:
        UserError: if there is no such thing, it is neither, or the spec has no field for it.
    """
    import torch

    from pyro_delta.data.splits import SPLITS, Splits

    if (already := condition_of(data.spec)) is not None:
        raise UserError(f"the data are conditioned already, on {in_words(already)}; leave data.condition out.")
    values = {name: _values(getattr(data, name), on, name) for name in SPLITS}
    train = values["train"]
    if train.is_floating_point():
        wide = train.double()
        scale = wide.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        found = Condition(location=tuple(wide.mean(0).tolist()), scale=tuple(scale.tolist()))
    else:
        count = 1 + max(int(each.max()) for each in values.values())
        names = data.classes if on == LABELS and data.classes is not None else tuple(map(str, range(count)))
        found = Condition(classes=tuple(names))
    splits = {name: _with(getattr(data, name), values[name]) for name in SPLITS}
    return Splits(_spec_with(data.spec, found), **splits, classes=data.classes)


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
        return found.reshape(len(found), -1).float()
    if found.dim() != 1 or found.is_floating_point():
        shape = tuple(found.shape)
        raise UserError(f"data.condition={on!r} has shape {shape} in {name}; give a class or a few numbers for each.")
    if int(found.min()) < 0:
        raise UserError(f"data.condition={on!r} is {int(found.min())} in {name}; classes are whole numbers from 0 up.")
    return found.long()


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
