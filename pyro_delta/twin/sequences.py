"""Twins of the GRU likelihood and guide, written from `docs/architecture.md`: networks over tokens, and p(x | z).

B sequences of T tokens, each of V; n latent steps of d dimensions, of which step t belongs to the sequence from token
starts[t] on; h units. Weights have torch's names and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from flax import nnx
from jax import Array
from numpyro.distributions import Distribution, Independent, Normal, constraints
from numpyro.distributions.util import validate_sample

from pyro_delta.data.sequences.spec import require_tokens
from pyro_delta.protocol import Spec
from pyro_delta.twin.latents import LatentMap
from pyro_delta.twin.layers import linear, positive, uniform
from pyro_delta.twin.rate import minimising_factor
from pyro_delta.twin.variables import Buffer


class AutoregressiveTokens(Distribution):
    """p(x | z) = Π p(x_t | x_{<t}, z): the network makes the logits of each token from those before it and from z.

    `log_prob` is one pass over whole sequences; `sample` writes token after token in a scan.

    Args:
        network: of the logits of all tokens.
        z: latents (..., n, d); the batch shape is theirs.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    pytree_data_fields = ("network", "z")

    def __init__(self, network: ConditionalGRU, z: Array, *, validate_args: bool | None = None) -> None:
        self.network, self.z = network, z
        super().__init__(z.shape[:-2], (network.length,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Integers 0 … V − 1 at every place."""
        return constraints.independent(constraints.integer_interval(0, self.network.levels - 1), 1)

    def expand(self, batch_shape: Sequence[int]) -> AutoregressiveTokens:
        """The same with latents repeated to another batch shape."""
        z = jnp.broadcast_to(self.z, (*batch_shape, *self.z.shape[-2:]))
        return type(self)(self.network, z, validate_args=self._validate_args)

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log-probability of sequences (..., T)."""
        batch = jnp.broadcast_shapes(value.shape[:-1], self.batch_shape)
        x_bt = jnp.broadcast_to(value, (*batch, *self.event_shape)).reshape(-1, *self.event_shape)
        log_p_btv = jax.nn.log_softmax(self.network(x_bt, self._latents(batch)))
        of_token = jnp.take_along_axis(log_p_btv, x_bt[..., None].astype(jnp.int32), axis=-1)
        return jnp.sum(of_token, axis=(-2, -1)).reshape(batch)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise of a sample, (T,)."""
        return self.event_shape

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Sequences (*sample_shape, *batch_shape, T), integers."""
        return self.from_uniforms(jax.random.uniform(key, self.shape(sample_shape), self.z.dtype))

    def from_uniforms(self, uniforms: Array) -> Array:
        """The sequences that uniforms (..., T) give: token #{v < V − 1 : u ≥ p_0 + … + p_v} at each place."""
        batch = uniforms.shape[:-1]

        def choose(logits_bv: Array, uniform_b: Array) -> Array:
            before_bv = jnp.cumsum(jax.nn.softmax(logits_bv), axis=-1)[..., :-1]
            return jnp.sum(uniform_b[..., None] >= before_bv, axis=-1)

        uniforms_tb = uniforms.reshape(-1, uniforms.shape[-1]).T
        return self.network.generate(self._latents(batch), choose, uniforms_tb).reshape(batch + self.event_shape)

    def _latents(self, batch: tuple[int, ...]) -> Array:
        """Z repeated to a batch shape, whose dimensions are then one: (B, n, d)."""
        event = self.z.shape[-2:]
        return jnp.broadcast_to(self.z, (*batch, *event)).reshape(math.prod(batch), *event)


# --- Networks ---


class Embedding(nnx.Module):
    """A row of numbers for each token, standard normal at first."""

    def __init__(self, tokens: int, features: int, *, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (tokens, features), float))

    def __call__(self, tokens: Array) -> Array:
        """Integers (...) → (..., features)."""
        return self.weight[...][tokens]


class GRU(nnx.Module):
    """A single layer: r = σ(W_r v + U_r s), u = σ(W_u v + U_u s), n = tanh(W_n v + r (U_n s)), s' = (1 − u) n + u s.

    Each product has a bias of its own. Rows of the weights are those of r, u and n, h each; all start uniform in ±1/√h.
    """

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        """See the class."""

        def drawn(*shape: int) -> nnx.Param:
            return nnx.Param(uniform(hidden)(rngs.params(), shape, float))

        self.weight_ih_l0, self.weight_hh_l0 = drawn(3 * hidden, features), drawn(3 * hidden, hidden)
        self.bias_ih_l0, self.bias_hh_l0 = drawn(3 * hidden), drawn(3 * hidden)

    def start(self, batch: int) -> Array:
        """The state before anything is read: zero, (B, h)."""
        hidden = self.weight_hh_l0[...].shape[1]
        return jnp.zeros((batch, hidden), self.weight_hh_l0[...].dtype)

    def step(self, state_bh: Array, v_bf: Array) -> Array:
        """The next state."""
        put = jnp.split(v_bf @ self.weight_ih_l0[...].T + self.bias_ih_l0[...], 3, axis=-1)
        kept = jnp.split(state_bh @ self.weight_hh_l0[...].T + self.bias_hh_l0[...], 3, axis=-1)
        reset, update = jax.nn.sigmoid(put[0] + kept[0]), jax.nn.sigmoid(put[1] + kept[1])
        return (1 - update) * jnp.tanh(put[2] + reset * kept[2]) + update * state_bh

    def __call__(self, v_btf: Array) -> Array:
        """(B, T, f) → all states, (B, T, h)."""

        def step(state_bh: Array, v_bf: Array) -> tuple[Array, Array]:
            state_bh = self.step(state_bh, v_bf)
            return state_bh, state_bh

        state_tbh = jax.lax.scan(step, self.start(len(v_btf)), v_btf.swapaxes(0, 1))[1]
        return state_tbh.swapaxes(0, 1)


class ConditionalGRU(nnx.Module):
    """Logits of every token given those before it and z: token t sees the steps with starts ≤ t.

    Args:
        levels: V.
        length: T.
        starts: of each latent step; None if z is ignored.
        dims: d.
        hidden: h.
        rngs: of the initial values.
    """

    def __init__(
        self, levels: int, length: int, starts: Sequence[int] | None, dims: int, *, hidden: int, rngs: nnx.Rngs
    ) -> None:
        """See the class."""
        self.levels, self.length, self.hidden = levels, length, hidden
        self.embed = Embedding(levels + 1, hidden, rngs=rngs)  # one more, for what is before the first token
        if starts is not None:
            self.latents = LatentMap(dims, starts, positions=length, outputs=hidden, rngs=rngs)
        self.gru = GRU(hidden, hidden, rngs=rngs)
        self.head = linear(2 * hidden, hidden, rngs=rngs)
        self.out = linear(hidden, levels, rngs=rngs)

    def __call__(self, x_bt: Array, z_bnd: Array) -> Array:
        """Tokens (B, T) and z (B, n, d) → logits (B, T, V)."""
        before_bt = jnp.pad(x_bt.astype(jnp.int32), ((0, 0), (1, 0)), constant_values=self.levels)[:, :-1]
        context_bth = self._context(z_bnd)
        return self._logits(self.gru(self.embed(before_bt) + context_bth), context_bth)

    def generate(self, z_bnd: Array, choose: Any, inputs_t: Any) -> Array:
        """Writes sequences token by token, each by `choose(logits, input)`: integers (B, T)."""

        def step(carry: Any, here: Any) -> Any:
            state_bh, before_b = carry
            context_bh, given = here
            state_bh = self.gru.step(state_bh, self.embed(before_b) + context_bh)
            chosen_b = choose(self._logits(state_bh, context_bh), given).astype(jnp.int32)
            return (state_bh, chosen_b), chosen_b

        start = (self.gru.start(len(z_bnd)), jnp.full(len(z_bnd), self.levels, jnp.int32))
        return jax.lax.scan(step, start, (self._context(z_bnd).swapaxes(0, 1), inputs_t))[1].T

    def _context(self, z_bnd: Array) -> Array:
        if hasattr(self, "latents"):
            return self.latents(z_bnd)
        return jnp.zeros((len(z_bnd), self.length, self.hidden), self.out.bias[...].dtype)

    def _logits(self, seen: Array, context: Array) -> Array:
        return self.out(jax.nn.silu(self.head(jnp.concatenate([seen, context], axis=-1))))


class BackwardGRU(nnx.Module):
    """Numbers for each latent step from a GRU that reads the tokens from the end: those of the state at starts[t].

    Args:
        levels: V.
        starts: of each latent step.
        outputs: numbers for each step.
        hidden: h.
        rngs: of the initial values.
    """

    def __init__(self, levels: int, starts: Sequence[int], outputs: int, *, hidden: int, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.starts = tuple(int(token) for token in starts)
        self.embed = Embedding(levels, hidden, rngs=rngs)
        self.gru = GRU(hidden, hidden, rngs=rngs)
        self.out = linear(hidden, outputs, rngs=rngs)

    def __call__(self, x_bt: Array) -> Array:
        """Tokens (B, T) → (B, n, outputs)."""
        seen_bth = self.gru(self.embed(x_bt.astype(jnp.int32)[:, ::-1]))[:, ::-1]
        return self.out(seen_bth[:, np.asarray(self.starts)])


# --- Programs ---


class GRULikelihood(nnx.Module):
    """p(x | z) by a GRU that is told of z.

    Args:
        spec: of the sequences.
        prior: the twin of the prior; `starts` and the event shape are read.
        rngs: of the initial weights.
        use_latents: if false, z is ignored.
        conditioning: `causal`, where a token sees the steps with starts up to it, or `full`, where it sees all.
        hidden: h.
    """

    def __init__(
        self,
        spec: Spec,
        prior: Any,
        *,
        rngs: nnx.Rngs,
        use_latents: bool = True,
        conditioning: Literal["causal", "full"] = "causal",
        hidden: int = 64,
    ) -> None:
        """See the class."""
        tokens = require_tokens(spec, "likelihood", "gru")
        starts = np.asarray(prior.starts[...]) * (conditioning == "causal")
        self.network = ConditionalGRU(
            tokens.levels,
            tokens.length,
            starts.tolist() if use_latents else None,
            prior().event_shape[-1],
            hidden=hidden,
            rngs=rngs,
        )

    def __call__(self, z: Array) -> AutoregressiveTokens:
        """p(x | z) for latents (..., n, d)."""
        return AutoregressiveTokens(self.network, z)


class GRUGuide(nnx.Module):
    """Independent over steps and dimensions; z_t hears tokens ≥ starts[t].

    Args:
        spec: of the sequences.
        prior: the twin of the prior; `starts`, the event shape and the density are read.
        rngs: of the initial weights.
        hidden: h.
    """

    causality: ClassVar[str] = "anti_causal"

    def __init__(self, spec: Spec, prior: Any, *, rngs: nnx.Rngs, hidden: int = 64) -> None:
        """See the class."""
        tokens = require_tokens(spec, "guide", "gru")
        self.dims = prior().event_shape[-1]
        starts = np.asarray(prior.starts[...]).tolist()
        self.encoder = BackwardGRU(tokens.levels, starts, 2 * self.dims, hidden=hidden, rngs=rngs)
        scale_dt = np.diagonal(minimising_factor(prior(), 1), axis1=-2, axis2=-1)
        self.scale = Buffer(jnp.asarray(scale_dt.T))

    def __call__(self, x: Array) -> Array:
        """Writes the site `z` for sequences x (B, T)."""
        with numpyro.plate("data", x.shape[0]):
            return numpyro.sample("z", self.posterior(x))

    def posterior(self, x: Array) -> Independent:
        """q(z | x) for sequences (B, T), event shape (n, d)."""
        mean, ratio = jnp.split(self.encoder(x), 2, axis=-1)
        return Normal(mean, self.scale[...] * positive(ratio) + 1e-6).to_event(2)

    def start_from(self, x: Array) -> None:
        """Initialises by sequences (B, T): means of mean 0 and deviation 1 over them, all else 0."""
        out, d = self.encoder.out, self.dims
        mean_kd = self.encoder(x)[..., :d].reshape(-1, d)
        deviation_d = jnp.maximum(mean_kd.std(0), 1e-6)
        kernel, bias = out.kernel[...], out.bias[...]
        out.kernel[...] = jnp.zeros_like(kernel).at[:, :d].set(kernel[:, :d] / deviation_d)
        out.bias[...] = jnp.zeros_like(bias).at[:d].set((bias[:d] - mean_kd.mean(0)) / deviation_d)
