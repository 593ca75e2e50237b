"""What is verified: a copy of the programs in double precision, and data to try them on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_delta.data.condition import KEY, condition_of
from pyro_delta.data.values import dtype_of, random_values
from pyro_delta.diagnostics.trace import posteriors, seeded, sites
from pyro_delta.errors import UserError, is_out_of_memory
from pyro_delta.protocol import Batch, Spec, Split
from pyro_delta.vae import VAE, copied, parameters_of

COUNT = 3
"""Data in a batch, one random, one blank and one full: with more than one, a leak across the batch shows, …"""
CLASSES = 16
"""… and random ones of other classes, so that there is one of each, up to so many classes."""
LENGTHS = 8
"""Lengths of data at which what a guide claims by them is tried."""
SAME = 1e-9
"""Change, relative to the largest value, that counts as none: sums may be taken in another order."""
SAME_IN_SINGLE = 1e-5
"""The same in single precision."""
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it passed (None: it could not be made), and what was found."""

    name: str
    passed: bool | None
    found: str


class Case:
    """Programs, data, and who may see whom.

    Args:
        vae: model and guide, of which the case keeps copies.
        spec: of the data.
        extras: what goes with the data, `COUNT` or more.
        batch: data in a batch of training.
        double: whether in double precision.

    Attributes:
        vae: in evaluation mode.
        same: change, relative to the largest value, that counts as none.
        x: the data: random, blank, full, and random ones as far as extras go.
        sizes: data in a batch at which the programs are tried: 1, those of x, and those of training.
        starts: (n,) of the prior, or None if it says none.
        place: position of every number, of the event shape.
        order: rank of every number, of the event shape.
        group_place: (G,) the first position of each group of numbers.
        batch_norms: names of torch's batch normalisations that the guide alone calls, see `in_training`.
        in_the_mean: whether what is committed is a mean over a batch in training mode, such as by batch statistics.
        by_datum: whether each datum commits what its own prior does, …
        by_length: … which its length decides.
    """

    def __init__(self, vae: VAE, spec: Spec, extras: Mapping[str, Tensor], batch: int, *, double: bool = True) -> None:
        self.vae, self.spec = copied(vae).cpu().eval(), spec
        self.x = kinds_of_data(spec, max([COUNT, *map(len, extras.values())]))
        self.sizes, self.extras, self.same = (1, self.count, batch), dict(extras), SAME_IN_SINGLE
        if double:
            self.vae, self.x, self.same = self.vae.double(), widened(self.x), SAME
            self.extras = {name: widened(values) for name, values in extras.items()}
        starts = getattr(getattr(vae.model, "prior", None), "starts", None)
        self.starts: Tensor | None = None if starts is None else starts.cpu()
        self.place, self.order = (torch.from_numpy(found.astype("int64")) for found in (spec.places(), spec.order()))
        self.batch_norms: tuple[str, ...] = ()
        self.in_the_mean = False
        self.by_datum = self.by_length = False
        groups = int(self.order.max()) + 1
        self.group_place = torch.from_numpy(_least_place(self.place, self.order, groups))

    @property
    def count(self) -> int:
        """Of the data."""
        return len(self.x)

    @property
    def coupled(self) -> bool:
        """Whether batch statistics of the guide join data in training, by no guarantee that is about their mean."""
        return bool(self.batch_norms) and not self.in_the_mean

    def batch(self, x: Tensor, like: int | None = None) -> Batch:
        """Data as programs take them; what goes with those of x is used again for more, or that of `like`."""
        if not self.extras:
            return x
        again = torch.arange(len(x)) % self.count if like is None else torch.full((len(x),), like)
        return {"x": x} | {name: values[again] for name, values in self.extras.items()}

    def data(self, size: int) -> Tensor:
        """`size` data, of which the first are those of `x`."""
        return torch.cat((self.x, random_values(self.spec, max(size - self.count, 0)).to(self.x.dtype)))[:size]

    def latents(self, x: Tensor | None = None) -> dict[str, Tensor]:
        """Latents drawn by the guide, with no gradient."""
        x = self.x if x is None else x
        with torch.no_grad():
            return {name: drawn.z for name, drawn in posteriors(self.vae, self.batch(x)).items()}

    def name(self, group: int) -> str:
        """A group of numbers in words."""
        name = getattr(self.spec, "group", None)
        return name(group) if name else f"number {group}"

    @property
    def where(self) -> str:
        """What a position is called."""
        return getattr(self.spec, "place", "position")

    @property
    def what(self) -> str:
        """What a datum is called."""
        return getattr(self.spec, "datum", "datum")

    @property
    def others(self) -> str:
        """What data are called."""
        return getattr(self.spec, "what", "data")


def with_every_class(spec: Spec, extras: Mapping[str, Tensor], most: int) -> dict[str, Tensor]:
    """What goes with data, and with one more of each class that none of them is of, among the first so many classes."""
    condition, told = condition_of(spec), extras.get(KEY)
    if condition is None or told is None:
        return dict(extras)
    new = [kind for kind in range(min(len(condition.classes), most)) if kind not in told]
    again = torch.arange(len(new)) % len(told)
    more = {name: values[again] for name, values in extras.items()} | {KEY: torch.tensor(new).to(told)}
    return {name: torch.cat((values, more[name])) for name, values in extras.items()}


def examples(split: Split) -> Split:
    """`COUNT` data that programs are tried with: the first, but shortest and longest where they have lengths."""
    lengths = split.extras.get("lengths")
    if lengths is None or lengths.dim() != 1:
        return split.take(slice(COUNT))
    ends = int(lengths.argmin()), int(lengths.argmax())
    chosen = list(dict.fromkeys((*ends, *range(min(COUNT, len(split))))))[:COUNT]
    return split.take(torch.tensor(chosen))


def with_more_lengths(case: Case) -> Case:
    """The case with more data, of lengths between the shortest and the longest of its own; itself if they have none."""
    own = case.extras.get("lengths")
    if own is None or own.dim() != 1:
        return case
    spread = torch.linspace(float(own.min()), float(own.max()), LENGTHS, device=own.device).round().to(own).unique()
    new = spread[~torch.isin(spread, own)]
    again = torch.arange(len(new)) % len(own)
    other = copy.copy(case)
    other.extras = {name: torch.cat((values, values[again])) for name, values in case.extras.items()}
    other.extras["lengths"] = torch.cat((own, new))
    other.x = kinds_of_data(case.spec, len(case.x) + len(new)).to(case.x.dtype)
    return other


def kinds_of_data(spec: Spec, count: int) -> Tensor:
    """Data: random, blank (zeros), full (the highest level, or 10), and random again."""
    x = random_values(spec, count)
    x[1], x[2] = 0, 10 if spec.levels is None else spec.levels - 1
    return x


def replacements(case: Case) -> list[Tensor]:
    """Three times data to put in the place of what must not be seen: any values, the highest and the lowest."""
    if case.spec.levels is None:
        any_values = 3 * torch.randn(case.count, *case.spec.shape)
        return [any_values, torch.full_like(any_values, 10.0), torch.full_like(any_values, -10.0)]
    any_values = torch.randint(case.spec.levels, (case.count, *case.spec.shape)).to(dtype_of(case.spec))
    return [any_values, torch.full_like(any_values, case.spec.levels - 1), torch.zeros_like(any_values)]


def first(values: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The first `count` of all."""
    return {name: value[:count] for name, value in values.items()}


def moved(before: Tensor, after: Tensor, same: float = SAME) -> Tensor:
    """Where results differ by more than rounding, each entry of the last axis by its own size, or are no numbers."""
    known = torch.where(before.isfinite(), before, 0.0).abs()
    size = known.amax(tuple(range(max(known.dim() - 1, 1)))) if known.dim() else known
    return ~(((before - after).abs() <= same * (1 + size)) | (before == after))


def in_both_modes(case: Case, look: Callable[[VAE], Tensor]) -> Iterator[tuple[str, VAE]]:
    """Copies at randomised weights, where the zeros of an initialisation hide nothing, in evaluation and in training.

    The second is left out where it gives the same as the first: what leaks in one mode alone makes them differ.

    Args:
        case: whose programs are copied.
        look: what the programs give for the data of the case.
    """
    vae = copied(case.vae)
    shake(vae, 0.1)
    plain = look(vae)
    yield "evaluation mode", vae
    if moved(plain, look(in_training(case, copied(vae))), case.same).any():
        yield "training mode", in_training(case, vae)


def in_training(case: Case, vae: VAE) -> VAE:
    """Training mode, but for the guide's batch normalisations, which keep to what they have counted.

    By those a posterior in training is one of its batch, of the same family. That is known, and is said; what else
    would join data is looked for without them. They stay where a guarantee is about batch statistics.
    """
    vae.train()
    if case.coupled:
        for name in case.batch_norms:
            vae.get_submodule(name).eval()
    return vae


def is_other_in_training(case: Case) -> bool:
    """Whether posteriors in training mode, with everything switched on, are others than in evaluation mode."""
    vae, batch, z = copied(case.vae), case.batch(case.x), case.latents()
    shake(vae, 0.1)
    with torch.no_grad():
        before = posteriors(vae, batch, z)
    with as_trained(vae.train()):
        seeded(0)
        after = posteriors(vae, batch, z)
    return any(bool(moved(before[name].log_q, after[name].log_q.detach(), case.same).any()) for name in before)


def batch_norms(vae: VAE, batch: Batch) -> tuple[str, ...]:
    """Names of torch's own batch normalisations that the guide calls and the model does not."""
    by_guide, by_model, called = set[int](), set[int](), set[int]()
    with ExitStack() as stack, torch.no_grad():
        for module in vae.modules():
            if type(module) in _BATCH_NORM:
                stack.callback(module.register_forward_pre_hook(lambda module, _: called.add(id(module))).remove)
        z = {name: drawn.z for name, drawn in posteriors(vae, batch).items()}
        by_guide |= called
        called.clear()
        sites(vae, "model", batch, z)
        by_model |= called
    return tuple(name for name, module in vae.named_modules() if id(module) in by_guide - by_model)


def without_dropout(vae: VAE) -> VAE:
    """The programs whose dropout layers of torch drop nothing: their noise is known, and tells of no data.

    They stay in their mode, which others may ask for.
    """
    for module in vae.modules():
        if isinstance(module, DROPOUT):
            module.p = 0.0
    return vae


@torch.no_grad()
def shake(module: nn.Module, size: float) -> None:
    """Moves all parameters that learn by noise of a size; by that part of their own size where they are larger than 1.

    Others, such as the mask of a convolution, training does not move either.
    """
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn_like(parameter) * parameter.abs().clamp_min(1.0))


def widened(values: Tensor) -> Tensor:
    """Real numbers in double precision."""
    return values.double() if values.is_floating_point() else values


@contextmanager
def as_trained(vae: VAE, *, keep: bool = False) -> Iterator[None]:
    """Programs in training mode run with gradients, as they are trained; buffers are put back, but with `keep`.

    Those in evaluation mode run as they are.
    """
    if not vae.training:
        yield
        return
    buffers = [] if keep else list(vae.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        with torch.enable_grad():
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.data.copy_(value)  # unseen by a gradient that is still to be taken


_FLOAT, _TO, _TYPE = Tensor.float, Tensor.to, Tensor.type


class _Widened(TorchFunctionMode):
    """Gives double precision where a program asks for single: it does the same, and rounding hides less."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function of torch."""
        kwargs = kwargs or {}
        if function is _FLOAT:
            return args[0].double()
        if function is _TO or function is _TYPE:
            args = [torch.float64 if value is torch.float32 else value for value in args]
        if kwargs and kwargs.get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        try:
            return function(*args, **kwargs)
        except RuntimeError:
            if "out" in kwargs or getattr(function, "__name__", "").endswith("_"):
                raise  # the result would be lost
            return function(*_wide(args), **_wide(kwargs))  # a constant that is no buffer is still in single precision


def _wide(value: Any) -> Any:
    """Tensors of single precision in double, in what functions are called with."""
    if type(value) in (list, tuple):
        return type(value)(_wide(part) for part in value)
    if type(value) is dict:
        return {key: _wide(part) for key, part in value.items()}
    return value.double() if isinstance(value, Tensor) and value.dtype is torch.float32 else value


@contextmanager
def apart(vae: VAE, *, double: bool = True) -> Iterator[None]:
    """Random state, parameters and Pyro's store of its own, and double precision; all put back afterwards."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(parameters_of(vae))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(pyro.get_param_store().scope())
        if double:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float64)
            stack.enter_context(_Widened())
        yield


def passes_on(error: Exception) -> bool:
    """Whether an error is not a program's: a user's mistake, said in a sentence, or a lack of memory."""
    return isinstance(error, UserError) or is_out_of_memory(error)


def _least_place(place: Tensor, order: Tensor, groups: int) -> np.ndarray:
    least = np.full(groups, np.iinfo(np.int64).max)
    np.minimum.at(least, order.numpy().reshape(-1), place.numpy().reshape(-1))
    return least
