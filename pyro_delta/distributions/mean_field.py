"""The mean-field posterior of a KL, and what a KL asks of its two sides."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import pyro.distributions as dist
from torch import Size, Tensor
from torch.distributions import Distribution, Independent, Normal

from pyro_delta.errors import UserError

_NORMAL = (Normal, dist.Normal)
_INDEPENDENT = (Independent, dist.Independent)


def check_exact(*pairs: tuple[Distribution, type]) -> None:
    """Refuse subclasses.

    torch dispatches a KL to subclasses too, but a subclass may have another density: it registers a KL of its own.

    Raises:
        NotImplementedError: a distribution is not of exactly its class.
    """
    for distribution, cls in pairs:
        if type(distribution) is not cls:
            raise NotImplementedError(
                f"this KL is that of {cls.__name__} alone; register_kl another for {type(distribution).__name__}."
            )


def check_same_event(q: Distribution, event_shape: Size) -> None:
    """Refuse a posterior over another space than the prior's.

    Raises:
        UserError: the event shapes differ.
    """
    if q.event_shape != event_shape:
        raise UserError(
            f"the posterior has event shape {tuple(q.event_shape)}, the prior {tuple(event_shape)}; make them equal."
        )


def mean_field_parameters(q: Any, event_shape: Size, prior: str) -> tuple[Tensor, Tensor]:
    """μ and σ, shape batch_shape + event_shape, of a posterior q = `Normal(μ, σ).to_event(len(event_shape))`.

    Args:
        q: the posterior of a KL.
        event_shape: the prior's.
        prior: the prior's name, for the message.

    Raises:
        NotImplementedError: q is not exactly that.
        UserError: its event shape is another.
    """
    parameters, events = normal_parameters(q), len(event_shape)
    if parameters is None or len(q.event_shape) != events:
        raise NotImplementedError(
            f"KL to {prior} is known for Normal(...).to_event({events}), not for "
            f"{type(getattr(q, 'base_dist', q)).__name__} with {len(q.event_shape)} event dimensions."
        )
    check_same_event(q, event_shape)
    return parameters


@singledispatch
def normal_parameters(q: Any) -> tuple[Tensor, Tensor] | None:
    """μ and σ of a distribution that is exactly Normal and independent over all its coordinates; None for others.

    Distributions of another backend join in by `@normal_parameters.register`.
    """
    base = q
    while type(base) in _INDEPENDENT:
        base = base.base_dist
    return (base.loc, base.scale) if type(base) in _NORMAL else None
