"""What latents buy: a model against the same decoder without them, datum by datum."""

from __future__ import annotations

import torch

from pyro_delta.diagnostics.bounds import Encoding, Line, Unit, encode, ignore, standard_error
from pyro_delta.diagnostics.usage import shuffled_gap
from pyro_delta.errors import UserError
from pyro_delta.protocol import Advance, Split
from pyro_delta.vae import VAE

PROBED = 100
"""Data that must not notice another z."""


def bought(
    encoding: Encoding, control: VAE, split: Split, unit: Unit, *, seed: int = 0, advance: Advance = ignore
) -> Line:
    """How much lower distortion and −ELBO are than −log p(x) of a model whose decoder ignores z, in nats, paired.

    The control pays no rate: p(x | z) = p(x), whatever its guide does.

    Args:
        encoding: of the data, by the model.
        control: a model without latents and its guide.
        split: the same data.
        unit: of bounds.
        seed: of the control's own samples, which change nothing.
        advance: called with the number of data just done.

    Raises:
        UserError: if the control's decoder changes with z, or its training has diverged.
    """
    first = split.take(slice(PROBED))
    gap = shuffled_gap(control, first, encode(control, first, seed=seed), seed=seed)
    if not gap.isfinite().all():
        raise UserError("the control's numbers are not finite: its training diverged; train it again with a lower lr.")
    if (gap != 0).any():
        raise UserError(
            "the control's decoder changes with z; give a run without latents, as `train --control` or "
            "--set likelihood.use_latents=false makes one."
        )
    without = encode(control, split, seed=seed, advance=advance).distortion
    numbers: Line = {"control_bpd": unit.bits(without.mean().item())}
    numbers["control_bpd_se"] = standard_error(without) * unit.per_number
    for name, loss in (("bought", encoding.distortion), ("net_bought", encoding.distortion + encoding.rate)):
        gain: torch.Tensor = without - loss
        numbers |= {f"{name}_nats": gain.mean().item(), f"{name}_nats_se": standard_error(gain)}
    return numbers
