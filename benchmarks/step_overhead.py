"""What Pyro costs: a training step of the library against the same networks in hand-written PyTorch.

Both run the same networks (deep copies) in eager float32 on the same batch, with fused Adam, clipping, schedule and
moving average; validation of arguments is off in both. The hand-written step has no distributions, traces, plates or
guard against non-finite steps. Steps alternate, and the medians of their times are compared. Before that, a few steps
of both from the same noise must give the same weights.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from statistics import median
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from record import add_common_arguments, write
from torch import Tensor

from pyro_delta.api.train import prepare
from pyro_delta.config import Config, TrainingConfig, load_preset
from pyro_delta.data import Spec, Split, Splits
from pyro_delta.data.images import ImageSpec
from pyro_delta.inference.optim import learning_rate
from pyro_delta.vae import VAE

SPECS = {
    "digits": ImageSpec(1, 8, 8, 17),
    "photos": ImageSpec(3, 32, 32, 256),
    "cifar10-small": ImageSpec(3, 32, 32, 256),
}
EAGER = [
    ("training.optimizer", "adam"),
    ("training.bf16", False),
    ("training.channels_last", False),
    ("training.compile", False),
    ("training.guide_lr", 1.0),
    ("training.warmup", 0),
]
"""Plain settings, in which three steps move the weights far enough to tell one rule from another."""


class HandWritten:
    """The δ-VAE's training step as tensor formulas."""

    def __init__(self, vae: VAE, spec: Spec, training: TrainingConfig) -> None:
        self.encoder, self.decoder = vae.guide.encoder, vae.model.likelihood.network
        self.scale, self.alpha = vae.guide.scale, vae.model.prior.alpha
        self.spec, self.training = spec, training
        self.parameters = list(vae.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.Adam(self.parameters, lr=training.lr, betas=training.betas, fused=True)
        self.steps = 0

    def loss(self, x_bchw: Tensor) -> Tensor:
        """Nats per scored number of a batch."""
        mean, raw = self.encoder(x_bchw).chunk(2, dim=-1)
        scale = self.scale * (F.softplus(raw) / math.log(2)) + 1e-6
        z = mean + scale * torch.randn_like(mean)
        log_likelihood = mixture_log_prob(self.decoder(x_bchw, z), x_bchw, self.spec.levels)
        if self.training.elbo == "mean_field":
            rate = analytic_rate(mean, scale, self.alpha)
        else:
            rate = sampled_rate(z, mean, scale, self.alpha)
        return (rate - log_likelihood) / (len(x_bchw) * self.spec.scored)

    def step(self, batch: Any) -> None:
        """Loss, gradients, clipping, Adam, moving average."""
        training = self.training
        self.loss(batch).backward()
        if training.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, training.clip, foreach=True)
        lr = learning_rate(training, self.steps, self.steps / (training.steps or 1))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = min(training.ema, (1 + self.steps) / (10 + self.steps)) if self.steps else 0.0
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        self.steps += 1


def mixture_log_prob(parameters_bphw: Tensor, x_bchw: Tensor, levels: int) -> Tensor:
    """Log-probability of a batch under mixtures of discretised logistics, summed."""
    channels = x_bchw.shape[1]
    parameters = parameters_bphw.permute(0, 2, 3, 1)
    mixtures = parameters.shape[-1] // (1 + 2 * channels + (3 if channels == 3 else 0))
    logits, means, log_scales, raw = parameters.split(
        [mixtures, channels * mixtures, channels * mixtures, 3 * mixtures if channels == 3 else 0], dim=-1
    )
    x = x_bchw.permute(0, 2, 3, 1).float()
    y = x * (2 / (levels - 1)) - 1
    deviation = y[..., None] - means.unflatten(-1, (channels, mixtures))
    if channels == 3:
        a, b, c = raw.tanh().unflatten(-1, (3, mixtures)).unbind(-2)
        red, green = y[..., 0:1], y[..., 1:2]
        deviation = deviation - torch.stack([torch.zeros_like(a), a * red, b * red + c * green], dim=-2)
    inverse = torch.exp(-log_scales.unflatten(-1, (channels, mixtures)).clamp(-7, 7))
    half, centred = inverse / (levels - 1), deviation * inverse
    bottom, top = (x == 0)[..., None], (x == levels - 1)[..., None]
    log_p = F.logsigmoid(half + centred).masked_fill(top, 0.0) + F.logsigmoid(half - centred).masked_fill(bottom, 0.0)
    log_p = log_p + torch.log(-torch.expm1(-2 * half)).masked_fill(bottom | top, 0.0)
    return torch.logsumexp(F.log_softmax(logits, dim=-1) + log_p.sum(-2), dim=-1).sum()


def analytic_rate(mean: Tensor, scale: Tensor, alpha_d: Tensor) -> Tensor:
    """KL(q ‖ AR(1)) in closed form, summed over the batch."""
    innovation, variance = 1 - alpha_d.square(), scale.square()
    step = mean[:, 1:] - alpha_d * mean[:, :-1]
    later = (variance[:, 1:] + alpha_d.square() * variance[:, :-1] + step.square()) / innovation + innovation.log() - 1
    first = variance[:, 0] + mean[:, 0].square() - 1
    return 0.5 * (first.sum() + later.sum() - variance.log().sum())


def sampled_rate(z: Tensor, mean: Tensor, scale: Tensor, alpha_d: Tensor) -> Tensor:
    """Log q(z | x) − log p(z), summed over the batch."""
    innovation = 1 - alpha_d.square()
    log_q = -0.5 * ((z - mean) / scale).square() - scale.log()
    first = -0.5 * z[:, 0].square()
    later = -0.5 * ((z[:, 1:] - alpha_d * z[:, :-1]).square() / innovation + innovation.log())
    return log_q.sum() - first.sum() - later.sum()


def random_data(spec: ImageSpec, count: int) -> Splits:
    """Noise: what a step costs does not depend on what it sees."""
    split = Split(torch.randint(spec.levels, (count, *spec.shape)).to(torch.uint8))
    return Splits(spec, split, split, split)


def compare(preset: str, config: Config, repeats: int, seed: int) -> dict[str, Any]:
    """One row: median milliseconds of both steps, their difference and ratio."""
    spec, batch = SPECS[preset], config.training.batch
    torch.manual_seed(seed)
    trainer = prepare(config, "cpu", data=random_data(spec, 8 * batch))
    vae = trainer.vae
    hand = HandWritten(copy.deepcopy(vae), spec, config.training)
    times = in_turn(trainer, hand, repeats, seed)
    ours, theirs = median(times[0]), median(times[1])
    return {
        "preset": preset,
        "elbo": config.training.elbo,
        "batch": batch,
        "parameters": sum(p.numel() for p in hand.parameters),
        "pyro_delta_ms": ours,
        "hand_written_ms": theirs,
        "overhead_ms": median(a - b for a, b in zip(*times, strict=True)),
        "ratio": ours / theirs,
        "repeats": repeats,
    }


def in_turn(trainer: Any, hand: HandWritten, repeats: int, seed: int) -> tuple[list[float], list[float]]:
    """Milliseconds of steps of both, which alternate; before that a few from the same noise give the same weights."""
    start = flat(hand.parameters).clone()
    steps = (trainer.train_step, hand.step)
    times: tuple[list[float], list[float]] = ([], [])
    with pyro.validation_enabled(False):
        for step in steps:
            torch.manual_seed(seed)
            for index in range(3):
                step(trainer.batches.batch(index))
        agree(flat(list(trainer.vae.parameters())), flat(hand.parameters), start)
        for index in range(repeats):
            x = trainer.batches.batch(index)
            for which in (0, 1) if index % 2 else (1, 0):
                began = time.perf_counter()
                steps[which](x)
                times[which].append(1000 * (time.perf_counter() - began))
    return times


def flat(parameters: list[Tensor]) -> Tensor:
    """All weights in a row."""
    return torch.cat([p.detach().flatten() for p in parameters])


def agree(ours: Tensor, theirs: Tensor, start: Tensor) -> None:
    """Both steps are the same step, up to the rounding of float32 (Adam enlarges it where gradients are tiny)."""
    apart, moved = (ours - theirs).norm(), (theirs - start).norm()
    if apart > 0.02 * moved:
        raise SystemExit(f"the two steps differ: weights are {apart:.3g} apart after moving by {moved:.3g}")


def main() -> None:
    """Both ELBOs at every size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=sorted(SPECS), default=["digits", "cifar10-small"])
    parser.add_argument("--repeats", type=int, help="pairs of steps (default: 500 for digits, 60 otherwise)")
    parser.add_argument("--batch", type=int, help="default: the preset's")
    add_common_arguments(parser, "step_overhead")
    arguments = parser.parse_args()
    rows = []
    for preset in arguments.presets:
        for elbo in ("trace", "mean_field"):
            settings = [*EAGER, ("training.elbo", elbo), ("training.steps", 100_000), ("training.seed", arguments.seed)]
            if arguments.batch:
                settings.append(("training.batch", arguments.batch))
            repeats = arguments.repeats or (500 if preset == "digits" else 60)
            rows.append(compare(preset, load_preset(preset, settings), repeats, arguments.seed))
    write(arguments.out, arguments.seed, rows)


if __name__ == "__main__":
    main()
