"""Text: a training step against hand-written PyTorch, and cached against naive sampling, by the preset `brown`.

The hand-written step runs the same networks (deep copies) on the same batches of random documents, whose lengths are
those of sentences; steps alternate, and before that a few of both from the same noise must give the same weights.
Naive sampling runs the whole network for every token; documents drawn by both from the same noise are compared in
float64, where they must be equal.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from record import add_common_arguments, print_table, save
from step_overhead import EAGER, HandWritten, in_turn
from torch import Tensor

from pyro_delta.api.train import prepare
from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data import Split, Splits
from pyro_delta.data.sequences import TokenSpec
from pyro_delta.distributions.sequences import AutoregressiveTokens

VOCABULARY = 1000


class HandWrittenText(HandWritten):
    """The training step of the preset as tensor formulas: padded batches, KL in closed form."""

    scored: float

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Nats per token of a batch."""
        lengths = batch["lengths"]
        longest = int(lengths.max())
        x_bt = batch["x"][:, :longest].long()
        inside_bn = torch.arange(len(self.scale)) < lengths[:, None]
        mean, raw = self.encoder(batch["x"], lengths).chunk(2, dim=-1)
        scale = self.scale * (F.softplus(raw) / math.log(2)) + 1e-6
        mean, scale = torch.where(inside_bn[..., None], mean, 0.0), torch.where(inside_bn[..., None], scale, 1.0)
        z = torch.where(inside_bn[..., None], mean + scale * torch.randn_like(mean), 0.0)
        log_p = F.log_softmax(self.decoder(x_bt, z), dim=-1).gather(-1, x_bt[..., None])[..., 0]
        distortion = -torch.where(inside_bn[:, :longest], log_p, 0.0).sum()
        return (rate_of_prefixes(mean, scale, self.alpha, inside_bn) + distortion) / (len(x_bt) * self.scored)


def rate_of_prefixes(mean: Tensor, scale: Tensor, alpha_d: Tensor, inside_bn: Tensor) -> Tensor:
    """KL(q ‖ AR(1)) of the steps inside, summed over the batch."""
    innovation, variance = 1 - alpha_d.square(), scale.square()
    step = mean[:, 1:] - alpha_d * mean[:, :-1]
    later = (variance[:, 1:] + alpha_d.square() * variance[:, :-1] + step.square()) / innovation + innovation.log() - 1
    first = variance[:, 0] + mean[:, 0].square() - 1
    total = first.sum() + torch.where(inside_bn[:, 1:, None], later - variance[:, 1:].log(), 0.0).sum()
    return 0.5 * (total - variance[:, 0].log().sum())


def documents(count: int, length: int) -> Splits:
    """Noise of the lengths of sentences: what a step costs does not depend on what it sees."""
    lengths = (torch.distributions.Gamma(2.0, 2 / 28).sample((count,)).long() + 1).clamp_max(length)
    lengths[0] = length
    x = torch.randint(1, VOCABULARY, (count, length))
    inside = torch.arange(1, length + 1) < lengths[:, None]
    split = Split(torch.where(inside, x, 0), None, {"lengths": lengths})
    return Splits(TokenSpec(length, VOCABULARY), split, split, split)


def training_step(repeats: int, seed: int) -> dict[str, Any]:
    """Median milliseconds of both steps, their difference and ratio."""
    config = load_preset("brown", [*EAGER, ("training.steps", 100_000), ("training.seed", seed)])
    torch.manual_seed(seed)
    data = documents(8 * config.training.batch, int(config.data.options["length"]))
    trainer = prepare(config, "cpu", data=data)
    hand = HandWrittenText(copy.deepcopy(trainer.vae), data.spec, config.training)
    hand.scored = data.train.extras["lengths"].double().mean().item()
    times = in_turn(trainer, hand, repeats, seed)
    ours, theirs = median(times[0]), median(times[1])
    # Batches differ in length: the ratio is that of pairs.
    ratio = median(a / b for a, b in zip(*times, strict=True))
    return {"pyro_delta_ms": ours, "hand_written_ms": theirs, "ratio": ratio, "pairs": repeats}


@torch.no_grad()
def naive(p: AutoregressiveTokens, uniforms_bt: Tensor, tokens: int) -> Tensor:
    """The first tokens, (B, tokens), with a pass of the network over all T for each."""
    x_bt = torch.zeros(uniforms_bt.shape, dtype=torch.int64)
    for t in range(tokens):
        x_bt[:, t] = p.pick(p.parameters_at(x_bt)[:, t], uniforms_bt[:, t])
    return x_bt[:, :tokens]


@torch.no_grad()
def sampling(count: int, tokens: int, timed: int, repeats: int, seed: int) -> dict[str, Any]:
    """Seconds of both, their ratio, and whether they drew the same documents; no document ends early."""
    spec = TokenSpec(tokens, VOCABULARY)
    torch.manual_seed(seed)
    vae = build(load_preset("brown"), spec).eval()
    p = vae.model.likelihood(vae.model.prior().expand([count]).sample())
    uniforms = p.noise(count)
    p.sample(uniforms=uniforms)  # the first run warms up
    cached = []
    for repeat in range(repeats):
        if repeat == repeats // 2:  # in between, so that a machine that slows down slows down both
            began = time.perf_counter()
            naive(p, uniforms, timed)
            slow = (time.perf_counter() - began) * tokens / timed
        began = time.perf_counter()
        p.sample(uniforms=uniforms)
        cached.append(time.perf_counter() - began)
    vae.double()
    p = vae.model.likelihood(vae.model.prior().expand([2]).sample())
    uniforms = p.noise(2)
    equal = torch.equal(p.sample(uniforms=uniforms), naive(p, uniforms, tokens))
    return {
        "documents": count,
        "tokens": tokens,
        "cached_s": median(cached),
        "naive_s": slow,
        "naive_tokens_timed": timed,
        "ratio": slow / median(cached),
        "equal_in_float64": equal,
    }


def main() -> None:
    """The step, then samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100, help="pairs of steps")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument(
        "--naive-tokens", type=int, default=16, help="tokens drawn naively; their passes all cost alike"
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of cached sampling")
    add_common_arguments(parser, "text_speed")
    arguments = parser.parse_args()
    step = training_step(arguments.pairs, arguments.seed)
    drawn = sampling(arguments.documents, arguments.tokens, arguments.naive_tokens, arguments.repeats, arguments.seed)
    print_table([step])
    print_table([drawn])
    save(arguments.out, arguments.seed, [{"what": "training step", **step}, {"what": "sampling", **drawn}])
    if not drawn["equal_in_float64"]:
        raise SystemExit("cached and naive sampling drew different documents")


if __name__ == "__main__":
    main()
