"""The training loop: Pyro's ELBO as a torch module, torch's optimisers, and a clock that counts training alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_delta.build import Programs, parameters_of
from pyro_delta.config import Config
from pyro_delta.data import Batches, ImageData
from pyro_delta.evaluation.bound import LN2, delta_of, encode, line_of, summarise
from pyro_delta.inference.auxiliary import AuxiliaryTraining
from pyro_delta.inference.checkpoint import load_weights, restore_rng, rng_state
from pyro_delta.inference.elbo import RateDistortionELBO
from pyro_delta.inference.objectives import make_objective
from pyro_delta.inference.optim import GuardedStep, MovingAverage, learning_rate, make_optimizer
from pyro_delta.nn.precision import Network, set_bf16
from pyro_delta.rate import committed_rate

STATE = (
    "config", "programs", "average", "optimizer", "objective", "auxiliary", "skipped", "streak", "step", "train_s",
    "wall_s", "validated", "rng",
)  # fmt: skip
"""Keys of `Trainer.state`."""
START_IMAGES = 256
"""Training images by which a guide is initialised."""


@dataclass
class Clock:
    """Seconds of training so far, and when the newest stretch began."""

    spent: float = 0.0
    since: float | None = None

    def start(self) -> None:
        """Training goes on."""
        self.since = time.perf_counter()

    def stop(self, device: torch.device) -> None:
        """Training pauses; work under way on a GPU still counts."""
        if self.since is not None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.spent += time.perf_counter() - self.since
            self.since = None

    def read(self) -> float:
        """Seconds so far."""
        return self.spent + (0.0 if self.since is None else time.perf_counter() - self.since)


class Trainer:
    """A training in progress: `run` takes it to its end, `state` and `restore` carry it over an interruption.

    Args:
        config: the run's settings.
        data: images.
        programs: model and guide, on their device.
        log: called with each line of metrics.
    """

    def __init__(
        self, config: Config, data: ImageData, programs: Programs, log: Callable[[dict[str, Any]], None]
    ) -> None:
        self.config, self.data, self.programs, self.log = config, data, programs, log
        settings = config.training
        self.device = next(programs.parameters()).device
        self.batches = Batches(data.train, settings.batch, settings.seed, self.device)
        if settings.channels_last:
            programs.to(memory_format=torch.channels_last)
        self._start_guide()
        self.average = MovingAverage(programs, settings.ema)
        self.optimizer = make_optimizer(programs, settings)
        self.update = GuardedStep(self.optimizer, settings.clip, self.device)
        self.auxiliary: AuxiliaryTraining | None = None
        if config.auxiliary.enabled:
            self.auxiliary = AuxiliaryTraining.of(config.auxiliary, programs.model.prior)
        self.elbo = make_objective(settings)
        self.loss = self.elbo(programs.model, programs.guide)
        # A prior that learns moves its rate in training; what holds throughout is its floor.
        self.learned_rate = any(p.requires_grad for p in programs.model.prior.parameters())
        self.delta = delta_of(programs, data.train.images)
        if self.learned_rate:
            self.delta = getattr(programs.model.prior, "floor_nats", None)
        self.clock, self.step, self.wall = Clock(), 0, time.time()
        self.validated = 0
        self.interrupted = False
        set_bf16(programs, settings.bf16)

    def _start_guide(self) -> None:
        """Initialises by data a guide that can be; weights that are restored later take its place."""
        if start_from := getattr(self.programs.guide, "start_from", None):
            with parameters_of(self.programs):
                start_from(self.data.train.images[:START_IMAGES].to(self.device))

    @property
    def progress(self) -> float:
        """Part of training that is over, 0 … 1."""
        settings = self.config.training
        if settings.steps is not None:
            return self.step / settings.steps
        assert settings.minutes is not None
        return self.clock.read() / (60 * settings.minutes)

    def train_step(self, x_bchw: Tensor) -> None:
        """One SVI step. The loss is in nats per image dimension, so that clipping means the same everywhere."""
        loss = self.loss(x_bchw) / (x_bchw.shape[0] * self.data.spec.dims)
        loss.backward()
        lr = learning_rate(self.config.training, self.step, self.progress)
        self.update(loss, lr)
        self.average.update()
        self.step += 1
        self.elbo.advance(self.step)
        if self.auxiliary is not None:
            self.auxiliary.step(self.elbo.drawn["z"], lr / self.config.training.lr)

    def run(self, every: Callable[[Trainer], None] = lambda trainer: None) -> None:
        """Trains to the end; `every` is called after each logging step, outside the clock.

        Setting `interrupted`, from a signal's handler for one, ends it after the step under way.

        Raises:
            CheckFailed: if non-finite steps persist.
        """
        settings = self.config.training
        with parameters_of(self.programs):
            if settings.compile:
                self._compile()
            window = Window(self.clock.read())
            self.clock.start()
            progress, first = self.progress, self.step
            while progress < 1 and not self.interrupted:
                with pyro.validation_enabled(self.step == first):
                    self.train_step(self.batches.batch(self.step))
                    window.add(self.elbo, self.auxiliary)
                # Read once for both questions: a clock may strike between them, and the last line would be lost.
                progress = self.progress
                if self.step % settings.log_every == 0 or progress >= 1:
                    self.clock.stop(self.device)
                    self._log_training(window)
                    self._validate_if_due()
                    every(self)
                    window = Window(self.clock.read())
                    self.clock.start()
            self.clock.stop(self.device)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "config": self.config.model_dump(mode="json"),
            "programs": self.programs.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.elbo.varying,
            "auxiliary": None if self.auxiliary is None else self.auxiliary.state(),
            "skipped": self.update.skipped,
            "streak": self.update.streak,
            "step": self.step,
            "train_s": self.clock.read(),
            "wall_s": time.time() - self.wall,
            "validated": self.validated,
            "rng": rng_state(self.device),
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Goes on from a `state` that was read from `path`."""
        load_weights(self.programs, state["programs"], path)
        load_weights(self.average, state["average"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.elbo.varying = state["objective"]
        if self.auxiliary is not None:
            self.auxiliary.restore(state["auxiliary"], path)
        self.update.skipped, self.update.streak = state["skipped"].to(self.device), state["streak"].to(self.device)
        self.step = state["step"]
        self.clock, self.wall = Clock(state["train_s"]), time.time() - state["wall_s"]
        self.validated = min(state["validated"], self._due())  # fewer are due again when a run is extended
        restore_rng(state["rng"], self.device)

    def _compile(self) -> None:
        """Compiles the networks in place and pays for it here, outside the clock; the random state stays as it was."""
        for network in self.programs.modules():
            if isinstance(network, Network):
                network.compile()
        # Compiling switches validation of distributions off for the whole process; leaving the context puts it back.
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), pyro.validation_enabled(False):
            self.loss(self.batches.batch(self.step)).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def _log_training(self, window: Window) -> None:
        line = window.summary(self.data.spec.dims, self.delta)
        seconds = self.clock.read() - window.began
        line["images_per_s"] = line.pop("n_images") / max(seconds, 1e-9)
        line["grad_norm"], line["skipped"] = self.update.norm.item(), int(self.update.skipped)
        if self.config.training.objective != "elbo":
            line["loss_bpd"] = window.loss.item() / (window.images * self.data.spec.dims * LN2)
        line |= {name: float(value) for name, value in self.elbo.varying.items()}
        if self.auxiliary is not None:
            line["auxiliary_rate_nats"] = window.auxiliary_rate.item() / window.images
        if self.learned_rate:
            line["committed_nats"] = committed_rate(self.programs.model.prior()).item()
        self._line("train", line)
        self.update.stop_if_stuck(self.step, "start a new run with a lower training.lr or a training.clip")

    def _line(self, split: str, numbers: dict[str, Any]) -> None:
        self.log(
            {
                "step": self.step,
                "wall_s": round(time.time() - self.wall, 3),
                "train_s": round(self.clock.read(), 3),
                "lr": self.optimizer.param_groups[0]["lr"],
                "split": split,
                **numbers,
            }
        )

    def _due(self) -> int:
        """Validations that should have been made by now."""
        return math.floor(min(self.progress, 1.0) * self.config.training.validations + 1e-9)

    def _validate_if_due(self) -> None:
        if (due := self._due()) > self.validated:
            self.validated = due
            images = self.data.validation.images[: self.config.training.validation_images]
            encoding = encode(cast(Programs, self.average.module), images)
            self._line("validation", summarise(encoding, self.data.spec.dims, self.delta))


class Window:
    """Sums over the steps between two lines of metrics, kept on the device until they are read."""

    def __init__(self, began: float) -> None:
        self.began, self.images = began, 0
        self.rate = self.auxiliary_rate = self.distortion = self.loss = self.mean = self.square = torch.zeros(())
        self.least = torch.full((), math.inf)

    @torch.no_grad()
    def add(self, elbo: RateDistortionELBO, auxiliary: AuxiliaryTraining | None = None) -> None:
        """Takes in the newest step: the closed-form rate per image (sampled where there is none) and the distortion.

        Both are the true ones whatever the objective; its own value is summed apart. So is the rate to an auxiliary
        prior, sampled, log q(z|x) − log p_aux(z) at the z of the step.
        """
        q, p = elbo.latent["z"]
        try:
            rate_b = elbo.analytic["z"] if "z" in elbo.analytic else kl_divergence(q, p)
        except NotImplementedError:
            z = q.rsample()
            rate_b = q.log_prob(z) - p.log_prob(z)
        self.images += rate_b.numel()
        if auxiliary is not None:
            log_q_b = q.log_prob(elbo.drawn["z"])
            self.auxiliary_rate = self.auxiliary_rate + log_q_b.sum() + log_q_b.numel() * auxiliary.cross_entropy
        self.rate = self.rate + rate_b.sum()
        self.least = torch.minimum(self.least, rate_b.min())
        self.distortion, self.loss = self.distortion + elbo.distortion, self.loss + elbo.loss
        self.mean = self.mean + q.mean.sum(0)
        self.square = self.square + q.mean.square().sum(0)

    def summary(self, dims: int, delta: float | None) -> dict[str, Any]:
        """The same keys as for a split that is evaluated."""
        rate, distortion = self.rate.item() / self.images, self.distortion.item() / self.images
        variance = self.square / self.images - (self.mean / self.images).square()
        return line_of(rate, distortion, self.least.item(), int((variance > 0.01).sum()), self.images, dims, delta)
