"""Values that a spec admits: made up, put in the place of others, and read from files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_delta.data.condition import some_conditions
from pyro_delta.errors import UserError
from pyro_delta.files import NO_ARRAYS
from pyro_delta.protocol import Batch, Spec


def dtype_of(spec: Spec) -> torch.dtype:
    """The type that data of a spec are held in."""
    name = getattr(spec, "dtype", "float32" if spec.levels is None else "int64")
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(
            f"the spec {type(spec).__name__} has dtype {name!r}; give the name of a torch type, like 'uint8'."
        )
    return dtype


def blank(spec: Spec, count: int) -> Batch:
    """`count` data of zeros, with what they are conditioned on, if they are."""
    x, told = torch.zeros(count, *spec.shape, dtype=dtype_of(spec)), some_conditions(spec, count)
    return {"x": x, **told} if told else x


def random_values(spec: Spec, count: int) -> Tensor:
    """`count` data of any values: integers all alike, real numbers from N(0, 1), from torch's random state."""
    if spec.levels is None:
        return torch.randn(count, *spec.shape)
    return torch.randint(spec.levels, (count, *spec.shape)).to(dtype_of(spec))


def checked(spec: Spec, x: Any, name: str) -> Tensor:
    """Data (N, *shape) as a tensor of the spec's type.

    Raises:
        UserError: if shape or values are others than the spec's.
    """
    x = torch.as_tensor(x)
    if tuple(x.shape[1:]) != tuple(spec.shape) or x.dim() != 1 + len(spec.shape):
        raise UserError(f"{name} has shape {tuple(x.shape)}; it must be (N, {', '.join(map(str, spec.shape))}).")
    return admitted(spec, x, name)


def admitted(spec: Spec, x: Tensor, name: str) -> Tensor:
    """Data of any shape as a tensor of the spec's type.

    Raises:
        UserError: if some values are others than the spec's.
    """
    if spec.levels is None:
        return finite(x.to(dtype_of(spec)), name)
    if x.dtype == torch.bool:
        x = x.to(torch.uint8)
    if x.is_floating_point() and (wrong := x[(x != x.floor()) | x.isinf()]).numel():
        raise UserError(f"{name} holds {wrong[0].item():g}, which is not an integer 0 to {spec.levels - 1}.")
    if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < spec.levels:
        raise UserError(
            f"{name} holds integers {int(x.min())} to {int(x.max())}; they must lie in 0 to {spec.levels - 1}."
        )
    return x.to(dtype_of(spec))


def finite(x: Tensor, name: str) -> Tensor:
    """The numbers themselves, all of them finite.

    Raises:
        UserError: if some are not, with how many.
    """
    if x.is_floating_point() and (wrong := x.numel() - int(x.isfinite().sum())):
        raise UserError(
            f"{name} holds {wrong} of {x.numel()} numbers that are NaN or infinite; take them out, or put others in "
            "their place and mask these."
        )
    return x


def in_range(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (N, …) over the power of two that brings the largest of each column into ½ … 1, and its exponent (…).

    Nothing is rounded, and no square or sum of the quotients is too large, or too small, for double precision.
    """
    exponent = np.frexp(np.abs(values).max(0, initial=0.0))[1]
    return np.ldexp(values, -exponent), exponent


def read_numbers(spec: Spec, path: Path, count: int | None) -> tuple[Tensor, list[str]]:
    """Data of a text file, a datum a line, or of a NumPy array (.npy), and their names.

    Raises:
        UserError: if the file cannot be read, or holds other data.
    """
    try:
        if path.suffix.lower() == ".npy":
            found = np.load(path, allow_pickle=False)
            found = found[None] if found.shape == tuple(spec.shape) else found  # a datum alone
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a file without any number
                found = np.loadtxt(path, ndmin=2)
            found = found.reshape(found.size and len(found), *spec.shape)
        if found.dtype.kind not in "biuf" or not found.size:
            raise ValueError("it has no real numbers")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); give a file of numbers.") from None
    except NO_ARRAYS as error:
        reason = str(error).rstrip(".") if isinstance(error, ValueError | EOFError) else "it is damaged"
        raise UserError(f"{path} does not hold data of shape {spec.shape}: {reason}; give a file that does.") from None
    found = found[:count].astype(np.float64)  # whatever the file's own type
    return checked(spec, found, str(path)), [f"{path.name}/{number}" for number in range(len(found))]
