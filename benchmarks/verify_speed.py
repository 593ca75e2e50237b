"""How long a certificate takes: `verify` of shipped presets for 32×32×3 images, batch of the preset, both in turn."""

from __future__ import annotations

import argparse
import time

import torch
from record import add_common_arguments, timings, write

from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data.images import ImageSpec
from pyro_delta.diagnostics.verify import verify

SPEC = ImageSpec(3, 32, 32, 256)


def main() -> None:
    """Verify each preset a few times, in turn; every certificate must hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["cifar10-small", "cifar10-pixelsnail"])
    parser.add_argument("--repeats", type=int, default=3)
    add_common_arguments(parser, "verify_speed")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {preset: [] for preset in arguments.presets}
    for _ in range(arguments.repeats):
        for preset in arguments.presets:
            config = load_preset(preset)
            torch.manual_seed(arguments.seed)
            vae = build(config, SPEC)
            began = time.perf_counter()
            certificate = verify(vae, SPEC, arguments.seed, batch=config.training.batch)
            times[preset].append(time.perf_counter() - began)
            if certificate.delta_nats is None:
                raise SystemExit(f"{preset}: {certificate.failure or certificate.lack}")
    write(arguments.out, arguments.seed, timings("preset", times))


if __name__ == "__main__":
    main()
