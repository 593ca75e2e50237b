"""Checkpoints: everything needed to go on, in safetensors: tensors by name, plain values as JSON beside them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from pyro_delta.config import AuxiliaryConfig
from pyro_delta.errors import UserError
from pyro_delta.files import bytes_of
from pyro_delta.validation import Section

FORMAT = "pyro-delta checkpoint 4"
FORMER = "pyro-delta checkpoint 3"
"""By torch.save, still read."""
BEFORE = {"pyro-delta checkpoint 1", "pyro-delta checkpoint 2"}
"""Formats that this version does not read any more."""
TENSOR, INTEGERS = "$tensor", "$integers"
"""Keys, in JSON, of what is a tensor and of a dict whose keys are whole numbers."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, le=1e15)]
Weights = dict[str, Tensor]


class _Loaded(Section):
    """The types of what a file holds; what else it holds is left alone."""

    model_config = ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True)


class _Best(_Loaded):
    step: Count
    neg_elbo_bpd: float
    loss_bpd: float | None = None
    """by which it is the best, where that is not the bound"""
    vae: Weights
    auxiliary: Weights | None


class _Optimised(_Loaded):
    average: Weights
    optimizer: dict[str, Any]
    skipped: Tensor
    streak: Tensor


class _Beside(_Optimised):
    prior: Weights


class _Window(_Loaded):
    began: Seconds
    data: Annotated[int, Field(ge=1, lt=2**63)]
    rate: Tensor
    auxiliary_rate: Tensor
    distortion: Tensor
    loss: Tensor
    least: Tensor
    mean: Tensor
    square: Tensor


class TrainingState(_Optimised):
    """What `Training.state` gives."""

    config: dict[str, dict[str, Any]]
    vae: Weights
    objective: dict[str, Any]
    auxiliary: _Beside | None
    step: Count
    train_s: Seconds
    wall_s: Annotated[float, Field(ge=-1e15, le=1e15)]
    """below 0 where an earlier version trained while the clock was set back"""
    validated: Count
    stale: Count = 0
    """validations since the best one"""
    best: _Best | None
    rng: Weights
    window: _Window | None = None
    """sums since the last line of metrics; none where one has just been written"""
    parts: Count = 1
    """of a step, over all ranks; checkpoints of before do not say"""


class _Averaged(_Loaded):
    average: Weights


class ExportedState(_Averaged):
    """What `exported` leaves: weights, and how far the training came; there is nothing to go on from."""

    exported: Literal[True]
    config: dict[str, dict[str, Any]]
    auxiliary: _Averaged | None
    step: Count
    train_s: Seconds
    stale: Count
    skipped: Tensor
    best: _Best | None


class AuxiliaryState(_Beside):
    """What is kept of an auxiliary prior that was trained afterwards."""

    settings: AuxiliaryConfig
    step: Count


def required(form: type[Section]) -> tuple[str, ...]:
    """Names of what a file must hold."""
    return tuple(name for name, field in form.model_fields.items() if field.is_required())


def exported(state: dict[str, Any], weights: str) -> dict[str, Any]:
    """Of the state of a run its averaged weights, best or last, as `ExportedState`; no optimiser, no random state."""
    best = state["best"] if weights == "best" else None
    beside = state["auxiliary"]
    return {
        "exported": True,
        **{key: state[key] for key in ("config", "step", "train_s", "skipped")},
        "stale": state.get("stale", 0),
        "best": best,
        "average": {} if best else state["average"],
        "auxiliary": None if best or beside is None else {"average": beside["average"]},
    }


def pack(state: dict[str, Any]) -> bytes:
    """Tensors and plain values (text, numbers, None, lists, dicts with text or whole numbers as keys) as safetensors.

    Raises:
        TypeError: for anything else.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            # Copies: safetensors takes no two that share memory, as tied weights do.
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            by_channel = value.dim() == 4 and not value.is_contiguous()
            return {TENSOR: name, **({"channels_last": True} if by_channel else {})}
        if isinstance(value, dict):
            parts = {str(key): plain(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()}
            return {INTEGERS: parts} if any(isinstance(key, int) for key in value) else parts
        if isinstance(value, list | tuple):
            return [plain(part, f"{name}.{i}") for i, part in enumerate(value)]
        return value

    text = json.dumps({"format": FORMAT, **plain(state, "")})
    return safetensors.torch.save(tensors, {"pyro_delta": text})


def unpack(content: bytes, path: Path, keys: Collection[str] = ()) -> dict[str, Any]:
    """What `pack` packed, which must hold all of `keys`; tuples have become lists.

    Raises:
        UserError: if it is something else, or incomplete.
    """
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        state = _joined(json.loads(header["__metadata__"]["pyro_delta"]), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, RecursionError, RuntimeError):
        raise UserError(f"{path} is truncated or no checkpoint; restore it or train the run again.") from None
    return _complete(state, path, FORMAT, keys)


def unpack_run(content: bytes, path: Path) -> dict[str, Any]:
    """The state of a run that `pack` packed, a `TrainingState` or an `ExportedState`.

    Raises:
        UserError: if it is something else, incomplete or damaged.
    """
    state = unpack(content, path)
    form = ExportedState if state.get("exported") else TrainingState
    return check_types(_complete(state, path, FORMAT, required(form)), form, path)


def _joined(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Plain values with the tensors in their places."""
    if isinstance(value, list):
        return [_joined(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        tensor = tensors[value[TENSOR]]
        return tensor.to(memory_format=torch.channels_last) if value.get("channels_last") else tensor
    if INTEGERS in value:
        return {int(key): _joined(part, tensors) for key, part in value[INTEGERS].items()}
    return {key: _joined(part, tensors) for key, part in value.items()}


def _complete(state: Any, path: Path, form: str, keys: Collection[str]) -> dict[str, Any]:
    if not isinstance(state, dict) or state.get("format") != form:
        raise UserError(f"{path} is not a checkpoint of pyro-delta ({form!r}); give a run that `train` wrote.")
    for key in keys:
        if key not in state:
            raise UserError(f"{path} is incomplete: it has no {key!r}; restore it or train the run again.")
    return state


def load_former(path: Path, *, keys: Collection[str] = ()) -> dict[str, Any]:
    """Reads a checkpoint of the former format, without running pickled code.

    Raises:
        UserError: if the file is missing or unreadable, or as `unpack`.
    """
    try:
        bytes_of(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the run has no checkpoint yet, train it first.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign files, of which the error below tells
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged bytes make torch raise IndexError, AssertionError, struct.error, … as well
        raise UserError(f"{path} is truncated or no checkpoint; restore it or train the run again.") from None
    if isinstance(state, dict) and state.get("format") in BEFORE:
        raise UserError(
            f"{path} was written by an older pyro-delta, whose networks have changed since; train the run again."
        )
    return _complete(state, path, FORMER, keys)


def check_types(state: dict[str, Any], form: type[Section], path: Path) -> dict[str, Any]:
    """Refuses a state that has something else where tensors, numbers or texts are needed; returns it.

    Raises:
        UserError: naming the first place.
    """
    try:
        form.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged: {place}: {first['msg'].lower()}; restore it.") from None
    return state


def load_weights(module: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Loads a state dict whole.

    Raises:
        UserError: if names or shapes differ from the module's, or numbers are not finite where the module's own are,
            naming the first.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state or name not in own or own[name].shape != state[name].shape:
            raise UserError(f"{path} does not fit the run's configuration: weight {name!r} differs or is missing.")
        # A mask of a program's own may well be infinite.
        if not torch.isfinite(state[name]).all() and torch.isfinite(own[name]).all():
            raise UserError(
                f"{path} has numbers that are not finite in weight {name!r}; train the run again with a lower "
                "training.lr."
            )
    module.load_state_dict(state)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """Loads the state of an optimiser.

    Raises:
        UserError: if it is that of another one, or of weights of other shapes.
    """
    try:
        optimizer.load_state_dict(state)
        fits = all(
            value.dim() == 0 or value.numel() == weight.numel()
            for weight, kept in optimizer.state.items()
            for value in kept.values()
            if isinstance(value, Tensor)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError):
        fits = False
    if not fits:
        raise UserError(f"{path} does not fit the run's configuration: its optimiser is another one.")


def rng_state(device: torch.device) -> dict[str, Any]:
    """Torch's random states that a run on `device` draws from."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def restore_rng(state: dict[str, Any], device: torch.device, path: Path) -> None:
    """Puts `rng_state` back, as far as `device` has the same kinds.

    Raises:
        UserError: if it is none of torch's.
    """
    try:
        torch.set_rng_state(state["cpu"].cpu())
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    except (KeyError, RuntimeError, TypeError):
        raise UserError(f"{path} is damaged: its random state is not one of torch; restore it.") from None
