"""Training in Pyro: its ELBO as a torch module, and torch's optimisers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_delta.build import build_objective
from pyro_delta.call import call, run
from pyro_delta.config import Config
from pyro_delta.data.batches import Batches
from pyro_delta.data.splits import size_of
from pyro_delta.diagnostics.bounds import LN2, Unit, line_of
from pyro_delta.diagnostics.trace import committed
from pyro_delta.errors import UserError
from pyro_delta.inference.auxiliary import AuxiliaryTraining
from pyro_delta.inference.checkpoint import load_optimizer, load_weights, restore_rng, rng_state
from pyro_delta.inference.elbo import RateDistortionELBO
from pyro_delta.inference.objectives import NegativeELBO
from pyro_delta.inference.optim import GuardedStep, MovingAverage, learning_rate, make_optimizer
from pyro_delta.inference.training import START_DATA, Training, on_cpu
from pyro_delta.nn.precision import Network, computes_in_bf16, set_bf16
from pyro_delta.nn.recompute import set_recompute
from pyro_delta.protocol import Batch, Data, Split
from pyro_delta.vae import VAE, localise, parameters_of


class PyroTraining(Training):
    """A training in Pyro, on the device of the programs.

    Args:
        config, data, vae, log: as for `Training`.
        folder: of the run's own programs, such as its objective.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        vae: VAE,
        log: Callable[[dict[str, Any]], None],
        folder: Path | None = None,
    ) -> None:
        settings = config.training
        self.device = next(vae.parameters()).device
        self.batches = Batches(data.train, settings.batch, settings.seed, self.device)
        if settings.channels_last:
            vae.to(memory_format=torch.channels_last)
        localise(vae)
        start_guide(vae, self.batches.split.take(slice(START_DATA)))
        super().__init__(config, data, vae, log)
        self.average = MovingAverage(vae, settings.ema)
        self.optimizer = make_optimizer(vae, settings)
        self.update = GuardedStep(self.optimizer, settings.clip, self.device)
        self.auxiliary: AuxiliaryTraining | None = None
        if config.auxiliary.enabled:
            self.auxiliary = AuxiliaryTraining.of(config.auxiliary, vae.model.prior)
        with parameters_of(vae):
            dims = vae.model.prior().event_shape[-1]
        self.objective = build_objective(config, folder, dims=dims)
        plain = type(self.objective) is NegativeELBO  # which needs no count of the data
        self.elbo = RateDistortionELBO(
            None if plain else self.objective, analytic_kl=settings.elbo == "mean_field", max_plate_nesting=1
        )
        self.loss = (
            self.elbo(_Called(vae.model), _Called(vae.guide)) if data.train.extras else self.elbo(vae.model, vae.guide)
        )
        self.window = Window(0.0)
        self.first = 0
        bf16 = settings.bf16 and computes_in_bf16(self.device)
        set_bf16(vae, bf16)
        blocks = set_recompute(vae, settings.recompute)
        if settings.recompute and not blocks:
            self.notices.append(
                "these programs have no blocks that can be computed again: training.recompute changes nothing"
            )
        if settings.bf16 and not bf16:
            kind = self.device.type.upper()
            self.notices.append(f"this {kind} only imitates bfloat16, slowly: training in float32")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Parameters that are local to the modules, and compiled networks."""
        with parameters_of(self.vae):
            if self.config.training.compile:
                self._compile()
            self.first = self.step
            yield

    def advance(self) -> None:
        """One step, the first of them with Pyro's validation."""
        with pyro.validation_enabled(self.step == self.first):
            self.train_step(self.batches.batch(self.step))
            self.window.add(self.elbo, self.auxiliary)

    def train_step(self, batch: Batch) -> None:
        """One SVI step. The loss is in nats per scored number, so that clipping means the same everywhere."""
        loss = self.loss(batch) / (size_of(batch) * self.unit.scored)
        loss.backward()
        self.lr = learning_rate(self.config.training, self.step, self.progress)
        self.update(loss, self.lr)
        self.average.update()
        self.step += 1
        if advance := getattr(self.objective, "advance", None):
            advance(self.step)
        if self.auxiliary is not None:
            self.auxiliary.step(self.elbo.drawn["z"], self.lr / self.config.training.lr)

    @property
    def varying(self) -> dict[str, Any]:
        """Numbers of the objective that change in training."""
        return getattr(self.objective, "varying", {})

    def wait(self) -> None:
        """Waits for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def averaged(self) -> VAE:
        """The averaged programs, with the buffers of the newest: running statistics are averages already."""
        average = cast(VAE, self.average.module)
        with torch.no_grad():
            for mine, newest in zip(average.buffers(), self.vae.buffers(), strict=True):
                mine.copy_(newest)
        return average

    def weights(self) -> dict[str, Any]:
        """The averaged weights, and those of the auxiliary prior beside them."""
        auxiliary = None if self.auxiliary is None else on_cpu(self.auxiliary.average.module.state_dict())
        return super().weights() | {"auxiliary": auxiliary}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return super().state() | {
            "vae": self.vae.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.varying,
            "auxiliary": None if self.auxiliary is None else self.auxiliary.state(),
            "skipped": self.update.skipped,
            "streak": self.update.streak,
            "rng": rng_state(self.device),
            "window": self.window.state(),
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Goes on from a `state` that was read from `path`."""
        load_weights(self.vae, state["vae"], path)
        load_weights(self.average, state["average"], path)
        load_optimizer(self.optimizer, state["optimizer"], path)
        self.varying.update(state["objective"])
        if self.auxiliary is not None:
            self.auxiliary.restore(state["auxiliary"], path)
        self.update.skipped, self.update.streak = state["skipped"].to(self.device), state["streak"].to(self.device)
        super().restore(state, path)
        self.window = Window(self.clock.read())
        if (sums := state.get("window")) is not None:
            with parameters_of(self.vae):
                shape = self.vae.model.prior().event_shape
            self.window.restore(sums, shape, self.device, path)
        restore_rng(state["rng"], self.device, path)

    def log_training(self) -> None:
        """A line of metrics over the steps since the last one."""
        window = self.window
        line = window.summary(self.unit, self.delta)
        seconds = self.clock.read() - window.began
        line["images_per_s"] = line.pop("n_images") / max(seconds, 1e-9)
        line["grad_norm"], line["skipped"] = self.update.norm.item(), int(self.update.skipped)
        if self.elbo.objective is not None:
            line["loss_bpd"] = window.loss.item() / (window.data * self.unit.scored * LN2)
        line |= {name: float(value) for name, value in self.varying.items()}
        if self.auxiliary is not None:
            line["auxiliary_rate_nats"] = window.auxiliary_rate.item() / window.data
        if self.learned_rate:
            line["committed_nats"] = committed(self.vae, self.data.train).nats
        self.line("train", line)
        self.window = Window(self.clock.read())
        self.update.stop_if_stuck(self.step, "start a new run with a lower training.lr or a training.clip")

    def _compile(self) -> None:
        """Compiles the networks in place; the random state stays as it was."""
        for network in self.vae.modules():
            if isinstance(network, Network):
                network.compile()
        # Compiling switches validation of distributions off for the whole process; leaving the context puts it back.
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), pyro.validation_enabled(False):
            self.loss(self.batches.batch(self.step)).backward()
        self.optimizer.zero_grad(set_to_none=True)


class _Called:
    """A program that is handed of a dict what its signature names."""

    def __init__(self, program: nn.Module) -> None:
        self.program = program

    def __call__(self, batch: Batch) -> Any:
        return run(self.program, batch)


def start_guide(vae: VAE, split: Split) -> None:
    """Lets a guide that offers it take its initial weights from data; weights that are restored later replace them."""
    if start_from := getattr(vae.guide, "start_from", None):
        with parameters_of(vae):
            call(start_from, split.extras, split.x[:])


class Window:
    """Sums over the steps between two lines of metrics, kept on the device until they are read."""

    def __init__(self, began: float) -> None:
        self.began, self.data = began, 0
        self.rate = self.auxiliary_rate = self.distortion = self.loss = self.mean = self.square = torch.zeros(())
        self.least = torch.full((), math.inf)

    def state(self) -> dict[str, Any] | None:
        """The sums, to be kept; None before the first step."""
        return vars(self).copy() if self.data else None

    def restore(self, state: dict[str, Any], shape: torch.Size, device: torch.device, path: Path) -> None:
        """Goes on from a `state` that was read from `path`.

        Args:
            state: of a window.
            shape: (n, d) of the latents.
            device: of the sums.
            path: of the checkpoint.

        Raises:
            UserError: if it has sums of another shape.
        """
        for name in vars(self):
            value = state[name]
            if isinstance(value, Tensor):
                if value.shape != (shape if name in ("mean", "square") else ()):
                    raise UserError(f"{path} does not fit the run's configuration: its window's {name!r} differs.")
                value = value.to(device)
            setattr(self, name, value)

    @torch.no_grad()
    def add(self, elbo: RateDistortionELBO, auxiliary: AuxiliaryTraining | None = None) -> None:
        """Takes in the newest step: the closed-form rate per datum (sampled where there is none) and the distortion.

        Both are the true ones whatever the objective; its own value is summed apart. So is the rate to an auxiliary
        prior, sampled, log q(z|x) − log p_aux(z) at the z of the step.
        """
        q, p = elbo.latent["z"]
        try:
            rate_b = elbo.analytic["z"] if "z" in elbo.analytic else kl_divergence(q, p)
        except NotImplementedError:
            z = q.rsample()
            rate_b = q.log_prob(z) - p.log_prob(z)
        self.data += rate_b.numel()
        if auxiliary is not None:
            log_q_b = q.log_prob(elbo.drawn["z"])
            self.auxiliary_rate = self.auxiliary_rate + log_q_b.sum() + log_q_b.numel() * auxiliary.cross_entropy
        self.rate = self.rate + rate_b.sum()
        self.least = torch.minimum(self.least, rate_b.min())
        self.distortion, self.loss = self.distortion + elbo.distortion, self.loss + elbo.loss
        self.mean = self.mean + q.mean.sum(0)
        self.square = self.square + q.mean.square().sum(0)

    def summary(self, unit: Unit, delta: float | None) -> dict[str, Any]:
        """The same keys as for a split that is evaluated."""
        rate, distortion = self.rate.item() / self.data, self.distortion.item() / self.data
        variance = self.square / self.data - (self.mean / self.data).square()
        return line_of(rate, distortion, self.least.item(), int((variance > 0.01).sum()), self.data, unit, delta)
