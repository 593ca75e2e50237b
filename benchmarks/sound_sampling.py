"""Cached against naive sampling: sounds of a fifth of a second from the decoder of the preset `speech`.

Naive sampling runs the network over all samples so far for each new one. Seconds are those of the processor, of one
thread. The sounds of both, from the same noise, are compared in float64, where they must be equal.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from record import add_common_arguments, write
from torch import Tensor

from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data.audio import SoundSpec
from pyro_delta.distributions.sounds import AutoregressiveSound


@torch.no_grad()
def sample_naively(distribution: AutoregressiveSound, uniforms: Tensor) -> Tensor:
    """The sounds, (B, P, S), with a full pass of the network up to the present position for every sample."""
    x_bps = torch.zeros(uniforms.shape[:-1], dtype=torch.int64)
    for position in range(x_bps.shape[1]):
        for sample in range(x_bps.shape[2]):
            parameters_bp = distribution.parameters_at(x_bps[:, : position + 1])[:, position, sample]
            x_bps[:, position, sample] = distribution.pick(parameters_bp, uniforms[:, position, sample])
    return x_bps


def main() -> None:
    """Time both, and compare their sounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sounds", type=int, default=8)
    parser.add_argument("--positions", type=int, default=10, help="of 20 ms")
    parser.add_argument("--repeats", type=int, default=5, help="runs of cached sampling")
    add_common_arguments(parser, "sound_sampling")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    spec = SoundSpec(arguments.positions)
    vae = build(load_preset("speech", [("prior.bitrate", 20.0)]), spec).eval().double()
    with torch.no_grad():
        vae.model.likelihood.network.out.weight.mul_(5)  # what is fresh from its initialisation draws grey noise
        distribution = vae.model.likelihood(vae.model.prior().expand([arguments.sounds]).sample())
    uniforms = distribution.noise(arguments.sounds)
    cached, sounds = [], torch.empty(0)
    for _ in range(arguments.repeats):
        began = time.process_time()
        sounds = distribution.sample(uniforms=uniforms)
        cached.append(time.process_time() - began)
    began = time.process_time()
    equal = torch.equal(sounds, sample_naively(distribution, uniforms))
    naive = time.process_time() - began
    samples = sounds.numel()
    row = {
        "sounds": arguments.sounds,
        "samples_of_a_sound": spec.scored,
        "cached_s": median(cached),
        "samples_a_second": samples / median(cached),
        "naive_s": naive,
        "ratio": naive / median(cached),
        "equal_in_float64": equal,
        "distinct_levels_drawn": sounds.unique().numel(),
    }
    write(arguments.out, arguments.seed, [row])
    if not equal:
        raise SystemExit("cached and naive sampling drew different sounds")


if __name__ == "__main__":
    main()
