"""What every training has, whatever its backend: a clock that counts training alone, and lines of metrics."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pyro_delta import ranks
from pyro_delta.commitment import BY_LENGTH, BY_PRIOR
from pyro_delta.config import Config
from pyro_delta.diagnostics.bounds import Encoding, Unit, encode, summarise
from pyro_delta.diagnostics.trace import batches, committed, evaluating, formula_of, prior, trace
from pyro_delta.inference.objectives import NegativeELBO
from pyro_delta.lock import Lock
from pyro_delta.protocol import Data, Objective, Split
from pyro_delta.rate import committed_rate
from pyro_delta.vae import VAE, parameters_of

START_DATA = 256
"""Training data that a guide takes its initial weights from."""


class Clock:
    """Seconds of training so far, `spent` up to the newest stop; `told` ones if there are several ranks."""

    def __init__(self, spent: float = 0.0) -> None:
        self.spent = spent
        self.since: float | None = None
        self.told: float | None = None

    def start(self) -> None:
        """Training goes on."""
        self.since = time.perf_counter()

    def stop(self) -> None:
        """Training pauses."""
        self.spent, self.since = self.own(), None

    def own(self) -> float:
        """Seconds so far, as this process counts them."""
        return self.spent + (0.0 if self.since is None else time.perf_counter() - self.since)

    def read(self) -> float:
        """Seconds so far, as all ranks have agreed."""
        return self.own() if self.told is None else self.told


class Training(ABC):
    """A training in progress: `run` takes it to its end, `state` and `restore` carry it over an interruption.

    Args:
        config: the run's settings.
        data: spec and splits.
        vae: model and guide in Pyro.
        log: called with each line of metrics.

    Attributes:
        step: steps made so far.
        lr: learning rate of the newest step.
        committed: what the guide's family commits, with the weights at the start and throughout.
        delta: what is committed throughout the training, in nats; None if no formula says it. Where each
            datum has its own, the mean over those of training.
        unit: of bounds in lines of training, by the numbers that are scored of a datum in the mean.
        objective: what joins rate and distortion; None for their sum.
        best: `weights` of the best validation so far, with its `step` and `neg_elbo_bpd`; None before one. It has the
            least −ELBO, or, where that is not what is minimised, the least `loss_bpd`; where what is minimised changes
            as training goes on, the least −ELBO again.
        stale: validations since then.
        interrupted: set it to end `run` early.
        notices: what a person should know before the start, in sentences.
        lock: on its folder, where it has one.
    """

    def __init__(self, config: Config, data: Data, vae: VAE, log: Callable[[dict[str, Any]], None]) -> None:
        self.config, self.data, self.vae, self.log = config, data, vae, log
        self.committed = committed(vae, data.train)
        self.delta, self.unit = self.committed.throughout, Unit.of(data.spec)
        if self.committed.guarantee in (BY_LENGTH, BY_PRIOR) and self.delta is not None:
            self.delta = _mean_delta(vae, data.train)
        if data.train.extras:
            self.unit = Unit.of(data.spec, _mean_scored(vae, data))
        self.clock, self.step, self.wall = Clock(), 0, time.monotonic()
        self.lr = config.training.lr
        self.validated = 0
        self.objective: Objective | None = None
        self.best: dict[str, Any] | None = None
        self.stale = 0
        self.interrupted = False
        self.notices: list[str] = []
        self.lock: Lock | None = None

    @property
    def progress(self) -> float:
        """Part of training that is over, 0 … 1."""
        settings = self.config.training
        if settings.steps is not None:
            return self.step / settings.steps
        assert settings.minutes is not None
        return self.clock.read() / (60 * settings.minutes)

    @property
    def over(self) -> bool:
        """Whether training has come to its end, or has not got better for as long as `training.patience` says."""
        return self.progress >= 1 or self.config.training.out_of_patience(self.stale)

    def run(self, every: Callable[[Self], None] = lambda training: None) -> None:
        """Trains to the end; `every` is called after each logging step, outside the clock.

        Setting `interrupted`, from a signal's handler for one, ends it after the step under way.

        Raises:
            CheckFailed: if steps are skipped on and on.
            RankLost: if another rank has ended.
        """
        with ranks.watched(), self.running():
            progress, stopped = self._agreed()
            self.clock.start()
            while progress < 1 and not stopped and not self.config.training.out_of_patience(self.stale):
                self.advance()
                # Read once for both questions: a clock may strike between them, and the last line would be lost.
                progress, stopped = self._agreed()
                if self.step % self.config.training.log_every == 0 or progress >= 1:
                    self.wait()
                    self.clock.stop()
                    self._agreed()  # of the seconds of the wait
                    self.log_training()
                    self._validate_if_due()
                    every(self)
                    _, stopped = self._agreed()  # once more: the signal may have come while this was under way
                    self.clock.start()
            self.wait()
            self.clock.stop()
            self._agreed()
            self.settle()
            self.interrupted = self.interrupted or stopped

    def _agreed(self) -> tuple[float, bool]:
        """Progress, by the clock of the first rank, and whether any rank is to stop: the same on all, at each step."""
        if ranks.count() == 1:
            return self.progress, self.interrupted
        mine = [self.clock.own() if ranks.first() else 0.0, float(self.interrupted)]
        self.clock.told, stops = ranks.total(torch.tensor(mine, dtype=torch.float64)).tolist()
        return self.progress, stops > 0

    @abstractmethod
    def running(self) -> AbstractContextManager[Any]:
        """The context that training runs in; what must be compiled is compiled on entering it."""

    @abstractmethod
    def advance(self) -> None:
        """A step, or as many as go to the next line of metrics."""

    @abstractmethod
    def wait(self) -> None:
        """Waits for steps under way on a GPU, for which the clock still runs."""

    def settle(self) -> None:  # noqa: B027 (one process has nothing to settle)
        """Leaves to the first rank, whose checkpoint comes next, what the ranks have summed apart."""

    @abstractmethod
    def log_training(self) -> None:
        """Writes a line of metrics over the steps since the last one.

        Raises:
            CheckFailed: if steps are skipped on and on.
        """

    @property
    def learned_rate(self) -> bool:
        """Whether training moves the rate that the prior commits."""
        return self.committed.learns

    @abstractmethod
    def averaged(self) -> VAE:
        """Pyro's programs with the averaged weights: those to evaluate and to sample from."""

    def weights(self) -> dict[str, Any]:
        """What is evaluated, as it is now, on the CPU: the averaged weights, and those of an auxiliary prior."""
        return {"vae": on_cpu(self.averaged().state_dict()), "auxiliary": None}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on, as `pyro_delta.inference.checkpoint.TrainingState`; a backend adds its own."""
        return {
            "config": self.config.model_dump(mode="json"),
            "step": self.step,
            "train_s": self.clock.read(),
            "wall_s": time.monotonic() - self.wall,  # a clock that somebody may set back would do harm
            "validated": self.validated,
            "stale": self.stale,
            "best": self.best,
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Goes on from a `state` that was read from `path`."""
        self.step, self.best, self.stale = state["step"], state["best"], state.get("stale", 0)
        self.clock, self.wall = Clock(state["train_s"]), time.monotonic() - max(0.0, state["wall_s"])
        self.validated = min(state["validated"], self._due())  # fewer are due again when a run is extended

    def line(self, split: str, numbers: dict[str, Any]) -> None:
        """Logs a line of metrics."""
        self.log(
            {
                "step": self.step,
                "wall_s": round(time.monotonic() - self.wall, 3),
                "train_s": round(self.clock.read(), 3),
                "lr": self.lr,
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
            split = self.data.validation.take(slice(self.config.training.validation_images))
            ranks.as_first(self.vae.buffers())  # such as running statistics, of each rank's own data
            encoding = encode(self.averaged(), split, shared=True)
            unit = Unit.of(self.data.spec, encoding.scored)
            numbers = summarise(encoding, unit, self.delta) | self._loss(encoding, unit)
            self.line("validation", numbers)
            self.stale += 1
            by = "loss_bpd" if "loss_bpd" in numbers else "neg_elbo_bpd"
            if numbers[by] < (self.best or {}).get(by, math.inf):
                of_it = {key: numbers[key] for key in ("neg_elbo_bpd", by)}
                self.best = {"step": self.step, **of_it, **self.weights()}
                self.stale = 0

    def _loss(self, encoding: Encoding, unit: Unit) -> dict[str, float]:
        """What an objective other than the bound has of these data, unless it changes as training goes on."""
        objective = self.objective
        if objective is None or type(objective) is NegativeELBO or getattr(objective, "varying", None):
            return {}
        count = torch.tensor(float(len(encoding.rate)), dtype=encoding.rate.dtype)
        rate = encoding.rate.sum()
        if getattr(objective, "per_dimension", False):
            if encoding.rate_per_dimension is None:
                return {}
            rate = encoding.rate_per_dimension.to(rate) * count
        with torch.no_grad():
            loss = objective(rate, encoding.distortion.sum(), count) / count
        return {"loss_bpd": loss.item() * unit.per_number}


def _mean_delta(vae: VAE, split: Split) -> float:
    """What data commit in the mean, each by its length or its own prior, in nats."""
    with parameters_of(vae), torch.no_grad():
        rate_of = formula_of(vae) or committed_rate
        rates = rate_of(prior(vae, len(split), split.extras))
        return torch.as_tensor(rates, dtype=torch.float64).mean().item()


def _mean_scored(vae: VAE, data: Data) -> float:
    """Numbers of a training datum that are scored in the mean: of all, where lengths say it, or else of the first."""
    first = data.train.take(slice(START_DATA))
    with evaluating(vae, 0), torch.no_grad():
        batch = next(batches(first, START_DATA, vae))
        scored, lengths = trace(vae, batch).scored, data.train.extras.get("lengths")
    if lengths is None or lengths.dim() != 1:
        return scored
    per_position = data.spec.scored / data.spec.positions
    by_length = math.isclose(scored, per_position * lengths[: len(first)].double().mean().item())
    return per_position * lengths.double().mean().item() if by_length else scored


def on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of weights that training does not change any more."""
    return {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
