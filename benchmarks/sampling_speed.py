"""Cached against naive sampling: 16 images of 32×32×3 from the decoders of shipped presets.

Naive sampling runs the whole network for every pixel. Its passes all cost the same, so with `--naive-rows R` only the
first R rows are timed and scaled by 32/R; the default times all of them. The pictures of both, from the same noise, are
compared in float64, where they must be equal.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import torch
from record import add_common_arguments, write
from torch import Tensor

from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data.images import ImageSpec
from pyro_delta.distributions import AutoregressiveImage
from pyro_delta.vae import VAE

SPEC = ImageSpec(3, 32, 32, 256)


def conditioned(vae: VAE, images: int) -> tuple[AutoregressiveImage, Tensor]:
    """p(x | z) for z from the prior, and the noise of all pixels."""
    z_bnd = vae.model.prior().expand([images]).sample()
    return vae.model.likelihood(z_bnd), torch.rand(images, SPEC.height, SPEC.width, 1 + SPEC.channels).to(z_bnd)


@torch.no_grad()
def sample_rows_naively(distribution: AutoregressiveImage, uniforms: Tensor, rows: int) -> Tensor:
    """The first rows, (B, C, rows, W), with a full pass of the network for every pixel."""
    x_bchw = torch.zeros((*distribution.batch_shape, *SPEC.shape), dtype=torch.int64)
    for row in range(rows):
        for column in range(SPEC.width):
            pixel = distribution._pixels(distribution.parameters_at(x_bchw)[:, row, column])
            x_bchw[:, :, row, column] = pixel.sample_with(uniforms[:, row, column])
    return x_bchw[:, :, :rows]


def vae_of(preset: str) -> VAE:
    """Model and guide of a preset, as trained ones would draw."""
    vae = build(load_preset(preset), SPEC)
    # A decoder fresh from its initialisation draws grey noise; spread its outputs as training would.
    with torch.no_grad():
        vae.model.likelihood.network.trunk.out.weight.mul_(5)
    return vae.eval()


def compare(preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: seconds of both, their ratio, and whether they drew the same pictures."""
    rows = arguments.naive_rows
    torch.manual_seed(arguments.seed)
    vae = vae_of(preset)
    with torch.no_grad():
        distribution, uniforms = conditioned(vae, arguments.images)
        distribution.sample(uniforms=uniforms)  # the first run warms up
        cached = []
        for repeat in range(arguments.repeats):
            if repeat == arguments.repeats // 2:  # in between, so that a machine that slows down slows down both
                began = time.perf_counter()
                sample_rows_naively(distribution, uniforms, rows)
                naive = (time.perf_counter() - began) * SPEC.height / rows
            began = time.perf_counter()
            distribution.sample(uniforms=uniforms)
            cached.append(time.perf_counter() - began)

        vae.double()
        distribution, uniforms = conditioned(vae, arguments.equal_images)
        pictures = distribution.sample(uniforms=uniforms)[:, :, :rows]
        equal = torch.equal(pictures, sample_rows_naively(distribution, uniforms, rows))
    return {
        "preset": preset,
        "likelihood": load_preset(preset).likelihood.program,
        "images": arguments.images,
        "decoder_parameters": sum(p.numel() for p in vae.model.likelihood.parameters()),
        "cached_s": median(cached),
        "naive_s": naive,
        "naive_rows_timed": rows,
        "ratio": naive / median(cached),
        "equal_in_float64": equal,
        "images_compared": arguments.equal_images,
        "distinct_levels_drawn": pictures.unique().numel(),
    }


def main() -> None:
    """Time both, then compare their pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["cifar10-small", "cifar10-pixelsnail"])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7, help="runs of cached sampling")
    parser.add_argument("--naive-rows", type=int, default=SPEC.height, help="rows drawn naively")
    parser.add_argument("--equal-images", type=int, default=2, help="pictures compared in float64")
    add_common_arguments(parser, "sampling_speed")
    arguments = parser.parse_args()
    rows = [compare(preset, arguments) for preset in arguments.presets]
    write(arguments.out, arguments.seed, rows)
    if not all(row["equal_in_float64"] for row in rows):
        raise SystemExit("cached and naive sampling drew different pictures")


if __name__ == "__main__":
    main()
