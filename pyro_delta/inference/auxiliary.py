"""Training of an auxiliary prior: on samples of the posterior, with no gradient into model or guide."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_delta import ranks
from pyro_delta.config import AuxiliaryConfig
from pyro_delta.data.batches import Batches
from pyro_delta.diagnostics.trace import evaluating, posterior
from pyro_delta.inference.checkpoint import load_optimizer, load_weights
from pyro_delta.inference.optim import GuardedStep, MovingAverage
from pyro_delta.models import LSTMPrior
from pyro_delta.protocol import Prior, Split
from pyro_delta.vae import VAE


class AuxiliaryTraining:
    """An auxiliary prior in training: its own optimiser (Adam), guard and moving average.

    Beside a model, each of whose steps has drawn a z:

        auxiliary.step(elbo.drawn["z"])

    Args:
        prior: the auxiliary prior, on its device.
        lr: learning rate.
        ema: decay of the moving average of its weights.

    Attributes:
        average: the averaged prior is `average.module`: the one to evaluate and to sample from.
        update: counts the steps that were skipped, as the model's were or because they were not finite.
        cross_entropy: −E log p_aux(z) of the newest step in nats (a tensor, on the device).
    """

    def __init__(self, prior: nn.Module, *, lr: float = 3e-3, ema: float = 0.999) -> None:
        self.prior, self.lr = prior.train(), lr
        self.average = MovingAverage(prior, ema)
        self.optimizer = torch.optim.Adam([{"params": list(prior.parameters()), "factor": 1.0}], lr=lr, fused=True)
        self.device = next(prior.parameters()).device
        self.update = GuardedStep(self.optimizer, None, self.device)
        self.cross_entropy = torch.zeros((), device=self.device)

    @classmethod
    def of(cls, settings: AuxiliaryConfig, prior: Prior) -> AuxiliaryTraining:
        """A fresh auxiliary prior beside a model's prior, on its device, as the settings say."""
        # The model's random stream stays as it is without an auxiliary prior.
        with torch.random.fork_rng(devices=[]):
            auxiliary = LSTMPrior(prior, hidden=settings.hidden, mixtures=settings.mixtures)
        return cls(auxiliary.to(prior.starts.device), lr=settings.lr, ema=settings.ema)

    def step(self, z: Tensor, part: float = 1.0, taken: Tensor | None = None) -> None:
        """One step of maximum likelihood on samples z (…, n, d) of the posterior, which get no gradient.

        Args:
            z: samples; each rank has as many of its own.
            part: of the learning rate, for a schedule.
            taken: whether the model's own step with these samples was not skipped (a tensor); None for yes.
        """
        loss = -self.prior().log_prob(z.detach()).mean()
        loss.backward()
        ranks.average_gradients(self.prior.parameters())
        self.update(ranks.total(loss), part * self.lr, taken)
        self.average.update()
        self.cross_entropy = loss.detach()

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "prior": self.prior.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "skipped": self.update.skipped,
            "streak": self.update.streak,
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Goes on from a `state` that was read from `path`."""
        load_weights(self.prior, state["prior"], path)
        load_weights(self.average, state["average"], path)
        load_optimizer(self.optimizer, state["optimizer"], path)
        self.update.skipped, self.update.streak = state["skipped"].to(self.device), state["streak"].to(self.device)


def train_prior(
    training: AuxiliaryTraining,
    vae: VAE,
    split: Split,
    steps: int,
    *,
    batch: int = 64,
    seed: int = 0,
    log_every: int = 50,
    log: Callable[[dict[str, float]], None] = lambda line: None,
) -> None:
    """Trains an auxiliary prior for programs that are trained already and stay as they are.

    Every step draws its z anew from the guide in evaluation mode; the learning rate falls to zero in a cosine.

    Args:
        training: of the auxiliary prior.
        vae: of which the guide is used.
        split: images to draw z for.
        steps: number of steps.
        batch: images of a step.
        seed: of the order of the images and of the samples.
        log_every: steps between lines of metrics.
        log: called with each line: `step`, `lr`, and over the steps since the last one `cross_entropy_nats`,
            −E log p_aux(z), and `rate_nats_mean`, E[log q(z|x) − log p_aux(z)].

    Raises:
        CheckFailed: if non-finite steps persist.
    """
    batches = Batches(split, batch, seed, training.device)
    cross_entropies, rates = [], []
    with evaluating(vae, seed):
        for step in range(steps):
            part = 0.5 * (1 + math.cos(math.pi * step / steps))
            with torch.no_grad():
                drawn = posterior(vae, batches.batch(step))
                log_q = drawn.log_q.mean()
            training.step(drawn.z, part)
            cross_entropies.append(training.cross_entropy)
            rates.append(log_q + training.cross_entropy)
            if (step + 1) % log_every == 0 or step + 1 == steps:
                log(
                    {
                        "step": step + 1,
                        "lr": part * training.lr,
                        "cross_entropy_nats": torch.stack(cross_entropies).mean().item(),
                        "rate_nats_mean": torch.stack(rates).mean().item(),
                    }
                )
                training.update.stop_if_stuck(step + 1, "train with a lower --lr")
                cross_entropies, rates = [], []
