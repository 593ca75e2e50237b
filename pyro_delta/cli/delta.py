"""`pyro-delta delta`: the rate that an AR(1) prior commits, or the α that commits a wanted rate."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

OF_DELTA = (
    "δ in nats of one latent dimension against |α|, for several lengths n; dots are the dimensions of this prior."
)
OF_MODES = "What each mode of the prior tells ideally, its price above δ, and what is paid for nothing, in nats."
"""Captions of the figures."""


@click.command()
@click.option("--length", type=int, required=True, help="Number of latent steps n.")
@click.option("--dims", type=int, required=True, help="Number of latent dimensions d.")
@click.option("--alpha", metavar="SPEC", help="One number, LO:HI for a linear spread, or d numbers with commas.")
@click.option("--rate-bits", type=float, help="Solve for the alpha that commits this many bits in all.")
@click.option("--bitrate", type=float, help="The same in bits a second, of data of so many --seconds.")
@click.option("--seconds", type=float, help="That the steps last, to give the rate in bits a second too.")
@click.option("--spread", type=float, metavar="LO", help="With --rate-bits: spread alpha linearly, from LO up.")
@click.option("--shape", metavar="CxHxW", help="Shape of the data, to give the rate in bits/dim too.")
@click.option("--modes", "with_modes", is_flag=True, help="What the rate can carry, and at what price.")
@click.option("--plot", metavar="FILE", help="Draw the rate against alpha, or the modes, into FILE (.png, .pdf, .svg).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def delta(
    length: int,
    dims: int,
    alpha: str | None,
    rate_bits: float | None,
    bitrate: float | None,
    seconds: float | None,
    spread: float | None,
    shape: str | None,
    with_modes: bool,
    plot: str | None,
    as_json: bool,
) -> None:
    """Committed rate of an AR(1) prior over LENGTH steps and DIMS dimensions.

    No posterior that is independent over steps and dimensions has a KL below it.

    \b
    pyro-delta delta --length 32 --dims 8 --alpha 0.5:0.95 --shape 3x32x32
    pyro-delta delta --length 32 --dims 8 --rate-bits 79.44 --spread 0.5
    pyro-delta delta --length 32 --dims 4 --alpha 0.9 --modes
    pyro-delta delta --length 80 --dims 4 --bitrate 30 --seconds 1.6
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.errors import UserError
    from pyro_delta.hub import check_no_place
    from pyro_delta.rate import ar1_committed_rate, parse_alpha, rate_of_bitrate

    if plot is not None:
        check_no_place(plot)
    if seconds is not None and not 0 < seconds < math.inf:
        raise UserError(f"--seconds {seconds:g} is no time; give a number above 0.")
    if bitrate is not None:
        if seconds is None or rate_bits is not None:
            raise UserError("--bitrate goes with --seconds, and stands in the place of --rate-bits.")
        rate_bits = rate_of_bitrate(bitrate, seconds, length, dims) / math.log(2)
    if (alpha is None) == (rate_bits is None):
        raise UserError("give exactly one of --alpha and --rate-bits (or --bitrate).")
    if rate_bits is None:
        if spread is not None:
            raise UserError(f"--spread {spread:g} goes with --rate-bits; write --alpha LO:HI for a given spread.")
        alpha_d = parse_alpha(str(alpha), dims)
    else:
        alpha_d = _alpha_for_bits(rate_bits, length, dims, spread)
    values = 0 if shape is None else _values_in(shape)

    nats = ar1_committed_rate(alpha_d, length).item()
    result: dict[str, Any] = {"delta_nats": nats, "delta_bits": nats / math.log(2), "alpha": alpha_d}
    if values:
        result["delta_bits_per_dim"] = nats / math.log(2) / values
    if seconds is not None:
        limit = dims * max(0, length - 2) / (2 * seconds)
        result |= {"delta_bits_per_second": nats / math.log(2) / seconds, "limit_bits_per_second": limit}
    if with_modes:
        import torch

        from pyro_delta.distributions import GaussianAR1
        from pyro_delta.rate import modes

        found = modes(GaussianAR1(torch.tensor(alpha_d, dtype=torch.float64), length))
        result |= {
            "least_mode": found.least.item(),
            "ideal_nats": found.ideal_nats.item(),
            "excess_nats": found.excess_nats.item(),
            "waste_nats": found.waste_nats.item(),
        }
    if plot is not None:
        from pyro_delta.data.captions import describe
        from pyro_delta.report.delta_figure import delta_figure, modes_figure, save_figure

        save_figure(plot, modes_figure(found, nats) if with_modes else delta_figure(alpha_d, length))
        caption = OF_MODES if with_modes else OF_DELTA
        if Path(plot).suffix.lower() == ".png":
            describe(Path(plot), caption)
        result["caption"] = caption
    if as_json:
        click.echo(json.dumps(result))
    else:
        _print_table(result, length)
        if plot is not None:
            click.echo(f"{plot}: {caption}")


def _alpha_for_bits(rate_bits: float, length: int, dims: int, spread: float | None) -> list[float]:
    from pyro_delta.rate import alpha_for_rate, spread_for_rate

    rate = rate_bits * math.log(2)
    if spread is None:
        return [alpha_for_rate(rate, length, dims)] * dims
    return spread_for_rate(rate, length, dims, spread)


def _values_in(shape: str) -> int:
    """Number of values in data of a shape written 3x32x32."""
    from pyro_delta.errors import UserError

    sides = shape.lower().split("x")
    if not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UserError(f"cannot read the shape {shape!r}; write whole numbers with x between them, such as 3x32x32.")
    return math.prod(int(side) for side in sides)


def _print_table(result: dict, length: int) -> None:
    from rich.console import Console
    from rich.table import Table

    alpha_d = result["alpha"]
    few = alpha_d if len(alpha_d) <= 8 else [*alpha_d[:3], None, *alpha_d[-3:]]
    table = Table(title=f"AR(1) prior, n = {length}, d = {len(alpha_d)}", show_header=False)
    table.add_row("committed rate δ", f"{result['delta_nats']:.4f} nats")
    table.add_row("", f"{result['delta_bits']:.4f} bits")
    if "delta_bits_per_dim" in result:
        table.add_row("", f"{result['delta_bits_per_dim']:.6f} bits/dim")
    if "delta_bits_per_second" in result:
        table.add_row("", f"{result['delta_bits_per_second']:.4f} bits/second")
        table.add_row("½ bit per inner step and dimension", f"{result['limit_bits_per_second']:.4f} bits/second")
    if len(set(alpha_d)) == 1:
        table.add_row("α", f"{alpha_d[0]:.6g} in every dimension")
    else:
        table.add_row("α", " ".join("…" if a is None else f"{a:.4f}" for a in few))
    if "ideal_nats" in result:
        table.add_row("tells ideally", f"{result['ideal_nats']:.4g} nats")
        table.add_row("at a rate above δ of", f"{result['excess_nats']:.4g} nats")
        table.add_row("of δ tells nothing", f"{result['waste_nats']:.4g} nats")
        table.add_row("least mode", f"{result['least_mode']:.4g}")
    Console().print(table)
