"""Directions: the uniform prior on a sphere, posteriors around a mean direction, and the KL between them.

KL(q ‖ uniform) depends on the concentration κ alone, never on the mean direction: a fixed κ commits exactly that rate
for every datum, whatever the encoder gives. Rates and entropies are in nats, densities per unit of surface.

What depends on κ alone is in `sphere_rates.py`: computed in float64, and handed back here in the parameters' type.

References:
    [1] N. De Cao, W. Aziz, "The Power Spherical Distribution", 2020, arXiv:2006.04437.
    [2] T. R. Davidson, L. Falorsi, N. De Cao, T. Kipf, J. M. Tomczak, "Hyperspherical Variational Auto-Encoders",
        UAI 2018.
    [3] A. T. A. Wood, "Simulation of the von Mises Fisher distribution", Communications in Statistics 23(1), 1994.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.constraints import sphere
from torch import Size, Tensor
from torch.distributions import Beta, Dirichlet, register_kl

from pyro_delta.distributions.mean_field import check_exact, check_same_event
from pyro_delta.distributions.shapes import broadcast_shapes
from pyro_delta.distributions.sphere_rates import (
    Concentration,
    check_dims,
    log_area,
    log_beta_ratio,
    power_spherical_nats,
    von_mises_fisher_tilt,
)
from pyro_delta.errors import UserError

# --- The prior ---


class SphereUniform(TorchDistribution):
    """Uniform distribution on the unit sphere S^(d−1) in R^d; event shape (d,), batch shape ().

    Args:
        dims: dimension d ≥ 2 of the space around the sphere.
        dtype: floating type of the samples; torch's default if None.
        device: where samples are drawn.
        validate_args: check samples (torch's meaning of the flag).

    Raises:
        UserError: `dims` is not a whole number from 2 up.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch's own protocol)
    support = sphere
    has_rsample = True

    def __init__(
        self,
        dims: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_dims(dims)
        self._mean = torch.zeros(dims, dtype=dtype, device=device)
        super().__init__(Size(), Size((dims,)), validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: SphereUniform | None = None) -> SphereUniform:
        """The same prior over a larger batch, of the same class, so that a plate keeps the KLs below."""
        new = self._get_checked_instance(SphereUniform, _instance)
        new._mean = self._mean.expand(Size(batch_shape) + self.event_shape)
        super(SphereUniform, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """Zero, shape (..., d)."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """1/d, shape (..., d)."""
        return torch.full_like(self._mean, 1 / self.event_shape[0])

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Draw directions, shape sample_shape + (..., d)."""
        shape = self._extended_shape(Size(sample_shape))
        return _unit(torch.randn(shape, dtype=torch.float64, device=self._mean.device)).to(self._mean.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, −ln |S^(d−1)|; `value` has shape (..., d)."""
        if self._validate_args:
            self._validate_sample(value)
        shape = broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -log_area(self.event_shape[0]))

    def entropy(self) -> Tensor:
        """The logarithm of the area, ln |S^(d−1)|, in nats, shape batch_shape."""
        return self._mean.new_full(self.batch_shape, log_area(self.event_shape[0]))


# --- Posteriors ---


class _AroundMean(TorchDistribution):
    """A density on the sphere that depends on the cosine t = loc·x alone; what its two classes share."""

    arg_constraints = {"loc": sphere, "concentration": Concentration()}  # noqa: RUF012 (torch's own protocol)
    support = sphere

    def __init__(self, loc: Tensor, concentration: Tensor | float, validate_args: bool | None = None) -> None:
        name = type(self).__name__
        if loc.dim() < 1 or loc.shape[-1] < 2 or not loc.is_floating_point():
            raise UserError(
                f"{name} got a loc of shape {tuple(loc.shape)} and type {loc.dtype}; "
                "give floating-point directions of shape (..., d) with d of 2 or more."
            )
        if not isinstance(concentration, Tensor):
            concentration = torch.as_tensor(concentration, dtype=loc.dtype, device=loc.device)
        if concentration.dtype != loc.dtype:
            raise UserError(
                f"{name} got a loc of {loc.dtype} and a concentration of {concentration.dtype}; give both in one type."
            )
        try:
            batch_shape = broadcast_shapes(loc.shape[:-1], concentration.shape)
        except ValueError:
            raise UserError(
                f"{name} got a loc of shape {tuple(loc.shape)} and a concentration of shape "
                f"{tuple(concentration.shape)}; give (..., d) and (...) that broadcast."
            ) from None
        self.loc = loc.expand(batch_shape + loc.shape[-1:])
        # Not expanded: what depends on the concentration is computed once for every member of a plate.
        self._concentration = concentration
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    @property
    def concentration(self) -> Tensor:
        """κ, shape batch_shape."""
        return self._concentration.expand(self.loc.shape[:-1])

    def expand(self, batch_shape: Size, _instance: _AroundMean | None = None) -> _AroundMean:
        """The same distribution over a larger batch, of the same class, so that a plate keeps the KL below."""
        new = self._get_checked_instance(_AroundMean, _instance)
        new.loc = self.loc.expand(Size(batch_shape) + self.event_shape)
        new._concentration = self._concentration
        super(_AroundMean, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """E[t] · loc, shape (..., d)."""
        mean = self._resultant().unsqueeze(-1) * _unit(self.loc)
        return mean.to(self.loc.dtype)

    def entropy(self) -> Tensor:
        """Differential entropy in nats, ln |S^(d−1)| − KL to the uniform distribution, shape batch_shape."""
        nats = log_area(self.event_shape[0]) - self._nats()
        return nats.to(self.loc.dtype).expand(self.batch_shape)

    def _kappa(self) -> Tensor:
        """κ in float64, as it was given: not expanded."""
        return self._concentration.double()

    def _resultant(self) -> Tensor:
        """E[t], float64, of the shape of `_kappa`."""
        raise NotImplementedError

    def _nats(self) -> Tensor:
        """KL to the uniform distribution, float64, of the shape of `_kappa`."""
        raise NotImplementedError

    def _turn(self, cosine: Tensor, sine: Tensor) -> Tensor:
        """Directions at given angles from loc and otherwise uniform, shape of the angles + (d,).

        The Householder reflection takes the first axis e to ±loc, the sign that keeps ‖e ± loc‖ ≥ √2: [1, algorithm 1]
        has one sign, whose gradients explode where loc is near e.
        """
        shape = cosine.shape + self.event_shape
        loc = _unit(self.loc)
        noise = torch.randn((*shape[:-1], shape[-1] - 1), dtype=torch.float64, device=loc.device)
        point = torch.cat([cosine.unsqueeze(-1), sine.unsqueeze(-1) * _unit(noise)], dim=-1)
        first = loc[..., :1]
        sign = torch.where(first < 0, -1.0, 1.0).to(loc.dtype)
        axis = torch.cat([1 + sign * first, sign * loc[..., 1:]], dim=-1)
        along = (axis * point).sum(-1, keepdim=True) / axis[..., :1]
        return (sign * (along * axis - point)).to(self.loc.dtype)


class PowerSpherical(_AroundMean):
    """Power spherical distribution, density ∝ (1 + loc·x)^κ on the unit sphere S^(d−1) in R^d, d ≥ 2 [1].

    Samples are reparameterised, loc by a reflection and κ by torch's implicit gradients of the Beta distribution of t.

    Args:
        loc: unit vectors, the mean directions, shape (..., d). Their gradient is along the sphere.
        concentration: κ from 0 (uniform) to 10⁶, a number or shape (...). The leading dimensions of both broadcast to
            the batch shape.
        validate_args: check arguments and samples (torch's meaning of the flag).

    Raises:
        UserError: the shapes or types do not fit one another.
        ValueError: loc is not of length 1, or κ is out of range, with validation on.
    """

    has_rsample = True

    @property
    def variance(self) -> Tensor:
        """Variances of the coordinates, shape (..., d).

        With t = 2z − 1 and z ~ Beta(a, b), var t = 4ab/[(a+b)²(a+b+1)] along loc and (1 − E[t²])/(d − 1) across.
        """
        half = (self.event_shape[0] - 1) / 2
        a = (self._kappa() + half).unsqueeze(-1)
        across = 2 * a / ((a + half) * (a + half + 1))
        along = across * 2 * half / (a + half)
        square = _unit(self.loc).square()
        return (along * square + across * (1 - square)).to(self.loc.dtype)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Draw reparameterised directions, shape sample_shape + (..., d)."""
        half = (self.event_shape[0] - 1) / 2
        kappa = self.concentration.double().expand(self._extended_shape(Size(sample_shape))[:-1])
        # A Dirichlet of two is the Beta and its complement, each with all its digits, where 1 − z would lose them.
        pair = Dirichlet(torch.stack([kappa + half, torch.full_like(kappa, half)], -1), validate_args=False).rsample()
        upper, lower = pair.unbind(-1)
        return self._turn(upper - lower, 2 * (upper * lower).clamp_min(torch.finfo(pair.dtype).tiny).sqrt())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats; `value` has shape (..., d)."""
        if self._validate_args:
            self._validate_sample(value)
        kappa, dims = self._kappa(), self.event_shape[0]
        # (1 + t)/2 without the cancellation near the antipode.
        share = (_unit(self.loc) + _unit(value)).square().sum(-1) / 4
        nats = torch.xlogy(kappa, share) + log_beta_ratio(kappa, dims) - log_area(dims)
        return nats.to(torch.promote_types(value.dtype, self.loc.dtype))

    def _resultant(self) -> Tensor:
        return self._kappa() / (self._kappa() + self.event_shape[0] - 1)

    def _nats(self) -> Tensor:
        return power_spherical_nats(self._kappa(), self.event_shape[0])


class VonMisesFisher(_AroundMean):
    """Von Mises-Fisher distribution, density ∝ exp(κ loc·x) on the unit sphere S^(d−1) in R^d, d ≥ 2 [2].

    NOTE: samples are reparameterised where κ is fixed, as in a δ-VAE: a reflection carries the gradient of loc. The
    cosine comes from rejection [3], which has no gradient, so that `has_rsample` is false where κ requires one, and
    Pyro's objectives take a score function or refuse. For a κ that learns, take PowerSpherical.

    Args:
        loc: unit vectors, the mean directions, shape (..., d). Their gradient is along the sphere.
        concentration: κ from 0 (uniform) to 10⁶, a number or shape (...). The leading dimensions of both broadcast to
            the batch shape.
        validate_args: check arguments and samples (torch's meaning of the flag).

    Raises:
        UserError: the shapes or types do not fit one another.
        ValueError: loc is not of length 1, or κ is out of range, with validation on.
    """

    @property
    def has_rsample(self) -> bool:
        """Whether κ is fixed."""
        return not self._concentration.requires_grad

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Draw directions with gradients of loc, shape sample_shape + (..., d).

        Raises:
            NotImplementedError: κ requires a gradient.
        """
        if not self.has_rsample:
            raise NotImplementedError(
                "VonMisesFisher has no samples with a gradient of its concentration; fix it, or take PowerSpherical."
            )
        return self._draw(Size(sample_shape))

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Draw directions without gradients, shape sample_shape + (..., d)."""
        with torch.no_grad():
            return self._draw(Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats; `value` has shape (..., d)."""
        if self._validate_args:
            self._validate_sample(value)
        away = (_unit(self.loc) - _unit(value)).square().sum(-1) / 2  # 1 − t
        tilt = von_mises_fisher_tilt(self._kappa(), self.event_shape[0])
        nats = -self._kappa() * away - tilt.log_scale - log_area(self.event_shape[0])
        return nats.to(torch.promote_types(value.dtype, self.loc.dtype))

    def _resultant(self) -> Tensor:
        return von_mises_fisher_tilt(self._kappa(), self.event_shape[0]).resultant

    def _nats(self) -> Tensor:
        return von_mises_fisher_tilt(self._kappa(), self.event_shape[0]).nats

    def _draw(self, sample_shape: Size) -> Tensor:
        """Rejection from an envelope [3, algorithm VM*], written in 1 − t so that a large κ keeps its digits."""
        half = (self.event_shape[0] - 1) / 2
        kappa = self.concentration.detach().double().expand(self._extended_shape(sample_shape)[:-1])
        b = half / (kappa + (kappa.square() + half**2).sqrt())
        mode = 2 * b / (1 + b)
        beta = Beta(kappa.new_tensor(half), kappa.new_tensor(half))
        away = torch.zeros_like(kappa)
        waiting = torch.ones_like(kappa, dtype=torch.bool)
        while waiting.any():
            z = beta.sample(kappa.shape)
            candidate = 2 * b * z / ((1 - z) + b * z)
            ratio = (1 + b) / 2 * (1 + (1 - b) * candidate / (2 * b))
            score = kappa * (mode - candidate) + 2 * half * ratio.log()
            taken = waiting & ~(score < torch.rand_like(kappa).log())  # not a number is taken, and seen
            away = torch.where(taken, candidate, away)
            waiting = waiting & ~taken
        return self._turn(1 - away, (away * (2 - away)).clamp_min(0).sqrt())


def _unit(vector: Tensor) -> Tensor:
    """Float64 vectors scaled to length 1 over the last dimension."""
    vector = vector.double()
    return vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True)


# --- KL to the prior ---


@register_kl(PowerSpherical, SphereUniform)
def kl_power_spherical_sphere_uniform(q: PowerSpherical, p: SphereUniform) -> Tensor:
    """KL(q ‖ p) in nats [1], shape batch_shape.

    With b = (d − 1)/2 and a = b + κ:

        ln |S^(d−1)| + κ [ln 2 + ψ(a) − ψ(a + b)] − [(a + b) ln 2 + b ln π + ln Γ(a) − ln Γ(a + b)]

    Raises:
        NotImplementedError: q or p is of a subclass.
        UserError: the event shapes of q and p differ.
    """
    check_exact((q, PowerSpherical), (p, SphereUniform))
    return _kl_to_uniform(q, p)


@register_kl(VonMisesFisher, SphereUniform)
def kl_von_mises_fisher_sphere_uniform(q: VonMisesFisher, p: SphereUniform) -> Tensor:
    """KL(q ‖ p) in nats [2], shape batch_shape.

    With Bessel functions of orders d/2 and d/2 − 1, not of d/2 + 1 and d/2, which give the KL of two dimensions more:

        κ I_{d/2}(κ)/I_{d/2−1}(κ) + (d/2 − 1) ln κ − (d/2) ln 2π − ln I_{d/2−1}(κ) + ln |S^(d−1)|

    Raises:
        NotImplementedError: q or p is of a subclass.
        UserError: the event shapes of q and p differ.
    """
    check_exact((q, VonMisesFisher), (p, SphereUniform))
    return _kl_to_uniform(q, p)


def _kl_to_uniform(q: _AroundMean, p: SphereUniform) -> Tensor:
    check_same_event(q, p.event_shape)
    dtype = torch.promote_types(q.loc.dtype, p.mean.dtype)
    return q._nats().to(dtype).expand(broadcast_shapes(q.batch_shape, p.batch_shape))
