"""What the library asks of the programs that people swap: data, prior, likelihood, guide and objective.

A program needs no base class of ours: it is any object (a prior, a likelihood and a guide are `torch.nn.Module`s) with
these members. Attributes that a program *may* have are said in the docstrings, under Optional.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.distributions import Distribution

    Batch = Tensor | dict[str, Tensor]
    """Data of one batch: the tensor x, or x and what goes with it (lengths, masks, covariates) by name."""
else:
    Batch = Any  # torch is not imported to say so

CAUSALITIES = ("anti_causal", "none")
"""What a guide may declare: z_t sees positions ≥ starts[t] only, or anything."""


@runtime_checkable
class Spec(Protocol):
    """What must be known of data before there are any. `pyro_delta.data.Spec` is a base class with the usual answers.

    A spec is a frozen dataclass, saved with a run by its class and fields.

    Optional: `beside(x)`, what goes with data that were read from a file, such as lengths that x itself shows, by name.
    `measures(x)`, what else bounds are told per, such as words: how many of them each datum has, (N,), by name.
    `seconds`, how long a datum of all positions lasts.

    Attributes:
        shape: event shape of a datum.
        levels: data are integers 0 … levels − 1; None for real numbers.
        resolution: distance of neighbouring values that real numbers were recorded with, where one is stated.
        positions: places in the data's own order that latent steps belong to: rows, tokens, frames.
        scored: numbers of a datum that the likelihood scores, the divisor of bounds.
        unit: of bounds per scored number, such as bits/dim.
        suffix: of the files that `show` writes, such as ".txt".
    """

    @property
    def levels(self) -> int | None:
        """Number of integers, or None."""

    @property
    def resolution(self) -> float | None:
        """Of real numbers, or None."""

    @property
    def unit(self) -> str:
        """Of bounds."""

    @property
    def suffix(self) -> str:
        """Of files that are shown."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape."""

    @property
    def positions(self) -> int:
        """Number of positions."""

    @property
    def scored(self) -> int:
        """Number of scored numbers."""

    def places(self) -> np.ndarray:
        """The position 0 … positions − 1 of every number, integers of the event shape."""

    def order(self) -> np.ndarray:
        """The rank of every number, integers 0, 1, … of the event shape.

        A number may depend on those of lower rank, and numbers of one rank, a group, are scored together.
        """

    def show(self, x: Tensor, path: Path, columns: int) -> None:
        """Writes data (N, *shape), `columns` to a row, as a person looks at them, to a file that ends in `suffix`."""

    def open(self, path: Path, count: int | None = None) -> tuple[Tensor, list[str]]:
        """The data of a file or a folder, the first `count` of them: (N, *shape), and a name for each."""


class Split(Protocol):
    """Data of a split in memory; `pyro_delta.data.Split` is one.

    Optional: `surplus`, what `measures` of the spec counts too much of each datum, (N,) by name.

    Attributes:
        x: (N, *shape).
        labels: int64 (N,), or None.
        extras: what goes with x in a batch, by name.
    """

    @property
    def x(self) -> Tensor:
        """The data."""

    @property
    def labels(self) -> Tensor | None:
        """Their classes."""

    @property
    def extras(self) -> Mapping[str, Tensor]:
        """What goes with them."""

    def __len__(self) -> int:
        """N."""

    def take(self, order: Any) -> Any:
        """The data at an index or a slice, as a split."""

    def to(self, device: Any) -> Any:
        """The data on a device, as a split."""

    def batch(self, index: Any) -> Batch:
        """The data at an index or a slice."""


class Data(Protocol):
    """Data, built as `Object(root=…, validation=…, seed=…, **options)`.

    Optional: a class attribute `spec`, where it is known before any file is read, and `preset`, the name of the
    settings that data are trained with when nothing else is said.

    Attributes:
        spec: of every datum.
        train, validation, test: the splits.
        classes: the name of each label, or None.
    """

    @property
    def spec(self) -> Spec:
        """Of every datum."""

    @property
    def train(self) -> Split:
        """What is learned from."""

    @property
    def validation(self) -> Split:
        """Held out of it."""

    @property
    def test(self) -> Split:
        """What is judged by."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of labels."""


class Prior(Protocol):
    """p(z), built as `Object(spec, **options)`.

    Optional: `floor_nats`, for a prior that learns: the rate that no value of its parameters undercuts. `columns`, for
    one whose steps are blocks of an image: how many of them share a start.

    Attributes:
        starts: n integers; latent step t belongs to the data from position starts[t] on.
    """

    starts: Tensor

    def __call__(self) -> Distribution:
        """A distribution of batch shape () and event shape (n, d)."""


class Likelihood(Protocol):
    """p(x | z), built as `Object(spec, prior, **options)`.

    Optional: `conditioning`, "causal" if it is not there: position r uses {z_t : starts[t] ≤ r}; "full": all of z.
    """

    def __call__(self, z: Tensor) -> Distribution:
        """Z (…, n, d) → a distribution over data; keys of a batch that its signature names are handed over, too."""


class Terms(Protocol):
    """What a likelihood's distribution should offer for `verify` to look inside.

    One of the two is enough. G groups stand in the order of the spec. `Independent` distributions need neither.
    """

    def parameters_at(self, x: Tensor) -> Tensor:
        """Parameters of every group of numbers given those before it, (…, *groups, P)."""

    def terms(self, x: Tensor) -> Tensor:
        """Log-probability of every group given those before it, (…, G) nats."""


class Guide(Protocol):
    """q(z | x), built as `Object(spec, prior, **options)`.

    Optional: `start_from(x)`, to be initialised by data. `committed_rate(prior)`, δ in nats of its own family, if that
    commits more than the prior does, or is not independent over steps and dimensions: of each datum, (B,), where the
    prior has the lengths of B data. With it `guarantee`, one of `pyro_delta.families.Guarantee`, if δ does not bound
    the KL of every datum from below. None in its place is none.

    Attributes:
        causality: of `CAUSALITIES`.
    """

    causality: str

    def posterior(self, x: Tensor) -> Distribution:
        """A distribution of event shape (n, d) with mean and variance."""

    def __call__(self, x: Tensor) -> Any:
        """Samples the site `z` from the posterior, in a plate `data` of the batch's size."""


class Objective(Protocol):
    """What is minimised, built as `Object(**options)`: joins rate and distortion of a batch.

    Optional: `per_dimension = True` asks for the rate of each latent dimension, (d,), in the place of the total.
    `additive = True` says that what is minimised of a batch is the sum of that of its parts.
    `varying`, a dict of name to number (of Python, or a tensor) of what changes in training: it is logged, and saved in
    checkpoints. After a step that is skipped its tensors, which are to be on the device of the
    rate, are put back to what they were before it.
    """

    def __call__(self, rate: Tensor, distortion: Tensor, data: Tensor) -> Tensor:
        """Rate and distortion in nats, summed over `data` data, → what is minimised."""

    def advance(self, step: int) -> None:
        """Called after each step of training with the number of steps made."""


Advance = Callable[[int], None]
"""Called with the number of data just done."""
