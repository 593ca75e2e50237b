"""One step of a decoder's cached sampling as `torch.export` programs: state in, state out, as named tensors.

A sampling state is what a network remembers: dicts and dataclasses of tensors. Those whose shape goes with the batch
are the state of the programs, a flat dict in a fixed order, whose names say where they stand. The others (weights as
steps multiply by them, rotations of positions) are the same for all data, and stay inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_delta.call import call

START, ROW, STEP, VOICE = "decoder_start.pt2", "decoder_row.pt2", "decoder_step.pt2", "decoder_voice.pt2"


class Program(NamedTuple):
    """A program to be exported.

    Attributes:
        name: of its file.
        module: eager.
        tries: inputs, of the first of which it is made.
        axes: of the batch, of those tensors of the state that do not have it first.
    """

    name: str
    module: nn.Module
    tries: list[tuple[Any, ...]]
    axes: dict[str, int]


class _Cached(nn.Module):
    """A likelihood with what does not change of its network's sampling state.

    Args:
        likelihood: program.
        network: of its distributions.
        places: rows and columns; positions and voices; or all tokens or numbers.
        like: a state, whose tensors are filled in.
        kept: those that do not change.
    """

    def __init__(
        self, likelihood: nn.Module, network: Any, places: tuple[int, ...], like: Any, kept: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self.likelihood, self.places, self.like, self.kept = likelihood, places, like, tuple(kept)
        # States are kept by modules, of which the tracer gives another stand-in at each access: here it sees none.
        self.past_the_tracer = {"likelihood": likelihood, "network": network}
        for i, tensor in enumerate(kept.values()):
            self.register_buffer(f"kept_{i}", tensor.detach())

    @property
    def network(self) -> Any:
        """Of the likelihood."""
        return self.past_the_tracer["network"]

    def filled(self, state: Mapping[str, Tensor]) -> Any:
        """The state as the network takes it. Steps write into it, so it is a copy."""
        tensors = {name: tensor.clone() for name, tensor in state.items()}
        tensors |= {name: getattr(self, f"kept_{i}") for i, name in enumerate(self.kept)}
        return _filled(self.like, tensors, _names(self.network))

    def emptied(self, state: Any) -> dict[str, Tensor]:
        """A state of the network as a flat dict."""
        return {name: tensor for name, tensor in _tensors(state, _names(self.network)) if name not in self.kept}


class _Start(_Cached):
    """z (B, n, d), and what goes with x, → parameters (B, P) of the first pixel or number, and the state after that."""

    def forward(self, z: Tensor, extras: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        parameters, state = _started(call(self.past_the_tracer["likelihood"], extras, z))
        return parameters, self.emptied(state)


class _Row(_Cached):
    """Row r ≥ 1, the finished row before it (B, C, W) and the state → parameters of its first pixel, and the state."""

    def forward(self, row: Tensor, before_bcw: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        filled = self.filled(state)
        filled.batch = before_bcw.shape[0]
        self.network.step_row(filled, _within(row, 1, self.places[0]), before_bcw)
        parameters = self.network.step_pixel(filled, 0, None)
        return parameters, self.emptied(filled)


class _Pixel(_Cached):
    """Row, column c ≥ 1, the pixel before it (B, C) and the state → parameters (B, P) of the pixel, and the state."""

    def forward(
        self, row: Tensor, column: Tensor, before_bc: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        filled = self.filled(state)
        filled.pixels.row = _within(row, 0, self.places[0])
        parameters = self.network.step_pixel(filled, _within(column, 1, self.places[1]), before_bc)
        return parameters, self.emptied(filled)


class _Next(_Cached):
    """A place ≥ 1, the token or number before it (B,) and the state → parameters (B, P) there, and the state.

    Args:
        method: of the network: `step` at place i of all in their order, `step_position` at the first voice of position
            t, given the last voice before it, or `step_voice` at voice k of the position of the step before.
        end: of such places.
        parts: as for `_Cached`.
    """

    def __init__(self, method: str, end: int, *parts: Any) -> None:
        super().__init__(*parts)
        self.method, self.end = method, end

    def forward(self, place: Tensor, before_b: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        filled = self.filled(state)
        parameters = getattr(self.network, self.method)(filled, _within(place, 1, self.end), before_b)
        return parameters, self.emptied(filled)


def steps(likelihood: nn.Module, x: Tensor, z: Tensor, extras: dict[str, Tensor]) -> list[Program]:
    """The programs of a likelihood's cached sampling; none if it has none.

    Args:
        likelihood: a program whose distribution has a `network` with `start` and steps, as those that are shipped.
        x: data (B, *shape), B at least 2.
        z: their latents (B, n, d).
        extras: what goes with x, by name.
    """
    distribution = call(likelihood, extras, z)
    network: Any = getattr(distribution, "network", None)
    by_rows = all(hasattr(network, name) for name in ("start", "step_row", "step_pixel"))
    if not by_rows and not (hasattr(network, "start") and hasattr(network, "step")):
        return []
    by_voices = x.dim() == 3 and hasattr(network, "step_position") and hasattr(network, "step_voice")
    like = _started(distribution)[1]
    one = {name: values[:1] for name, values in extras.items()}
    of_one = dict(_tensors(_started(call(likelihood, one, z[:1]))[1], _names(network)))
    whole = dict(_tensors(like, _names(network)))
    axes = {
        name: next(axis for axis, size in enumerate(of_one[name].shape) if size != tensor.shape[axis])
        for name, tensor in whole.items()
        if of_one[name].shape != tensor.shape
    }
    kept = {name: tensor for name, tensor in whole.items() if name not in axes}
    state = {name: tensor for name, tensor in whole.items() if name in axes}
    places = tuple(x.shape[-2:] if by_rows else x.shape[1:] if by_voices else (x[0].numel(),))
    parts = likelihood, network, places, like, kept
    made = [Program(START, _Start(*parts), [(z, extras)], axes)]
    last = tuple(torch.tensor(size - 1) for size in places)
    first, second = torch.tensor(0), torch.tensor(1)
    if not by_rows:
        methods = {STEP: "step_position", VOICE: "step_voice"} if by_voices else {STEP: "step"}
        tries: list[tuple[Any, ...]]
        for (name, method), end, at_end in zip(methods.items(), places, last, strict=True):
            tries = [(place, x.flatten(1)[:, 0], state) for place in (second, at_end)]
            if end > 1:
                made.append(Program(name, _Next(method, end, *parts), tries, axes))
        return made
    if places[0] > 1:
        made.append(Program(ROW, _Row(*parts), [(row, x[:, :, 0], state) for row in (second, last[0])], axes))
    if places[1] > 1:
        tries = [(row, column, x[:, :, 0, 0], state) for row, column in ((first, second), last)]
        made.append(Program(STEP, _Pixel(*parts), tries, axes))
    return made


def _started(distribution: Any) -> tuple[Tensor, Any]:
    """Parameters of the first pixel or token, and the state after that."""
    network = distribution.network
    state = network.start(distribution.z)
    if hasattr(network, "step_row"):
        network.step_row(state, 0, None)
        return network.step_pixel(state, 0, None), state
    return network.step(state, 0, None), state


def _within(place: Tensor, first: int, end: int) -> int:
    """A place as a number, of which the tracer is told where it lies."""
    number: int = place.item()  # type: ignore[assignment]  # int() would make it a constant of the program
    torch._check(number >= first)
    torch._check(number < end)
    return number


def _names(network: nn.Module) -> dict[Any, str]:
    """Of modules, for a state may be kept by them."""
    return {module: name for name, module in network.named_modules()}


def _parts(state: Any) -> dict[Any, Any]:
    """What a state holds, by key, place or attribute."""
    if isinstance(state, dict):
        return state
    if isinstance(state, list):
        return dict(enumerate(state))
    return vars(state) if is_dataclass(state) else {}


def _tensors(state: Any, names: dict[Any, str], at: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of a state, by where they stand: pixels.lines.trunk.stem_pixels."""
    for key, part in _parts(state).items():
        name = f"{at}{names.get(key, key)}"
        if isinstance(part, Tensor):
            yield name, part
        yield from _tensors(part, names, f"{name}.")


def _filled(like: Any, tensors: Mapping[str, Tensor], names: dict[Any, str], at: str = "") -> Any:
    """A copy of a state with other tensors."""
    filled = copy(like)
    for key, part in _parts(like).items():
        name = f"{at}{names.get(key, key)}"
        value = tensors.get(name, part) if isinstance(part, Tensor) else _filled(part, tensors, names, f"{name}.")
        if isinstance(filled, (dict, list)):
            filled[key] = value
        else:
            setattr(filled, key, value)
    return filled
