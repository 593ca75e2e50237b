"""A run's guide and decoder as `torch.export` programs, which need neither this library nor Pyro."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import product
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_delta.call import call, required
from pyro_delta.errors import UserError, in_a_line
from pyro_delta.inference.run import Run
from pyro_delta.protocol import Split
from pyro_delta.share.steps import Program, steps
from pyro_delta.vae import VAE, parameters_of

GUIDE, DECODER = "guide.pt2", "decoder.pt2"
MOST = 2**31 - 1
"""Data of a batch for which programs are made."""
TRACED, TRIED = 3, 5
"""Data that a program is traced with, and then compared with eager torch on."""
TOLERANCE = 1e-6
"""Of that comparison, absolute and relative."""
STAY = "the steps of its sampling stay behind."
TOLD = ("lengths", "mask", "condition")
"""Of what goes with x, by name, that a guide or a likelihood may be told."""


class _Guide(nn.Module):
    """Data x (B, *shape), and what goes with them, → mean and standard deviation of q(z | x), each (B, n, d)."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.guide = vae.guide

    def forward(self, x: Tensor, extras: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        q = call(self.guide.posterior, extras, x)
        return q.mean, q.stddev


class _Decoder(nn.Module):
    """Data x (B, *shape), z (B, n, d), and what goes with x, → the likelihood's parameters at all positions, causal."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.likelihood = vae.model.likelihood

    def forward(self, x: Tensor, z: Tensor, extras: dict[str, Tensor]) -> Tensor:
        return call(self.likelihood, extras, z).parameters_at(x)


def graphs(run: Run, split: Split) -> tuple[dict[str, bytes], list[str]]:
    """The files `guide.pt2` and `decoder.pt2` of a run, and those of `steps`, checked against eager torch.

    Their batch size is free. They are called as `torch.export.load(FILE).module()(x, extras)` and `(x, z, extras)`, on
    the CPU; `extras` holds those of lengths, mask and condition that the data have, often none: `{}`. How those of
    cached sampling are called, `pyro_delta.share.steps` says.

    Args:
        run: on the CPU.
        split: some of its data, at least `TRIED`.

    Returns:
        The content of each file, and sentences that a person should know: older versions of torch cannot make the steps
        of cached sampling, which then stay behind.

    Raises:
        UserError: if guide or decoder cannot be exported, saying why, or the result computes something else.
    """
    some = split.take(slice(TRIED))
    if len(some) < TRIED:
        raise UserError(f"torch programs are made and tried with {TRIED} data, but there are {len(some)}; give more.")
    model, guide = run.vae.model, run.vae.guide
    if not hasattr(guide, "posterior"):
        raise UserError("the guide has no method posterior, by which a torch program would be made; leave --torch out.")
    extras = {name: values for name, values in some.extras.items() if name in TOLD}
    if more := set(required(guide.posterior, 1) + required(model.likelihood, 1)) - extras.keys():
        raise UserError(f"the run's programs take {', '.join(sorted(more))}, of which torch programs know nothing.")
    with torch.no_grad(), parameters_of(run.vae), pyro.validation_enabled(False):
        q = call(guide.posterior, extras, some.x)
        for name in ("mean", "stddev"):
            if not _has(q, name):
                raise UserError(f"the guide's posterior states no {name}, which {GUIDE} would give; leave --torch out.")
        z = q.mean
        if not hasattr(call(model.likelihood, extras, z), "parameters_at"):
            raise UserError(
                f"the likelihood {run.config.likelihood.program!r} gives a distribution without parameters_at, which "
                f"{DECODER} would call; leave --torch out."
            )
        programs = [
            Program(GUIDE, _Guide(run.vae), [(some.x, extras)], {}),
            Program(DECODER, _Decoder(run.vae), [(some.x, z, extras)], {}),
        ]
        made, notes = {program.name: _exported(program) for program in programs}, []
        try:
            of_sampling = steps(model.likelihood.eval(), some.x, z, extras)
            made |= {program.name: _exported(program, STAY) for program in of_sampling}
        except UserError as error:
            notes.append(str(error))
        return made, notes


def _has(distribution: Any, name: str) -> bool:
    """Whether a distribution states a moment, of z as a whole."""
    try:
        found = getattr(distribution, name)
    except (NotImplementedError, AttributeError, UserError):
        return False
    return isinstance(found, Tensor)


def _exported(program: Program, mend: str = "leave --torch out.") -> bytes:
    """A program as the bytes of its file, traced with some of the data and tried with all and with one.

    Raises:
        UserError: if torch cannot, or makes something else of it; `mend` says what follows from that.
    """
    # Without a largest size, torch before 2.7 finds that it differs from infinity, and refuses.
    batch, name, axes = torch.export.Dim("batch", min=1, max=MOST), program.name, program.axes
    free = tuple(
        {key: {axes.get(key, 0): batch} for key in part}
        if isinstance(part, dict)
        else {0: batch}
        if part.dim()
        else None
        for part in program.tries[0]
    )
    module = program.module.eval()
    try:
        with _quiet():
            given = _first(program.tries[0], TRACED, axes)
            made = torch.export.export(module, given, dynamic_shapes=free, strict=False)
            file = io.BytesIO()
            torch.export.save(made, file)
            read = torch.export.load(io.BytesIO(file.getvalue())).module()
    except Exception as error:  # whatever torch meets that it cannot trace
        raise UserError(
            f"torch.export of torch {torch.__version__} cannot make {name} of this run ({in_a_line(error)}); {mend}"
        ) from error
    for given, count in product(program.tries, (TRIED, 1)):
        some = _first(given, count, axes)
        for found, expected in zip(_flat(read(*some)), _flat(module(*some)), strict=True):
            if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                apart = (found - expected).abs().max().item()
                raise UserError(f"{name} differs from the run by {apart:.2g} on a batch of {count}; {mend}")
    return file.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch warns, logs and prints of how it traces: what comes of it is said by an error."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first(given: tuple[Any, ...], count: int, axes: dict[str, int]) -> tuple[Any, ...]:
    """The first so many data of a batch; a number is one of all data."""
    return tuple(
        {key: value.narrow(axes.get(key, 0), 0, count).contiguous() for key, value in part.items()}
        if isinstance(part, dict)
        else part[:count]
        if part.dim()
        else part
        for part in given
    )


def _flat(found: Any) -> list[Tensor]:
    """The tensors of what a program returns."""
    if isinstance(found, Tensor):
        return [found]
    return [tensor for part in (found.values() if isinstance(found, dict) else found) for tensor in _flat(part)]
