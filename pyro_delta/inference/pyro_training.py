"""Training in Pyro: its ELBO as a torch module, and torch's optimisers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_delta import ranks
from pyro_delta.build import build_objective
from pyro_delta.call import call, run
from pyro_delta.config import Config
from pyro_delta.data.batches import Batches
from pyro_delta.data.splits import mapped, size_of
from pyro_delta.diagnostics.bounds import LN2, Unit, line_of
from pyro_delta.diagnostics.trace import committed
from pyro_delta.errors import UserError
from pyro_delta.inference.auxiliary import AuxiliaryTraining
from pyro_delta.inference.checkpoint import load_optimizer, load_weights, restore_rng, rng_state
from pyro_delta.inference.elbo import RateDistortionELBO
from pyro_delta.inference.objectives import NegativeELBO, OfAllRanks
from pyro_delta.inference.optim import GuardedStep, MovingAverage, calmer, learning_rate, make_optimizer
from pyro_delta.inference.training import START_DATA, Training, on_cpu
from pyro_delta.nn.precision import Network, computes_in_bf16, set_bf16
from pyro_delta.nn.recompute import set_recompute
from pyro_delta.protocol import Batch, Data, Split
from pyro_delta.vae import VAE, localise, parameters_of

PARTS = 13
"""Keeps the noise of the parts of a step apart from what else the seed decides."""


class PyroTraining(Training):
    """A training in Pyro, on the device of the programs.

    A step may have parts: each of K ranks takes `training.accumulate` = A of them, one after the other, of
    training.batch / (K·A) data. Each part has noise of its own, a function of the seed, the step and the part, so that
    the same weights come of the same K·A parts whoever makes them. A step of one part draws from torch's random stream.

    Args:
        config, data, vae, log: as for `Training`.
        folder: of the run's own programs, such as its objective.

    Attributes:
        parts: of a step, K·A.

    Raises:
        UserError: if training.batch has no so many equal parts, or the objective cannot be summed over them.
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
        self.parts = ranks.count() * settings.accumulate
        if settings.batch % self.parts:
            raise UserError(
                f"training.batch={settings.batch} has no {self.parts} equal parts, for {ranks.count()} "
                f"process{'es' * (ranks.count() > 1)} with training.accumulate={settings.accumulate}; give a multiple "
                f"of {self.parts}."
            )
        share = (ranks.rank(), ranks.count())
        self.batches = Batches(data.train, settings.batch, settings.seed, self.device, share)
        if settings.channels_last:
            vae.to(memory_format=torch.channels_last)
        localise(vae)
        start_guide(vae, self.batches.split.take(slice(START_DATA)))
        super().__init__(config, data, vae, log)
        self.average = MovingAverage(vae, settings.ema)
        self.optimizer = make_optimizer(vae, settings)
        self.update = GuardedStep(self.optimizer, settings.clip, self.device, settings.skip)
        self.auxiliary: AuxiliaryTraining | None = None
        if config.auxiliary.enabled:
            self.auxiliary = AuxiliaryTraining.of(config.auxiliary, vae.model.prior)
        with parameters_of(vae):
            dims = vae.model.prior().event_shape[-1]
        self.objective = build_objective(config, folder, dims=dims)
        plain = type(self.objective) is NegativeELBO  # which needs no count of the data
        joined: Any = None if plain else self.objective
        if self.parts > 1 and not getattr(self.objective, "additive", False):
            if settings.accumulate > 1:
                raise UserError(
                    f"objective.program={config.objective.program} is of the rate of a whole batch, which the parts of "
                    f"training.accumulate={settings.accumulate} do not know; leave that out, or give a smaller batch."
                )
            joined = OfAllRanks(self.objective)
        self.elbo = RateDistortionELBO(joined, analytic_kl=settings.elbo == "mean_field", max_plate_nesting=1)
        self.loss: nn.Module = (
            self.elbo(_Called(vae.model), _Called(vae.guide)) if data.train.extras else self.elbo(vae.model, vae.guide)
        )
        self.parallel = self.loss
        self.window: Window | None = None
        self.first = 0
        bf16 = settings.bf16 and computes_in_bf16(self.device)
        set_bf16(vae, bf16)
        blocks = set_recompute(vae, settings.recompute)
        if settings.recompute and not blocks:
            self.notices.append(
                "these programs have no blocks that can be computed again: training.recompute changes nothing"
            )
        norms = [part for part in vae.modules() if isinstance(part, _BatchNorm)]
        self.statistics = [value for part in norms for value in part.buffers()]
        if self.parts > 1 and norms:
            self.notices.append(
                f"batch normalisation takes its statistics of {settings.batch // self.parts} data at a time, and keeps "
                "those of the first process"
            )
        if settings.bf16 and not bf16:
            kind = self.device.type.upper()
            self.notices.append(f"this {kind} only imitates bfloat16, slowly: training in float32")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Parameters that are local to the modules, compiled networks, and gradients that are those of all ranks."""
        with ExitStack() as stack:
            stack.enter_context(parameters_of(self.vae))
            if self.config.training.compile:
                # Each network is one graph, whose gradients are sent when they are there, as without ranks.
                stack.enter_context(torch._dynamo.config.patch(optimize_ddp=False))
                for network in self.vae.modules():
                    if isinstance(network, Network):
                        network.compile()
            if self.config.training.compile or ranks.count() > 1:
                self.parallel = ranks.parallel(self.loss, unused=self._tried())
            if self.window is None:
                self.window = Window(self.clock.read())
            self.first = self.step
            yield
            self.parallel = self.loss

    def advance(self) -> None:
        """One step, the first of them with Pyro's validation."""
        with pyro.validation_enabled(self.step == self.first):
            self.train_step(self.batches.batch(self.step))

    def train_step(self, batch: Batch) -> None:
        """One SVI step with this rank's data, part by part.

        The loss is in nats per scored number, so that clipping means the same everywhere.
        """
        loss, parts, drawn, log_q = torch.zeros((), device=self.device), self.config.training.accumulate, [], []
        statistics = [value.clone() for value in self.statistics]
        size, scored = size_of(batch) // parts, size_of(batch) * self.unit.scored
        for part in range(parts):
            if self.parts > 1:
                torch.manual_seed(seed_of_part(self.config.training.seed, self.step, ranks.rank() * parts + part))
            with ranks.kept_apart(self.parallel, part < parts - 1):
                some = self.parallel(_rows(batch, part * size, size) if parts > 1 else batch) / scored
                some.backward()
            loss = loss + some.detach()
            if self.window is not None:
                self.window.add(self.elbo)
            if self.auxiliary is not None:
                drawn.append(self.elbo.drawn["z"])
                log_q.append(self.elbo.latent["z"][0].log_prob(drawn[-1]).detach())
        self.lr = learning_rate(self.config.training, self.step, self.progress)
        self.update(ranks.total(loss), self.lr)
        for now, before in zip(self.statistics, statistics, strict=True):
            self._keep(now, before)
        self.average.update()
        self.step += 1
        if advance := getattr(self.objective, "advance", None):
            kept = {name: value.clone() for name, value in self.varying.items() if isinstance(value, Tensor)}
            advance(self.step)
            moved = {name: value for name, value in self.varying.items() if isinstance(value, Tensor)}
            for name in kept.keys() & moved.keys():  # tensors follow from the batch, numbers from the step
                self._keep(moved[name], kept[name])
        if self.auxiliary is not None:
            self.auxiliary.step(torch.cat(drawn), self.lr / self.config.training.lr, self.update.taken)
            if self.window is not None:
                self.window.add_auxiliary(torch.cat(log_q), self.auxiliary.cross_entropy)

    def _keep(self, now: Tensor, before: Tensor) -> None:
        """Puts back what was there before the newest step, if that was skipped."""
        with torch.no_grad():
            now.copy_(torch.where(self.update.taken.to(now.device), now, before.to(now.device)))

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
            # With several ranks: empty after a line of metrics, and those of all at the end, by `settle`.
            "window": None if self.window is None else self.window.state(),
            "parts": self.parts,
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Goes on from a `state` that was read from `path`.

        Raises:
            UserError: if it is of another training, or its steps had another number of parts, whose noise was another.
        """
        if (parts := state.get("parts", 1)) != self.parts:
            accumulate, rest = divmod(parts, ranks.count())
            raise UserError(
                f"the steps of {path} have {parts} part{'s' * (parts > 1)} (processes × training.accumulate), not "
                f"{self.parts}; go on with "
                + (f"training.accumulate={accumulate}." if not rest else f"a number of processes that divides {parts}.")
            )
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
            if not ranks.first():
                self.window.empty()
        restore_rng(state["rng"], self.device, path)

    def settle(self) -> None:
        """Leaves the sums of the window to the first rank."""
        if self.window is not None:
            self.window = self.window.of_all_ranks()
            if not ranks.first():
                self.window.empty()

    def log_training(self) -> None:
        """A line of metrics over the steps since the last one, of all ranks."""
        assert self.window is not None
        window = self.window.of_all_ranks()
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
        with ranks.together():
            self.update.stop_if_stuck(self.step, f"start a new run with {calmer(self.config.training)}")

    def _tried(self) -> bool:
        """Makes the gradients of a part, for which networks are compiled, and drops them; noise and buffers stay.

        Returns:
            Whether some parameter got none, on any rank.
        """
        batch = self.batches.batch(self.step)
        size = size_of(batch) // self.config.training.accumulate
        # Compiling switches validation of distributions off for the whole process; leaving the context puts it back.
        devices = [self.device] if self.device.type == "cuda" else []
        before = [buffer.detach().clone() for buffer in self.vae.buffers()]  # running statistics of a batch, for one
        with torch.random.fork_rng(devices), pyro.validation_enabled(False):
            self.loss(_rows(batch, 0, size)).backward()
        with torch.no_grad():
            for buffer, value in zip(self.vae.buffers(), before, strict=True):
                buffer.copy_(value)
        unused = any(weight.grad is None for weight in self.vae.parameters() if weight.requires_grad)
        self.optimizer.zero_grad(set_to_none=True)
        return bool(ranks.total(torch.tensor(float(unused))))


class _Called(nn.Module):
    """A program that is handed of a dict what its signature names; a module, for its weights are those of the loss."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, batch: Batch) -> Any:
        return run(self.program, batch)


def _rows(batch: Batch, start: int, size: int) -> Batch:
    """So many data of a batch from a place on."""
    return mapped(batch, lambda values: values[start : start + size])


def seed_of_part(seed: int, step: int, part: int) -> int:
    """The seed of the noise of a part of a step, where steps have several."""
    return int(np.random.SeedSequence([seed, step, part, PARTS]).generate_state(1)[0])


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

    def empty(self) -> None:
        """Forgets the sums, but for their shapes."""
        for name, value in vars(self).items():
            setattr(self, name, torch.zeros_like(value) if isinstance(value, Tensor) else value)
        self.data, self.least = 0, torch.full_like(self.least, math.inf)

    @torch.no_grad()
    def add(self, elbo: RateDistortionELBO) -> None:
        """Takes in what ran last: the closed-form rate per datum (sampled where there is none) and the distortion.

        Both are the true ones whatever the objective; its own value is summed apart.
        """
        q, p = elbo.latent["z"]
        try:
            rate_b = elbo.analytic["z"] if "z" in elbo.analytic else kl_divergence(q, p)
        except NotImplementedError:
            z = q.rsample()
            rate_b = q.log_prob(z) - p.log_prob(z)
        self.data += rate_b.numel()
        self.rate = self.rate + rate_b.sum()
        self.least = torch.minimum(self.least, rate_b.min())
        self.distortion, self.loss = self.distortion + elbo.distortion, self.loss + elbo.minimised
        self.mean = self.mean + q.mean.sum(0)
        self.square = self.square + q.mean.square().sum(0)

    def add_auxiliary(self, log_q_b: Tensor, cross_entropy: Tensor) -> None:
        """Takes in the rate to an auxiliary prior, sampled, log q(z|x) − log p_aux(z) at the z of a step."""
        self.auxiliary_rate = self.auxiliary_rate + log_q_b.sum() + log_q_b.numel() * cross_entropy

    def of_all_ranks(self) -> Window:
        """The sums over all ranks, on the CPU; for a single one the window itself."""
        if ranks.count() == 1:
            return self
        sums = [self.rate, self.auxiliary_rate, self.distortion, self.loss, self.mean, self.square]
        flat = torch.cat([torch.tensor([float(self.data)]), *(part.detach().cpu().reshape(-1) for part in sums)])
        data, *parts = ranks.total(flat.double()).split([1, *(part.numel() for part in sums)])
        whole = Window(self.began)
        whole.data = round(data.item())
        whole.rate, whole.auxiliary_rate, whole.distortion, whole.loss, whole.mean, whole.square = (
            part.reshape(like.shape) for part, like in zip(parts, sums)
        )
        whole.least = ranks.least(self.least.detach().cpu())
        return whole

    def summary(self, unit: Unit, delta: float | None) -> dict[str, Any]:
        """The same keys as for a split that is evaluated."""
        rate, distortion = self.rate.item() / self.data, self.distortion.item() / self.data
        variance = self.square / self.data - (self.mean / self.data).square()
        return line_of(rate, distortion, self.least.item(), int((variance > 0.01).sum()), self.data, unit, delta)
