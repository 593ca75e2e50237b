"""What sampling and density of `GaussianAR1` and its KL cost, in units of `randn` and of a copy of the same shape.

One sequence of a million steps shows the passes over memory, with an α whose powers soon are subnormal numbers, too; a
batch of short ones what a call costs, with one α for all and with one for each. Everything is timed in turn, and each
time divided by its unit's in the same round; medians. What counts is the processor time of the one thread, so that
other processes matter less. Validation is off, as in training.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pyro.distributions as dist
import torch
from record import add_common_arguments, write
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_delta.distributions import GaussianAR1

SHARED, SMALL, OWN = "0.5 to 0.95", "0.01", "one a sequence"
CASES = {
    (1, 1_000_000, 1, SHARED): 60,
    (1, 1_000_000, 1, SMALL): 60,
    (64, 32, 4, SHARED): 1000,
    (500, 32, 8, OWN): 200,
}
"""Batch, steps, dimensions, α, and how many rounds."""
UNITS = {"rsample": "randn", "log_prob": "copy", "KL": "copy", "log σ": "copy"}
"""σ's logarithm alone is here because no formula of the KL goes without."""


def tasks(batch: int, length: int, dims: int, alpha: str) -> dict[str, Callable[[], object]]:
    """The units; each operation; and each again with its gradient by all that it depends on."""
    alpha_d = torch.full((dims,), 0.01) if alpha == SMALL else torch.linspace(0.5, 0.95, dims)
    if alpha == OWN:
        alpha_d = alpha_d.repeat(batch, 1)
    z_bnd = torch.randn(batch, length, dims)
    scale_bnd = torch.rand_like(z_bnd) + 0.1
    free = tuple(value.clone().requires_grad_() for value in (alpha_d, z_bnd, scale_bnd))

    def prior(alpha_d: Tensor) -> GaussianAR1:
        return GaussianAR1(alpha_d, length, validate_args=False).expand(torch.Size((batch,)))

    def kl(alpha_d: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        return kl_divergence(dist.Normal(loc, scale, validate_args=False).to_event(2), prior(alpha_d))

    operations: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "rsample": lambda alpha, z, scale: prior(alpha).rsample(),
        "log_prob": lambda alpha, z, scale: prior(alpha).log_prob(z),
        "KL": kl,
        "log σ": lambda alpha, z, scale: scale.log(),
    }
    found: dict[str, Callable[[], object]] = {"copy": z_bnd.clone, "randn": lambda: torch.randn_like(z_bnd)}
    for name, operation in operations.items():
        found[name] = lambda operation=operation: operation(alpha_d, z_bnd, scale_bnd)
        found[f"{name} with gradient"] = lambda operation=operation: torch.autograd.grad(
            operation(*free).sum(), free, allow_unused=True
        )
    return found


def measure(batch: int, length: int, dims: int, alpha: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each operation."""
    timed = tasks(batch, length, dims, alpha)
    times: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(rounds + 3):
        for name, task in timed.items():
            began = time.thread_time()
            task()
            if turn >= 3:  # the first few find their memory
                times[name].append(1000 * (time.thread_time() - began))

    def units(name: str, unit: str) -> float:
        return median(a / b for a, b in zip(times[name], times[unit], strict=True))

    return [
        {
            "batch": batch,
            "n": length,
            "d": dims,
            "alpha": alpha,
            "what": name,
            "ms": median(times[name]),
            "unit": unit,
            "unit_ms": median(times[unit]),
            "units": units(name, unit),
            "units_with_gradient": units(f"{name} with gradient", unit),
            "rounds": rounds,
        }
        for name, unit in UNITS.items()
    ]


def keep_freed_memory() -> None:
    """Has glibc give no freed memory back: the page faults of getting it anew would hide the passes over it."""
    if sys.platform == "linux":
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(option, 1 << 30)


def main() -> None:
    """All cases, on one thread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser, "ar1_speed")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    write(arguments.out, arguments.seed, [row for case, rounds in CASES.items() for row in measure(*case, rounds)])


if __name__ == "__main__":
    main()
