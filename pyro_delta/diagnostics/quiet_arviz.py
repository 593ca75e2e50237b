"""ArviZ of both kinds, the package up to 0.23 and its split into several from 1 on: nothing else asks which it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray


def load_arviz() -> Any:
    """The module `arviz`, without the announcement that 0.23 makes on import, once a day, to whoever runs a command."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def _is_split(arviz: Any) -> bool:
    """Whether it is ArviZ 1, whose data are an `xarray.DataTree`."""
    return int(arviz.__version__.partition(".")[0]) >= 1


def as_arviz(
    groups: Mapping[str, Mapping[str, np.ndarray]], coords: Mapping[str, Sequence[Any]], dims: Mapping[str, list[str]]
) -> Any:
    """Arrays as ArviZ has them.

    Args:
        groups: name → variables of the group; those of `posterior` begin with chain and draw.
        coords: axis → labels.
        dims: variable → names of its axes, without chain and draw.

    Returns:
        an `xarray.DataTree` with ArviZ 1, an `arviz.InferenceData` with one before.
    """
    arviz = load_arviz()
    make = arviz.from_dict
    return make(groups, coords=coords, dims=dims) if _is_split(arviz) else make(**groups, coords=coords, dims=dims)


def as_tree(data: Any) -> xarray.DataTree:
    """What `as_arviz` gives, as xarray has it."""
    import xarray  # here, because it takes a while to import, and few commands need it

    return data if isinstance(data, xarray.DataTree) else xarray.DataTree.from_dict(dict(data.items()))


def pareto_k(log_weights: np.ndarray) -> np.ndarray:
    """Shape k̂ of the Pareto distribution that fits the largest of every K log weights (N, K): (N,).

    Where none can be fitted, it is inf: the largest are equal, or too far apart for their exponentials.
    """
    arviz = load_arviz()
    if not _is_split(arviz):
        return np.asarray(arviz.psislw(log_weights)[1])
    from arviz_stats.base import array_stats

    k = np.full(len(log_weights), np.nan)
    for row, log_weight in enumerate(log_weights):
        with suppress(ValueError):  # of equal weights
            k[row] = array_stats.psislw(-log_weight)[1]  # of the log likelihoods that importance weights divide by
    return np.where(np.isnan(k), np.inf, k)
