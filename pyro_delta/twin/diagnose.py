"""NumPyro models and guides for `pyro_delta.diagnose`: how they are run, and what they commit.

Nothing else of the diagnostics knows of NumPyro: numbers leave as torch tensors, distributions as `InTorch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import torch
from flax import nnx
from jax import Array
from numpyro import handlers
from numpyro.distributions import Distribution, ExpandedDistribution, MaskedDistribution

from pyro_delta.call import run
from pyro_delta.commitment import AT_LEAST, Commitment, Formula, commitment
from pyro_delta.data.splits import mapped, size_of
from pyro_delta.diagnostics.trace import (
    Ambiguous,
    Latents,
    Site,
    beyond_formulas,
    check_apart,
    committed,
    device_of,
    evaluating,
    formula_of,
    noise_seed,
    per_datum,
    posteriors,
    priors_of,
    sites,
    some_of,
    trace,
    weights_of,
)
from pyro_delta.errors import UserError, in_a_line
from pyro_delta.protocol import Batch
from pyro_delta.twin.in_torch import in_torch, to_jax, to_torch

TRAINED = "give those that were trained with this model and guide, params=svi.get_params(state)"
"""The mend of parameters that are others."""


class NumPyroVAE:
    """A NumPyro model and its guide: what `pyro_delta.diagnostics` looks at in the place of a `VAE`.

    Programs are functions, with weights from `params`, or `nnx.Module`s, of which copies in evaluation mode are run.
    They are compiled for each size of a batch, as `SVI` compiles them.

    Args:
        model: latent and observed sites of any names, in plates of the batch's size or with a batch shape of it.
        guide: its guide.
        params: such as `svi.get_params(state)`; with `state.mutable_state` beside them, if there is one.
    """

    def __init__(
        self, model: Callable[..., Any], guide: Callable[..., Any], params: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.guide = model, guide
        self.programs = {"model": _Program(model, params or {}), "guide": _Program(guide, params or {})}
        self.key = jax.random.key(0)

    def draw_key(self) -> Array:
        """A key that was not given out since `evaluating` began."""
        self.key, drawn = jax.random.split(self.key)
        return drawn


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Written:
    """What a program wrote at a site, in JAX.

    Attributes:
        value: the data's axis first, where it is latent.
        log_prob: of batch shape.
        fn: without masks; None where it is observed, for it may hold a network.
        mask: of batch shape; of the value's shape where it is observed.
        scale: of the site.
        dim: as for `Site`.
    """

    value: Array
    log_prob: Array
    fn: Any
    mask: Array | None
    scale: Any
    dim: int | None = field(metadata={"static": True})


class _Program:
    """A program apart from its weights, compiled.

    Args:
        program: a function or an `nnx.Module`.
        params: values of `numpyro.param`.
    """

    def __init__(self, program: Callable[..., Any], params: Mapping[str, Any]) -> None:
        # Keys are drawn anew for each batch, and weights given once, so that they can be moved.
        while isinstance(program, handlers.seed) or (isinstance(program, handlers.substitute) and program.data):
            params = {**getattr(program, "data", {}), **params}
            program = program.fn
        try:
            arrays = jax.tree.map(jnp.asarray, dict(params))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"params are a {type(params).__name__} that does not hold an array by each name ({in_a_line(error)}); "
                f"{TRAINED}."
            ) from error
        self.weights: tuple[Any, Any] = (arrays, None)
        self._program, self._rest = program, None
        if isinstance(program, nnx.Module):
            copied = nnx.clone(program)
            copied.eval()
            self._program, state, self._rest = nnx.split(copied, nnx.Param, ...)
            self.weights = (arrays, state)
        self.run = jax.jit(self.write)
        self._checked = self._fits = False

    def write(self, weights: tuple[Any, Any], batch: Any, given: Any, key: Array) -> dict[str, _Written]:
        """Runs the program: its sample sites, by name."""
        try:
            fixed: frozenset[str] | None = None
            found = self._sites(weights, batch, given, key, fixed)
        except Ambiguous:  # as in `pyro_delta.diagnostics.trace`
            fewer = self._sites(weights, mapped(batch, lambda values: values[:-1]), {}, key, frozenset())
            stacks = [plate for site in fewer.values() for plate in site["cond_indep_stack"]]
            fixed = frozenset(plate.name for plate in stacks if plate.size == size_of(batch))
            found = self._sites(weights, batch, given, key, fixed)
        return {name: _written(site, _dim(site, size_of(batch), fixed)) for name, site in found.items()}

    def _sites(
        self, weights: tuple[Any, Any], batch: Any, given: Any, key: Array, fixed: frozenset[str] | None
    ) -> dict[str, Any]:
        """What NumPyro writes down at sample sites; `fixed` as for `_dim`, of which the errors are."""
        params, program, count = weights[0], self._whole(weights), size_of(batch)

        def latent(site: Any) -> Array | None:
            if site["type"] != "sample" or site["is_observed"] or site["name"] not in given:
                return None
            dim = _dim(site, count, fixed)
            z = given[site["name"]]
            return z if dim is None else jnp.moveaxis(z, 0, dim - site["fn"].event_dim)

        known, drawn = handlers.substitute(data=params), handlers.substitute(substitute_fn=latent)
        with handlers.trace() as found, handlers.seed(rng_seed=key), known, drawn:
            run(program, batch)
        for name, site in found.items():
            if site["type"] == "sample":
                check_apart(name, site, count)
        sampled = {name: site for name, site in found.items() if site["type"] == "sample"}
        for site in sampled.values():
            _dim(site, count, fixed)
        return sampled

    def _whole(self, weights: tuple[Any, Any]) -> Any:
        """The program with its weights, where it is a module."""
        state = weights[1]
        return self._program if state is None else nnx.merge(self._program, state, self._rest, copy=True)

    def check_weights(self, batch: Any, key: Array) -> None:
        """Compares the parameters with those that the program begins with.

        Raises:
            UserError: if one is missing, and would be an untrained one, or is of another shape.
        """
        if self._fits:
            return
        params, program = self.weights[0], self._whole(self.weights)

        def begin(batch: Any, key: Array) -> dict[str, Any]:
            with handlers.trace() as found, handlers.seed(rng_seed=key):
                run(program, batch)
            return {name: site["value"] for name, site in found.items() if site["type"] == "param"}

        for name, begun in jax.eval_shape(begin, batch, key).items():
            if name not in params:
                raise UserError(
                    f"there is no parameter {name!r} among {', '.join(map(repr, params)) or 'none'}; {TRAINED}."
                )
            shapes, needed = _shapes({name: params[name]}), _shapes({name: begun})
            for path in {**needed, **shapes}:
                if shapes.get(path) != needed.get(path):
                    given, other = (f"of shape {s[path]}" if path in s else "absent" for s in (shapes, needed))
                    raise UserError(f"the parameter {path!r} is {given}, where the program's is {other}; {TRAINED}.")
        self._fits = True

    def moves_latents(self, batch: Any, given: Any, key: Array) -> bool:
        """Whether the density of given latents depends on the weights: whether one of its gradients is not 0."""
        leaves, tree = jax.tree.flatten(self.weights)
        learned = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

        def log_prob(values: list[Any]) -> Array:
            moved = list(leaves)
            for i, value in zip(learned, values, strict=True):
                moved[i] = value
            written = self.write(jax.tree.unflatten(tree, moved), batch, given, key)
            return sum((site.log_prob.sum() for site in written.values() if site.fn is not None), jnp.zeros(()))

        # Compiled, nothing is left of the likelihood; else every operation of its network would be compiled alone.
        @jax.jit
        def moves(values: list[Any]) -> list[Array]:
            return [(slope != 0).any() for slope in jax.grad(log_prob)(values)]

        return any(map(bool, moves([leaves[i] for i in learned])))

    @contextmanager
    def moved(self) -> Iterator[None]:
        """Every weight a tenth of its own size away, or a tenth if it is small; put back afterwards."""
        before = self.weights
        rng = np.random.default_rng(0)

        def move(leaf: Any) -> Any:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf
            return leaf + 0.1 * jnp.maximum(abs(leaf), 1.0) * rng.standard_normal(leaf.shape).astype(leaf.dtype)

        self.weights = jax.tree.map(move, before)
        try:
            yield
        finally:
            self.weights = before

    def check(self, written: dict[str, _Written]) -> None:
        """Refuses distributions that lose their parameters when they leave a compiled function.

        Raises:
            UserError: naming the site.
        """
        for name, site in {} if self._checked else written.items():
            try:
                jax.eval_shape(site.fn.log_prob, site.value)
            except NotImplementedError:  # a flow without an inverse, which knows what it drew itself alone
                continue
            except AttributeError as error:
                raise UserError(
                    f"the distribution {type(site.fn).__name__} at {name!r} is not a pytree ({error}); name its "
                    "parameters in pytree_data_fields, as NumPyro asks."
                ) from error
        self._checked = True


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each array of a tree, by the path to it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): jnp.shape(leaf) for path, leaf in leaves}


def _written(site: Mapping[str, Any], dim: int | None) -> _Written:
    fn, value = site["fn"], site["value"]
    noted, scale = site["intermediates"], site["scale"]
    log_prob = fn.log_prob(value, noted) if noted else fn.log_prob(value)
    if site["is_observed"]:
        return _Written(value, log_prob, None, _kept(fn, jnp.shape(value)), scale, dim)
    unmasked, mask = _unmasked(fn)
    first = value if dim is None else jnp.moveaxis(value, dim - fn.event_dim, 0)
    return _Written(first, log_prob, unmasked, mask, scale, dim)


def _dim(site: Mapping[str, Any], count: int, fixed: frozenset[str] | None) -> int | None:
    """As in `pyro_delta.diagnostics.trace`; NumPyro writes down the outermost plate last."""
    plates = [plate for plate in site["cond_indep_stack"] if plate.size == count]
    if fixed is None and count > 1 and len(plates) > 1:
        raise Ambiguous
    dims = [plate.dim for plate in plates if plate.name not in (fixed or ())]
    return None if not dims or -dims[-1] == len(site["fn"].batch_shape) else dims[-1]


def _kept(fn: Distribution, shape: tuple[int, ...]) -> Array | None:
    """Which numbers of a value no mask leaves out, nor the end of a sequence; None if there is neither."""
    counted = getattr(fn, "counted", None)
    kept = None if counted is None else jnp.broadcast_to(counted, shape)
    while fn is not None:
        if isinstance(fn, MaskedDistribution) and fn._mask is not True:
            mask = jnp.asarray(fn._mask)
            mask = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * fn.event_dim), shape)
            kept = mask if kept is None else kept & mask
        fn = getattr(fn, "base_dist", None)
    return kept


def _unmasked(fn: Distribution) -> tuple[Distribution, Array | None]:
    """A distribution, which plates may have expanded, without its masks, and they together."""
    if isinstance(fn, MaskedDistribution):
        base, inner = _unmasked(fn.base_dist)
        if fn._mask is True:
            return base, inner
        mask = jnp.broadcast_to(fn._mask, fn.batch_shape)
        return base, mask if inner is None else mask & inner
    if isinstance(fn, ExpandedDistribution):
        base, mask = _unmasked(fn.base_dist)
        return (fn, None) if mask is None else (base.expand(fn.batch_shape), jnp.broadcast_to(mask, fn.batch_shape))
    return fn, None


# --- What the diagnostics ask ---


@sites.register(NumPyroVAE)
def _sites(vae: NumPyroVAE, part: Literal["model", "guide"], batch: Batch, given: Latents) -> dict[str, Site]:
    program, count = vae.programs[part], size_of(batch)
    values = {name: to_jax(value) for name, value in given.items()}
    program.check_weights(mapped(batch, to_jax), vae.key)
    written = program.run(program.weights, mapped(batch, to_jax), values, vae.draw_key())
    program.check({name: site for name, site in written.items() if site.fn is not None})
    return {name: _site(name, site, count) for name, site in written.items()}


def _site(name: str, written: _Written, count: int) -> Site:
    return Site(
        to_torch(written.value),
        per_datum(name, to_torch(written.log_prob), count, written.dim),
        written.fn is None,
        None if written.fn is None else in_torch(written.fn),
        None if written.mask is None else to_torch(written.mask),
        1.0 if written.scale is None else to_torch(written.scale),
        written.dim,
    )


@evaluating.register(NumPyroVAE)
def _evaluating(vae: NumPyroVAE, seed: int) -> AbstractContextManager[None]:
    return _drawing(vae, seed)


@contextmanager
def _drawing(vae: NumPyroVAE, seed: int) -> Iterator[None]:
    before, vae.key = vae.key, jax.random.key(noise_seed(seed))
    try:
        # Weights that diverged give numbers that are not finite, which torch's distributions refuse otherwise.
        with numpyro.validation_enabled(False), pyro.validation_enabled(False):
            yield
    finally:
        vae.key = before


@device_of.register(NumPyroVAE)
def _device_of(vae: NumPyroVAE) -> torch.device:
    return torch.device("cpu")


@weights_of.register(NumPyroVAE)
def _weights_of(vae: NumPyroVAE) -> Iterator[tuple[str, torch.Tensor]]:
    for program in vae.programs.values():
        for part in program.weights:
            for path, weight in jax.tree_util.tree_leaves_with_path(part):
                if jnp.issubdtype(weight.dtype, jnp.floating):
                    yield jax.tree_util.keystr(path, simple=True, separator="."), to_torch(weight)


@formula_of.register(NumPyroVAE)
def _formula_of(vae: NumPyroVAE) -> Formula | None:
    rate_of = getattr(vae.guide, "committed_rate", None)
    if rate_of is None:
        return None

    def formula(prior: Any) -> Any:
        return np.asarray(rate_of(prior.own))

    return formula


@committed.register(NumPyroVAE)
def _committed(vae: NumPyroVAE, data: Any) -> Commitment:
    with evaluating(vae, 0):
        first, *rest = some_of(data, vae)
        seen = trace(vae, first)
        given = {name: to_jax(z) for name, z in seen.z.items()}

        def others() -> Iterator[dict[str, Any]]:
            for batch in rest:
                yield {name: drawn.q for name, drawn in posteriors(vae, batch, seen.z).items()}
            if rest:
                with vae.programs["guide"].moved():
                    yield {name: drawn.q for name, drawn in posteriors(vae, first, seen.z).items()}

        return commitment(
            {name: (latent.q, latent.p) for name, latent in seen.latents.items()},
            learns=vae.programs["model"].moves_latents(mapped(first, to_jax), given, vae.draw_key()),
            others=others,
            priors=priors_of(vae, rest, seen),
            formula=formula_of(vae),
            guarantee=getattr(vae.guide, "guarantee", AT_LEAST),
            floor=getattr(getattr(vae.model, "prior", None), "floor_nats", None),
            unless=beyond_formulas(vae, first, seen),
        )
