"""What a run draws, as its page shows it: samples, decodings, completions, paths, and ways along slow modes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pyro_delta.data.condition import condition_of
from pyro_delta.data.series import SeriesSpec
from pyro_delta.data.splits import Split
from pyro_delta.diagnostics.bounds import Encoding
from pyro_delta.diagnostics.drawing import continuations, decode, draw, extras_of, is_told, paths, reconstructions
from pyro_delta.diagnostics.series.completing import second_halves
from pyro_delta.diagnostics.steps import slowest_modes
from pyro_delta.diagnostics.trace import prior as prior_of
from pyro_delta.errors import UserError
from pyro_delta.inference.run import Run, is_control
from pyro_delta.protocol import Data
from pyro_delta.report.shown import Shown, is_sheet, shown_data

SHIFTS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Of latents, in standard deviations of the prior."""
TRAVERSED = 4
"""Modes or dimensions, at most, along which they are shifted."""
COMPLETED, PARTICLES, PARTICLES_OF_SERIES = 4, 64, 512
"""Data whose first half is kept, and particles of each: of series, half of which come from the guide."""


def drawn(run: Run, data: Data, encoding: Encoding, part: Split, seed: int) -> Iterator[Shown]:
    """Samples and the like, where the programs can be asked for them; of a control nothing that is about z.

    Args:
        run: to draw from.
        data: of the run.
        encoding: of `part`.
        part: test data.
        seed: of all noise.
    """
    if len(encoding.z) > 1 or not hasattr(run.vae.model, "likelihood"):
        return
    vae, spec = run.vae, run.spec
    told = is_told(vae, spec) or condition_of(spec) is not None

    def extras(count: int) -> Mapping[str, Tensor] | None:
        return extras_of(data.test, count) if told else None

    few = data.test.take(slice(8))
    column = "column" if is_sheet(spec) else "group"
    samples = draw(vae, 16, seed=seed, extras=extras(16))
    if is_control(run.config):
        yield from shown_data(spec, samples, 8, "Drawn from the model, whose decoder does not hear z.")
        yield from _continued(run, data, column, seed)
        return
    yield from shown_data(spec, samples, 8, "Drawn from the prior.")
    yield from shown_data(
        spec,
        draw(vae, 8, decodings=3, seed=seed, extras=extras(8)),
        8,
        f"Drawn from the prior, each {column} with one z.",
        down=True,
    )
    yield from shown_data(
        spec,
        reconstructions(vae, few, 3, seed=seed),
        len(few),
        f"Test data, first in each {column}, and what the decoder makes of a sample of their latents: what z says "
        "comes again and again.",
        down=True,
    )
    yield from _continued(run, data, column, seed)
    yield from shown_data(
        spec,
        paths(vae, data.test.take(slice(6)), 6, seed=seed),
        8,
        "From the latents of one test datum to another's; at the ends the data themselves.",
    )
    if (moved := _moved(run, encoding, part)) is not None:
        z_bnd, along = moved
        extras_b = part.take(torch.zeros(len(z_bnd), dtype=torch.int64)).extras
        x = decode(vae, z_bnd, same_noise=True, seed=seed, extras=extras_b)
        caption = f"One test datum's latents {along}, the decoder's noise the same."
        yield from shown_data(spec, x, len(SHIFTS), caption)


def _continued(run: Run, data: Data, column: str, seed: int) -> Iterator[Shown]:
    """Test data, and how they may go on after their first half, where the decoder draws number after number."""
    few = data.test.take(slice(COMPLETED))
    better = isinstance(run.spec, SeriesSpec)
    particles = PARTICLES_OF_SERIES if better else PARTICLES
    try:
        found = (second_halves if better else continuations)(run.vae, few, particles=particles, seed=seed)
    except UserError:
        return
    sizes = ", ".join(f"{size:.1f}" for size in found.effective_sample_sizes)
    half = "upper rows" if getattr(run.spec, "place", "") == "row" else "first positions"
    caption = (
        f"Test data, first in each {column}, and two ways in which their first half ({half}) may go on: exact draws as "
        f"particles grow in number; of {particles} here, {sizes} count. Where that is near 1, both have one z."
    )
    yield from shown_data(run.spec, found.x, len(few), caption, down=True)


def _moved(run: Run, encoding: Encoding, part: Split) -> tuple[Tensor, str] | None:
    """A datum's latents along the prior's slowest modes, or else along dimensions, and in words; None if it has none.

    Of dimensions, those with the largest rate.
    """
    mean = next(iter(encoding.mean.values()), None)
    if mean is None or mean.dim() != 3:
        return None
    try:
        directions = slowest_modes(prior_of(run.vae, 1, part.take(slice(1)).extras), TRAVERSED)
    except (UserError, RuntimeError):  # the latter of weights that have diverged
        directions = torch.zeros(0)
    deviations = f"by {SHIFTS[0]:g} … {SHIFTS[-1]:g} standard deviations of the prior".replace("-", "−")
    if len(directions):
        modes = f"{len(directions)} slowest modes" if len(directions) > 1 else "slowest mode"
        along = f"moved along the {modes} of the prior, a row for each, {deviations}"
    else:
        rate_d = encoding.rate_per_dimension
        order = list(range(mean.shape[-1])) if rate_d is None else rate_d.argsort(descending=True).tolist()
        chosen = sorted(order[:TRAVERSED])
        directions = torch.zeros(len(chosen), *mean.shape[1:])
        directions[range(len(chosen)), :, chosen] = 1.0
        along = (
            f"with all steps of a dimension shifted {deviations}; dimensions {', '.join(str(k + 1) for k in chosen)}"
        )
    shift_s = torch.tensor(SHIFTS, dtype=mean.dtype)
    moved = mean[0] + directions.to(mean.dtype)[:, None] * shift_s[:, None, None]
    return moved.flatten(0, 1), along
