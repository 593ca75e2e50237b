"""Training in NumPyro: its ELBO, optax, and stretches of steps that are compiled whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import torch
from flax import nnx
from jax import Array
from numpyro.distributions.kl import kl_divergence
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO
from optax import contrib

from pyro_delta import vae as in_pyro
from pyro_delta.call import call, run
from pyro_delta.config import Config, TrainingConfig
from pyro_delta.data.batches import Batches
from pyro_delta.data.splits import mapped
from pyro_delta.data.stored import Stored
from pyro_delta.diagnostics.bounds import line_of
from pyro_delta.errors import UserError
from pyro_delta.inference.checkpoint import load_weights as load_torch_weights
from pyro_delta.inference.muon import COEFFICIENTS, ITERATIONS, MOMENTUM, RMS, matrices_of
from pyro_delta.inference.optim import averaging_weight, calmer, learning_rate, stop_if_stuck
from pyro_delta.inference.run import averaged_weights
from pyro_delta.inference.training import START_DATA, Training
from pyro_delta.protocol import Data
from pyro_delta.twin.build import VAE
from pyro_delta.twin.rate import committed_rate
from pyro_delta.twin.weights import load_weights, torch_weights


class State(NamedTuple):
    """What steps change."""

    weights: Any
    average: Any
    optimizer: Any


class Sums(NamedTuple):
    """Of a stretch of steps: sums in nats over its data, the least rate of any, and the newest gradient's norm."""

    data: int | Array
    rate: Array
    distortion: Array
    least: Array
    mean: Array
    """(n, d), of the posterior's mean"""
    square: Array
    """(n, d), of its square"""
    norm: Array


class NumPyroTraining(Training):
    """A training in NumPyro, in JAX's default precision and on its default device.

    The steps up to the next line of metrics are one compiled loop. Their order of data, learning rates and averages
    are those of a training in Pyro; initial weights and noise are drawn by JAX. `state` has torch's names and shapes,
    so that a run is evaluated, checked and sampled from as any other.

    NOTE: with training.minutes the learning rate moves with the clock once a stretch, and the last stretch is finished.

    Args:
        config: the run's settings; those of how torch computes (bf16, channels_last, compile) do not apply.
        data: spec and splits.
        vae: model and guide in Pyro, whose fixed numbers are trained with, and into which averaged weights are
            written to be evaluated.
        twin: of the programs.
        log: called with each line of metrics.

    Raises:
        UserError: for an objective other than the ELBO, an auxiliary prior, or a twin that the weights do not fit.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        vae: in_pyro.VAE,
        twin: VAE,
        log: Callable[[dict[str, Any]], None],
    ) -> None:
        settings = config.training
        if config.objective.program != "elbo":
            raise UserError(
                f"objective.program={config.objective.program} is trained by --backend pyro alone; use that."
            )
        if settings.recompute:
            raise UserError("training.recompute goes with --backend pyro; leave it out, or use that.")
        if settings.accumulate > 1:
            raise UserError("training.accumulate goes with --backend pyro; leave it out, or use that.")
        if config.auxiliary.enabled:
            raise UserError("auxiliary.enabled goes with --backend pyro; leave it out, and run train-prior afterwards.")
        self.data, self.batches = data, Batches(data.train, settings.batch, settings.seed, "cpu")
        # Data in a file are handed over stretch by stretch.
        self.train = None if isinstance(data.train.x, Stored) else self._batch(slice(None))
        _fix(twin, vae)
        if start_from := getattr(twin.guide, "start_from", None):
            first = data.train.take(slice(START_DATA))
            extras = {name: jnp.asarray(values.numpy()) for name, values in first.extras.items()}
            call(start_from, extras, jnp.asarray(first.x[:].numpy()))
        super().__init__(config, data, vae, log)
        twin.train()
        self.graph, weights, self.buffers = nnx.split(twin, nnx.Param, ...)
        self.rule = Rule.of(settings, vae)
        # Copies, for a compiled stretch writes its result where its argument was.
        weights, average = jax.tree.map(jnp.copy, (weights, weights))
        self.steps = State(weights, average, make_optimizer(self.rule, weights).init(weights))
        self.sums: Sums | None = None
        self.began = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Compiled steps, by making none."""
        self._train(self._given(0))
        self.began = self.clock.read()
        yield

    def advance(self) -> None:
        """All steps up to the next line of metrics, or to the end."""
        settings = self.config.training
        count = settings.log_every - self.step % settings.log_every
        if settings.steps is not None:
            count = min(count, settings.steps - self.step)
        given = self._given(count)
        self._train(given)
        self.wait()  # JAX returns at once; the clock must not be read before the steps are made
        self.lr, self.step = float(given[4][count - 1]), self.step + count

    def wait(self) -> None:
        """Waits for what is under way."""
        jax.block_until_ready(self.steps)

    def averaged(self) -> in_pyro.VAE:
        """Pyro's programs with the averaged weights."""
        self.vae.load_state_dict(self._as_torch(self.steps.average))
        return self.vae

    def state(self) -> dict[str, Any]:
        """Everything needed to go on. The noise of a step is a function of the seed and the step."""
        average = {f"module.{name}": weight for name, weight in self._as_torch(self.steps.average).items()}
        skipped, streak = _skips(self.steps.optimizer)
        return super().state() | {
            "vae": self._as_torch(self.steps.weights),
            "average": {"n_averaged": torch.tensor(self.step), **average},
            "optimizer": {name: torch.from_numpy(np.array(leaf)) for name, leaf in _leaves(self.steps.optimizer)},
            "objective": {},
            "auxiliary": None,
            "skipped": torch.tensor(float(skipped)),
            "streak": torch.tensor(float(streak)),
            "rng": {},
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Goes on from a `state` that was read from `path`."""
        load_torch_weights(self.vae, averaged_weights(state), path)  # which says what does not fit
        weights, average = self._from_torch(state["vae"]), self._from_torch(averaged_weights(state))
        names = [name for name, _ in _leaves(self.steps.optimizer)]
        shapes = {name: leaf.shape for name, leaf in _leaves(self.steps.optimizer)}
        if {name: getattr(value, "shape", None) for name, value in state["optimizer"].items()} != shapes:
            raise UserError(f"{path} does not fit the run's configuration: its optimiser is another one.")
        leaves = [jnp.array(state["optimizer"][name].numpy()) for name in names]
        optimizer = jax.tree.unflatten(jax.tree.structure(self.steps.optimizer), leaves)
        self.steps = State(weights, average, optimizer)
        super().restore(state, path)

    def log_training(self) -> None:
        """A line of metrics over the newest stretch."""
        assert self.sums is not None
        count = int(self.sums.data)
        mean, square = np.asarray(self.sums.mean) / count, np.asarray(self.sums.square) / count
        line = line_of(
            float(self.sums.rate) / count,
            float(self.sums.distortion) / count,
            float(self.sums.least),
            int((square - np.square(mean) > 0.01).sum()),
            count,
            self.unit,
            self.delta,
        )
        del line["n_images"]
        line["images_per_s"] = count / max(self.clock.read() - self.began, 1e-9)
        skipped, streak = _skips(self.steps.optimizer)
        line["grad_norm"], line["skipped"] = float(self.sums.norm), skipped
        if self.learned_rate:
            prior: Any = nnx.merge(self.graph, self.steps.weights, self.buffers).model.prior
            line["committed_nats"] = float(committed_rate(prior()))
        self.line("train", line)
        self.began = self.clock.read()
        stop_if_stuck(streak, self.step, f"start a new run with {calmer(self.config.training)}", self.rule.skip)

    def _train(self, given: tuple[Any, ...]) -> None:
        self.steps, self.sums = _train(self.graph, self.rule, self.unit.scored, self.steps, *given)

    def _given(self, count: int) -> tuple[Any, ...]:
        """What `_train` takes for the next `count` steps."""
        settings, span = self.config.training, self.config.training.log_every
        order = np.zeros((span, settings.batch), np.int32)
        lr, weight = np.zeros(span), np.zeros(span)
        for i, step in enumerate(range(self.step, self.step + count)):
            progress = step / settings.steps if settings.steps is not None else self.progress
            order[i], lr[i] = self.batches.indices(step).numpy(), learning_rate(settings, step, progress)
            weight[i] = averaging_weight(step, settings.ema)
        key = jax.random.key(settings.seed)
        train = self.train
        if train is None:
            train = self._batch(torch.from_numpy(order).long().flatten())
            order = np.arange(order.size, dtype=np.int32).reshape(span, settings.batch)
        return train, self.buffers, (key, np.int32(self.step), np.int32(count)), order, lr, weight

    def _batch(self, index: torch.Tensor | slice) -> Any:
        """Training data as JAX has them."""
        return mapped(self.data.train.batch(index), lambda values: jnp.asarray(values.numpy()))

    def _as_torch(self, weights: Any) -> dict[str, torch.Tensor]:
        named = torch_weights(nnx.merge(self.graph, weights, self.buffers))
        return {name: torch.from_numpy(weight) for name, weight in named.items()}

    def _from_torch(self, weights: Mapping[str, Any]) -> Any:
        # Copies: what is loaded into a module is written into the variables that it was merged from.
        twin = nnx.merge(self.graph, *jax.tree.map(jnp.copy, (self.steps.weights, self.buffers)))
        load_weights(twin, weights)
        return nnx.split(twin, nnx.Param, ...)[1]


def _fix(twin: VAE, vae: in_pyro.VAE) -> None:
    """Gives the twin the fixed numbers of Pyro's programs: with its own, the run's would be compared with themselves.

    Raises:
        UserError: if the weights of the two have not the same names and shapes.
    """
    own, weights = torch_weights(twin), vae.state_dict()
    load_weights(twin, weights)  # which says what does not fit
    fixed = weights.keys() - dict(vae.named_parameters()).keys()
    load_weights(twin, own | {name: weights[name] for name in fixed})


class Rule(NamedTuple):
    """What a compiled step takes from the settings of training."""

    elbo: str
    optimizer: str
    betas: tuple[float, float]
    weight_decay: float
    clip: float | None
    skip: float | None
    guide_lr: float
    matrices: frozenset[str] = frozenset()
    """Names of the weights that Muon orthogonalises."""

    @classmethod
    def of(cls, settings: TrainingConfig, vae: in_pyro.VAE) -> Rule:
        """The rule of a configuration for programs."""
        matrices = set(matrices_of(vae)) if settings.optimizer == "muon" else set()
        names = frozenset(name for name, weight in vae.named_parameters() if weight in matrices)
        return cls(**{field: getattr(settings, field) for field in cls._fields if field != "matrices"}, matrices=names)


def make_optimizer(rule: Rule, weights: Any) -> optax.GradientTransformation:
    """Adam, AdamW or Muon for a learning rate of 1, the guide's by its factor; steps that are not finite are skipped.

    Args:
        rule: of the steps.
        weights: of model and guide.
    """
    of_guide = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "guide", weights)
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "matrix" if _torch_name(path) in rule.matrices else "other", weights
    )
    decay = optax.add_decayed_weights(rule.weight_decay)
    chain = [
        optax.identity() if rule.clip is None else optax.clip_by_global_norm(rule.clip),
        *([decay] if rule.optimizer == "adam" else []),
        optax.multi_transform({"matrix": _by_muon(), "other": optax.scale_by_adam(*rule.betas)}, labels)
        if rule.optimizer == "muon"
        else optax.scale_by_adam(*rule.betas),
        *([decay] if rule.optimizer in ("adamw", "muon") else []),
        optax.masked(optax.scale(rule.guide_lr), of_guide),
        optax.scale(-1.0),
    ]
    return optax.apply_if_finite(optax.chain(*chain), max_consecutive_errors=np.iinfo(np.int32).max)


def _by_muon() -> optax.GradientTransformation:
    """Optax's own, for kernels of which the last axis is the output."""

    def axes(weights: Any) -> Any:
        return jax.tree.map(lambda w: contrib.MuonDimensionNumbers(tuple(range(w.ndim - 1)), w.ndim - 1), weights)

    def scaled(change: Array) -> Array:
        return RMS * max(change.size // change.shape[-1], change.shape[-1]) ** 0.5 * change

    return optax.chain(
        contrib.scale_by_muon(COEFFICIENTS, ITERATIONS, MOMENTUM, weight_dimension_numbers=axes),
        optax.stateless(lambda changes, _: jax.tree.map(scaled, changes)),
    )


def _torch_name(path: tuple[Any, ...]) -> str:
    *parts, last = [str(entry.key) for entry in path if hasattr(entry, "key")]
    return ".".join((*parts, "weight" if last == "kernel" else last))


def _skips(optimizer: Any) -> tuple[int, int]:
    """Steps skipped so far, and in a row up to the newest."""
    return int(optimizer.total_notfinite), int(optimizer.notfinite_count)


def _leaves(optimizer: Any) -> list[tuple[str, Any]]:
    """Arrays of an optimiser's state, by their paths."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer)]


# Compiled once for all runs of one architecture and rule: both are hashable.
@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _train(
    graph: Any,
    rule: Rule,
    scored: int,
    state: State,
    data: Any,
    buffers: Any,
    when: tuple[Array, Array, Array],
    order_sb: Array,
    lr_s: Array,
    weight_s: Array,
) -> tuple[State, Sums]:
    """As many steps of SVI as asked for, in one loop.

    Args:
        graph: of the programs.
        rule: of the steps.
        scored: numbers of a datum; the loss is in nats per number, so that clipping means the same everywhere.
        state: before.
        data: all of them, as a batch.
        buffers: of the programs.
        when: key of the noise, first step, and number of steps.
        order_sb: indices of the data of each step.
        lr_s: learning rate of each step.
        weight_s: of the newest weights in the average.
    """
    key, first, count = when
    optimizer = make_optimizer(rule, state.weights)

    def loss(weights: Any, batch: Any, key: Array) -> Any:
        value, seen = negative_elbo(nnx.merge(graph, weights, buffers), batch, key, rule.elbo)
        return value / (len(seen.rate) * scored), seen

    def step(i: Array, carry: tuple[State, Sums]) -> tuple[State, Sums]:
        state, sums = carry
        batch = mapped(data, lambda values: values[order_sb[i]])
        gradient, seen = jax.grad(loss, has_aux=True)(state.weights, batch, jax.random.fold_in(key, first + i))
        norm = optax.tree.norm(gradient)
        if rule.skip is not None:
            gradient = jax.tree.map(lambda leaf: jnp.where(norm > rule.skip, jnp.nan, leaf), gradient)
        changes, optimizer_state = optimizer.update(gradient, state.optimizer, state.weights)
        weights = optax.apply_updates(state.weights, jax.tree.map(lambda change: lr_s[i] * change, changes))
        average = optax.incremental_update(weights, state.average, weight_s[i])
        sums = Sums(
            data=sums.data + len(seen.rate),
            rate=sums.rate + seen.rate.sum(),
            distortion=sums.distortion + seen.distortion,
            least=jnp.minimum(sums.least, seen.rate.min()),
            mean=sums.mean + seen.mean.sum(0),
            square=sums.square + jnp.square(seen.mean).sum(0),
            norm=norm,
        )
        return State(weights, average, optimizer_state), sums

    zero = jnp.zeros(())
    zero_nd = jnp.zeros(nnx.merge(graph, state.weights, buffers).model.prior().event_shape)
    return jax.lax.fori_loop(0, count, step, (state, Sums(0, zero, zero, zero + jnp.inf, zero_nd, zero_nd, zero)))


class Seen(NamedTuple):
    """Of a step: the rate of each datum (in closed form if there is one), the distortion, and the posterior's mean."""

    rate: Array
    distortion: Array
    mean: Array


def negative_elbo(vae: VAE, batch: Any, key: Array, elbo: str) -> tuple[Array, Seen]:
    """NumPyro's own −ELBO in nats, summed over the data, and its parts.

    Args:
        vae: model and guide.
        batch: data.
        key: of the noise.
        elbo: trace (`Trace_ELBO`) or mean_field (`TraceMeanField_ELBO`).

    Raises:
        UserError: if the guide is not reparametrised or, for mean_field, has no closed form (NumPyro would fall back to
            sampling without a word).
    """
    guide, model = _Noted(vae.guide), _Noted(vae.model)
    estimator = {"trace": Trace_ELBO, "mean_field": TraceMeanField_ELBO}[elbo]()
    loss = estimator.loss(key, {}, model, guide, batch)
    q, z, p = guide.sites["z"]["fn"], guide.sites["z"]["value"], model.sites["z"]["fn"]
    if not q.has_rsample:
        raise UserError(f"site 'z' of the guide, {type(q).__name__}, is not reparametrised; use one that is.")
    sampled_b = q.log_prob(z) - p.log_prob(z)
    try:
        closed_b = kl_divergence(q, p)
    except NotImplementedError:
        if elbo == "mean_field":
            raise UserError(
                f"site 'z' has no closed-form KL from {type(q).__name__} to {type(p).__name__}; "
                "register one or train with --elbo trace."
            ) from None
        closed_b = sampled_b
    distortion = loss - (closed_b if elbo == "mean_field" else sampled_b).sum()
    return loss, jax.lax.stop_gradient(Seen(closed_b, distortion, q.mean))


class _Noted:
    """A program, and the sites that it wrote when it ran last."""

    def __init__(self, program: Callable[..., Any]) -> None:
        self.program = program
        self.sites: dict[str, Any] = {}

    def __call__(self, batch: Any) -> Any:
        with numpyro.handlers.trace() as self.sites:
            return run(self.program, batch)
