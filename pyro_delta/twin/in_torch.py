"""NumPyro's distributions as torch's: what diagnostics ask of a distribution, answered by NumPyro.

Values are torch tensors on the CPU, computed with by JAX. Derivatives by the value reach torch, of any order, so that a
Gaussian of any kind is recognised by its density. KL divergences are those of NumPyro's registry, δ is that of
`pyro_delta.twin.rate`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpyro.distributions import Distribution as NumPyroDistribution
from numpyro.distributions import (
    ExpandedDistribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)
from numpyro.distributions import constraints as numpyro_constraints
from numpyro.distributions.kl import kl_divergence
from torch import Size, Tensor
from torch import distributions as torch_dist
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl

from pyro_delta.distributions import mean_field
from pyro_delta.distributions.dimensions import per_dimension
from pyro_delta.distributions.float64 import as_float64
from pyro_delta.distributions.gaussian_types import Gaussian, gaussian_by_type, register_gaussian
from pyro_delta.errors import UserError
from pyro_delta.rate import register_committed_rate
from pyro_delta.twin.distributions import GaussianAR1, GaussianSequence, normal_parameters
from pyro_delta.twin.rate import committed_rate


def to_jax(values: Tensor) -> jax.Array:
    """A tensor as an array, of the precision that JAX is set to."""
    return jnp.asarray(values.detach().cpu().numpy())


def to_torch(values: Any) -> Tensor:
    """An array as a tensor on the CPU; copied, for JAX's arrays must not be written to."""
    return torch.from_numpy(np.array(values))


class InTorch(Distribution):
    """A NumPyro distribution as torch's. Make one by `in_torch`.

    Args:
        own: the distribution. If one of its arrays is in double precision, so is what is computed.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, own: NumPyroDistribution) -> None:
        self.own = own
        super().__init__(Size(own.batch_shape), Size(own.event_shape), validate_args=False)

    @property
    def wide(self) -> bool:
        """Whether it is in double precision."""
        return any(getattr(leaf, "dtype", None) == np.float64 for leaf in jax.tree.leaves(self.own))

    @property
    def support(self) -> Any:
        """Torch's real numbers where the support is that; otherwise NumPyro's own word for it."""
        support = self.own.support
        while isinstance(support, numpyro_constraints.independent):
            support = support.base_constraint
        return constraints.real if isinstance(support, type(numpyro_constraints.real)) else support

    @property
    def mean(self) -> Tensor:
        """The mean."""
        with _precision(self.wide):
            return to_torch(self.own.mean)

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate."""
        with _precision(self.wide):
            return to_torch(self.own.variance)

    def entropy(self) -> Tensor:
        """Differential entropy."""
        with _precision(self.wide):
            return to_torch(self.own.entropy())

    @property
    def lengths(self) -> Tensor | None:
        """Of an AR(1) process that has a length for each of its batch."""
        lengths = getattr(_plain(self.own), "lengths", None)
        return None if lengths is None else to_torch(lengths)

    @property
    def whole(self) -> InTorch:
        """That process without lengths."""
        own: Any = _plain(self.own)
        return in_torch(type(own)(own.alpha, own.length))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of values, with derivatives by them."""
        value = value.double() if self.wide and value.is_floating_point() else value
        return _Through.apply(self.own.log_prob, value)


def in_torch(own: NumPyroDistribution) -> InTorch:
    """A NumPyro distribution as torch's."""
    has_formula = type(_plain(own)) in (GaussianAR1, GaussianSequence) or normal_parameters(own) is not None
    return _class_of(_title(own), has_formula)(own)


@cache
def _class_of(title: str, has_formula: bool) -> type[InTorch]:
    """A class for each kind of distribution, of its name; those whose δ has a formula are registered with it."""
    made = type(title, (InTorch,), {})
    if has_formula:
        register_committed_rate(made)(_committed_rate)
    register_gaussian(made)(_gaussian_by_type)
    return made


def _gaussian_by_type(distribution: InTorch) -> Gaussian | None:
    """Mean and precision of a Gaussian of a class that torch has, too."""
    with _precision(distribution.wide):
        known = _torchs_own(distribution.own)
    return None if known is None else gaussian_by_type(known)


def _torchs_own(own: NumPyroDistribution) -> Distribution | None:
    """The same distribution of torch's own; None if it is of another class than those below."""
    inner = _torchs_own(own.base_dist) if hasattr(own, "base_dist") else None
    if isinstance(own, ExpandedDistribution):
        return None if inner is None else inner.expand(Size(own.batch_shape))
    if type(own) is Independent:
        return None if inner is None else torch_dist.Independent(inner, own.reinterpreted_batch_ndims)
    if type(own) is Normal:
        return torch_dist.Normal(to_torch(own.loc), to_torch(own.scale))
    if type(own) is MultivariateNormal:
        return torch_dist.MultivariateNormal(to_torch(own.loc), scale_tril=to_torch(own.scale_tril))
    if type(own) is LowRankMultivariateNormal:
        return torch_dist.LowRankMultivariateNormal(to_torch(own.loc), to_torch(own.cov_factor), to_torch(own.cov_diag))
    return None


def _committed_rate(prior: InTorch, blocks: int) -> Tensor:
    return to_torch(committed_rate(_plain(prior.own), blocks)).expand(prior.batch_shape)


def _plain(own: NumPyroDistribution) -> NumPyroDistribution:
    """The distribution, without what a plate made of it."""
    return own.base_dist if isinstance(own, ExpandedDistribution) else own


def _title(own: NumPyroDistribution) -> str:
    """Class name, with what a wrapper wraps: Independent(Normal)."""
    own = _plain(own)
    return f"{type(own).__name__}({_title(own.base_dist)})" if hasattr(own, "base_dist") else type(own).__name__


# --- What diagnostics ask ---


@mean_field.normal_parameters.register(InTorch)
def _normal_parameters(q: InTorch) -> tuple[Tensor, Tensor] | None:
    with _precision(q.wide):
        parameters = normal_parameters(q.own)
    return None if parameters is None else (to_torch(parameters[0]), to_torch(parameters[1]))


@as_float64.register(InTorch)
def _as_float64(value: InTorch, memo: Any = None) -> InTorch:
    """The same with every number in double precision: as NumPy's arrays, of which JAX rounds none."""

    def widened(leaf: Any) -> Any:
        return np.asarray(leaf, np.float64) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return type(value)(jax.tree.map(widened, value.own))


@jax.jit  # once for all parameters of a shape, rather than each operation alone
def _divergence(q: Any, p: Any) -> jax.Array:
    return kl_divergence(q, p)


@register_kl(InTorch, InTorch)
def _kl(q: InTorch, p: InTorch) -> Tensor:
    with _precision(q.wide or p.wide):
        try:
            return to_torch(_divergence(q.own, p.own))
        except TypeError:  # it looks at values, or a distribution holds what cannot be hashed
            return to_torch(kl_divergence(q.own, p.own))


@per_dimension.register(InTorch)
def _per_dimension(distribution: InTorch) -> InTorch:
    own = _plain(distribution.own)
    with _precision(distribution.wide):
        if type(own) is GaussianAR1:
            lengths = None if own.lengths is None else own.lengths[..., None]
            return in_torch(GaussianAR1(own.alpha[..., None], own.length, lengths))
        if (parameters := normal_parameters(own)) is not None and len(own.event_shape) == 2:
            loc, scale = (part.swapaxes(-1, -2)[..., None] for part in parameters)
            return in_torch(Normal(loc, scale).to_event(2))
    raise UserError(f"{_title(own)} is not known to be independent over its latent dimensions.")


# --- From torch to JAX and back ---


def _precision(wide: bool) -> AbstractContextManager[Any]:
    return jax.enable_x64(True) if wide else nullcontext()


class _Through(torch.autograd.Function):
    """A function of arrays, with one array as its value, as one of tensors that has derivatives of any order."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *given: Tensor) -> Tensor:
        """Computes it, in double precision if an argument is."""
        ctx.function = function
        ctx.save_for_backward(*given)
        with _precision(any(values.dtype == torch.float64 for values in given)):
            return to_torch(function(*map(to_jax, given)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradient by each argument, a function of all of them and of the gradient by the value."""
        given = (*ctx.saved_tensors, *gradients)
        needed = enumerate(ctx.needs_input_grad[1:])
        return None, *(_Through.apply(_pulled(ctx.function, i), *given) if need else None for i, need in needed)


def _pulled(function: Callable[..., Any], argument: int) -> Callable[..., Any]:
    return lambda *given: jax.vjp(function, *given[:-1])[1](given[-1])[argument]
