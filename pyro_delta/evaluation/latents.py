"""Latents of given images: posteriors for ArviZ, and paths between two latent sequences."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_delta.build import Programs
from pyro_delta.distributions.any_gaussian import as_gaussian
from pyro_delta.evaluation.bound import batches, evaluating, ignore
from pyro_delta.evaluation.quiet_arviz import load_arviz
from pyro_delta.files import written_whole


@torch.no_grad()
def posterior_data(
    programs: Programs,
    images: Tensor,
    *,
    draws: int = 1,
    names: Sequence[str] | None = None,
    batch: int = 100,
    seed: int = 0,
    advance: Callable[[int], None] = ignore,
) -> Any:
    """Posterior means, scales and samples of images as an ArviZ `InferenceData`.

    Args:
        programs: of which the guide is used.
        images: (N, C, H, W) uint8.
        draws: samples of each posterior.
        names: of the images, as a coordinate.
        batch: images at a time.
        seed: of the samples.
        advance: called with the number of images just done.

    Returns:
        group `posterior` with `z` (chain 1, draw, image, step, dim); group `constant_data` with `z_mean` and `z_scale`
        (image, step, dim) and `first_row` (step).
    """
    parts = []
    with evaluating(programs, seed):
        for x in batches(images, batch, programs):
            q = programs.guide.posterior(x)
            parts.append((q.rsample((draws,)).cpu(), q.mean.cpu(), q.stddev.cpu()))
            advance(len(x))
    z_sbnd = torch.cat([z for z, _, _ in parts], dim=1)
    mean_bnd, scale_bnd = (torch.cat([part[i] for part in parts]) for i in (1, 2))
    names = names or [str(i) for i in range(len(images))]
    return load_arviz().from_dict(
        posterior={"z": z_sbnd[None].numpy()},
        constant_data={
            "z_mean": mean_bnd.numpy(),
            "z_scale": scale_bnd.numpy(),
            "first_row": programs.model.prior.first_row.cpu().numpy(),
        },
        coords={"image": list(names)},
        dims={
            "z": ["image", "step", "dim"],
            "z_mean": ["image", "step", "dim"],
            "z_scale": ["image", "step", "dim"],
            "first_row": ["step"],
        },
    )


def save_netcdf(data: Any, path: Path) -> None:
    """Writes an `InferenceData`, whole or not at all."""
    # By way of memory, for HDF5 does not survive a full disk: it crashes when it closes what it could not write.
    whole, tree = io.BytesIO(), data.to_datatree()
    compressed = {node.path: {name: {"zlib": True} for name in node.data_vars} for node in tree.leaves}
    tree.to_netcdf(whole, engine="h5netcdf", encoding=compressed)
    with written_whole(path) as file:
        file.write(whole.getbuffer())


@torch.no_grad()
def interpolate(prior: Distribution, start_nd: Tensor, end_nd: Tensor, steps: int) -> Tensor:
    """Spherical interpolation between two latent sequences in the prior's whitened noise, (steps, n, d).

    With Λ = L Lᵀ, ε = Lᵀ(z − m) is standard normal; the path keeps to the shells that prior samples lie on, which a
    straight line leaves. Which root L is taken makes no difference: it turns ε, and angles with it, as a whole.

    Args:
        prior: Gaussian, event shape (n, d).
        start_nd: where the path begins.
        end_nd: where it ends.
        steps: points of the path, both ends included, 2 or more.

    Raises:
        UserError: if the prior is not Gaussian.
    """
    gaussian = as_gaussian(prior)
    root = torch.linalg.cholesky(gaussian.precision)
    ends = torch.stack((start_nd, end_nd)).double().flatten(1) - gaussian.mean
    a, b = ends @ root
    angle = torch.acos(torch.clamp(a @ b / (a.norm() * b.norm()), -1.0, 1.0))
    part = torch.linspace(0, 1, steps, dtype=torch.float64, device=a.device)[:, None]
    if angle < 1e-6:  # as good as a straight line, which has no 0/0
        path = (1 - part) * a + part * b
    else:
        path = (torch.sin((1 - part) * angle) * a + torch.sin(part * angle) * b) / torch.sin(angle)
    z = torch.linalg.solve_triangular(root.mT, path.mT, upper=True).mT + gaussian.mean
    return z.reshape(steps, *start_nd.shape).to(start_nd.dtype)
