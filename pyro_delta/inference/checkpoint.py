"""Checkpoints: everything needed to go on, written atomically, read without running pickled code."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from pyro_delta.errors import UserError
from pyro_delta.files import written_whole

FORMAT = "pyro-delta checkpoint 3"
BEFORE = {"pyro-delta checkpoint 1", "pyro-delta checkpoint 2"}
"""Formats that this version does not read any more."""


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Writes tensors and plain values; a reader sees the old file or the new one, never a part."""
    # By way of memory, for torch makes a RuntimeError of what a file says, and so of a full disk.
    whole = io.BytesIO()
    torch.save({"format": FORMAT, **state}, whole)
    with written_whole(path) as file:
        file.write(whole.getbuffer())


def load_checkpoint(path: Path, device: torch.device | str = "cpu", *, keys: Collection[str] = ()) -> dict[str, Any]:
    """Reads a checkpoint, which must hold all of `keys`.

    Raises:
        UserError: if the file is missing, unreadable, truncated, incomplete, or no checkpoint of this library.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign files, of which the error below tells
            state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the run has no checkpoint yet, train it first.") from None
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file of a run, readable to you.") from None
    except Exception:  # damaged bytes make torch raise IndexError, AssertionError, struct.error, … as well
        raise UserError(f"{path} is truncated or no checkpoint; restore it or train the run again.") from None
    if isinstance(state, dict) and state.get("format") in BEFORE:
        raise UserError(
            f"{path} was written by an older pyro-delta, whose networks have changed since; train the run again."
        )
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of pyro-delta ({FORMAT!r}); give a run that `train` wrote.")
    for key in keys:
        if key not in state:
            raise UserError(f"{path} is incomplete: it has no {key!r}; restore it or train the run again.")
    return state


def load_weights(module: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Loads a state dict whole.

    Raises:
        UserError: if names or shapes differ from the module's, naming the first.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state or name not in own or own[name].shape != state[name].shape:
            raise UserError(f"{path} does not fit the run's configuration: weight {name!r} differs or is missing.")
    module.load_state_dict(state)


def rng_state(device: torch.device) -> dict[str, Any]:
    """Torch's random states that a run on `device` draws from."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Puts `rng_state` back, as far as `device` has the same kinds."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
