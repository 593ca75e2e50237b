"""Latents of given data: posteriors for ArviZ, and paths between two latent sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_delta.data.condition import KEY, Condition
from pyro_delta.data.splits import size_of
from pyro_delta.data.tensors import as_split
from pyro_delta.diagnostics.bounds import ignore
from pyro_delta.diagnostics.quiet_arviz import as_arviz
from pyro_delta.diagnostics.trace import batches, evaluating, posteriors
from pyro_delta.distributions.any_gaussian import as_gaussian
from pyro_delta.protocol import Advance
from pyro_delta.vae import VAE


@torch.no_grad()
def posterior_data(
    vae: VAE,
    data: Any,
    *,
    draws: int = 1,
    names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    condition: Condition | None = None,
    starts: Tensor | None = None,
    batch: int = 100,
    seed: int = 0,
    advance: Advance = ignore,
) -> Any:
    """Posterior means, scales and samples of data for ArviZ.

    Args:
        vae: of which the guide is used.
        data: a split, or a tensor (N, …).
        draws: samples of each posterior.
        names: of the data, as a coordinate; those of the split where None, or else their numbers.
        classes: names of their labels; numbers stand for those that have none.
        condition: of the data's spec, which says what numbers and classes of the key `condition` are.
        starts: (n,) of the prior, kept beside the latents.
        batch: data at a time.
        seed: of the samples.
        advance: called with the number of data just done.

    Returns:
        an `arviz.InferenceData`, or with ArviZ 1 an `xarray.DataTree`: group `posterior` with each latent site, such as
        `z` (chain 1, draw, datum, step, dim); group `constant_data` with its `z_mean` and `z_scale` (datum, step, dim),
        `starts` (step) and, of data that have some, `label`, `length` and `condition` (datum). Where data have lengths,
        steps that begin behind the end of one are NaN: they are padding, and say nothing.
    """
    split = as_split(data)
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    with evaluating(vae, seed):
        for x in batches(split, batch, vae):
            for name, site in posteriors(vae, x).items():
                z = site.q.rsample((draws,)) if site.q.has_rsample else site.q.sample((draws,))
                parts.setdefault(name, []).append((z.cpu(), site.q.mean.cpu(), site.q.stddev.cpu()))
            advance(size_of(x))
    posterior, constant, dims = {}, {}, {}
    for name, part in parts.items():
        posterior[name] = torch.cat([z for z, _, _ in part], dim=1)[None].numpy()
        axes = ["datum", *(("step", "dim") if posterior[name].ndim == 5 else _axes(name, posterior[name].ndim - 3))]
        dims[name] = axes
        for number, what in enumerate(("mean", "scale"), 1):
            constant[f"{name}_{what}"] = torch.cat([values[number] for values in part]).numpy()
            dims[f"{name}_{what}"] = axes
    lengths = split.extras.get("lengths")
    if lengths is not None and lengths.dim() == 1:
        constant["length"], dims["length"] = lengths.cpu().numpy(), ["datum"]
        if starts is not None:
            _blank_padding([*posterior.values(), *constant.values()], starts.cpu().numpy(), constant["length"])
    if KEY in split.extras:
        constant[KEY] = _in_own_terms(split.extras[KEY].cpu(), condition)
        dims[KEY] = ["datum", *_axes(KEY, constant[KEY].ndim - 1)]
    if starts is not None:
        constant["starts"], dims["starts"] = starts.cpu().numpy(), ["step"]
    if split.labels is not None:
        labels = split.labels.tolist()
        constant["label"] = np.array([str(label) if classes is None else classes[label] for label in labels])
        dims["label"] = ["datum"]
    known = getattr(split, "names", None) if names is None else names
    coords = {"datum": [str(i) for i in range(len(split))] if known is None else list(known)}
    return as_arviz({"posterior": posterior, "constant_data": constant}, coords, dims)


def _in_own_terms(values: Tensor, condition: Condition | None) -> np.ndarray:
    """Classes by their names, numbers in their own units, where a condition says them."""
    if condition is None:
        return values.numpy()
    return np.array(condition.classes)[values] if condition.classes else condition.numbers(values).numpy()


def _blank_padding(arrays: list[np.ndarray], starts: np.ndarray, lengths: np.ndarray) -> None:
    """NaN, in place, at steps that begin behind the end of their datum, of arrays (…, N, n, d)."""
    outside_bn = starts >= lengths[:, None]
    for values in arrays:
        if values.ndim >= 3 and values.shape[-3:-1] == outside_bn.shape:
            values[..., outside_bn, :] = np.nan


def _axes(name: str, count: int) -> list[str]:
    return [f"{name}_axis_{i}" for i in range(count)]


@torch.no_grad()
def interpolate(prior: Distribution, start_nd: Tensor, end_nd: Tensor, steps: int) -> Tensor:
    """Spherical interpolation between two latent sequences in the prior's whitened noise, (steps, n, d).

    With Λ = L Lᵀ, ε = Lᵀ(z − m) is standard normal; the path keeps to the shells that prior samples lie on, which a
    straight line leaves. Which root L is taken makes no difference: it turns ε, and angles with it, as a whole.

    Args:
        prior: Gaussian, event shape (n, d), of one sequence: batch shape () or (1,).
        start_nd: where the path begins.
        end_nd: where it ends.
        steps: points of the path, both ends included, 2 or more.

    Raises:
        UserError: if the prior is not Gaussian.
    """
    gaussian, size = as_gaussian(prior), start_nd.numel()
    mean, root = gaussian.mean.reshape(size), torch.linalg.cholesky(gaussian.precision.reshape(size, size))
    ends = torch.stack((start_nd, end_nd)).double().flatten(1) - mean
    a, b = ends @ root
    angle = torch.acos(torch.clamp(a @ b / (a.norm() * b.norm()), -1.0, 1.0))
    part = torch.linspace(0, 1, steps, dtype=torch.float64, device=a.device)[:, None]
    if angle < 1e-6:  # as good as a straight line, which has no 0/0
        path = (1 - part) * a + part * b
    else:
        path = (torch.sin((1 - part) * angle) * a + torch.sin(part * angle) * b) / torch.sin(angle)
    z = torch.linalg.solve_triangular(root.mT, path.mT, upper=True).mT + mean
    return z.reshape(steps, *start_nd.shape).to(start_nd.dtype)
