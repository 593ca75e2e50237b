"""The parameter of a prior or of a posterior that commits a wanted rate."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Callable

from pyro_delta.errors import UserError

# The least that Brent's method admits.
_LEAST_RTOL = 4 * sys.float_info.epsilon


def solve_for_rate(
    rate_of: Callable[[float], float], rate: float, what: str, *, most: float = math.nextafter(1.0, 0.0)
) -> float:
    """Solve rate_of(x) = rate for an increasing function on [0, most], by Brent's method to the nearest float.

    Args:
        rate_of: δ in nats as a function of the one parameter x of a prior.
        rate: wanted δ in nats.
        what: whose rate it is, for the message.
        most: largest x; by default the largest correlation below 1.

    Raises:
        UserError: no x in [0, most] commits `rate`; the message names the reachable range.
    """
    from scipy.optimize import brentq  # here, because it takes a while to import

    lowest, highest = rate_of(0.0), rate_of(most)
    # A spread that starts just below 1 sums some rounding: leave 1e-9 at the ends.
    if not lowest * (1 - 1e-9) <= rate <= highest * (1 + 1e-9):
        raise UserError(
            f"a rate of {in_units(rate)} is out of reach; {what} can commit {in_units(lowest)} to {in_units(highest)}."
        )
    if not lowest < rate < highest:
        return 0.0 if rate <= lowest else most
    found = brentq(lambda x: rate_of(x) - rate, 0.0, most, xtol=math.ulp(0.0), rtol=_LEAST_RTOL, maxiter=10_000)
    near = [found]  # it ends within a few floats of the root
    for _ in range(8):
        near = [math.nextafter(near[0], 0.0), *near, math.nextafter(near[-1], most)]
    reached = bisect_left(near, rate, key=rate_of)
    best = min(near[max(reached - 1, 0) : reached + 1], key=lambda x: abs(rate_of(x) - rate))
    if abs(rate_of(best) - rate) > 1e-6 * rate:
        if best < most / 2:
            raise UserError(f"a rate of {in_units(rate)} is too small for float64; ask for 0 or for a higher rate.")
        raise UserError(
            f"a rate of {in_units(rate)} needs an alpha nearer to 1 than float64 can hold; "
            "ask for a lower rate or more dimensions."
        )
    return best


def in_units(rate: float) -> str:
    """A rate in words: nats, and bits."""
    return f"{rate:.6g} nats ({rate / math.log(2):.6g} bits)"
