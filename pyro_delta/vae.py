"""A model and its guide, together."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

Copied = TypeVar("Copied", bound=nn.Module)

_UNCHANGED = frozenset({bool, int, float, str, type(None)})
_EMPTY = frozenset({dict, OrderedDict, set})


class VAE(nn.Module):
    """A model and its guide: what is trained, averaged, saved and evaluated together.

    Args:
        model: a `DeltaVAE`, or any Pyro model: a module, a function, or a method of a module.
        guide: any Pyro guide, likewise.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        super().__init__()
        self.model: Any = model
        self.guide: Any = guide
        # Methods bring the module that they belong to, so that it is moved, copied and switched to evaluation, too.
        owners = {id(owner): owner for program in (model, guide) if (owner := owner_of(program)) is not None}
        if owners:
            self.owners = nn.ModuleList(owners.values())


def owner_of(program: Callable[..., Any]) -> nn.Module | None:
    """The module that a program is a method of; None if it is none."""
    owner = getattr(program, "__self__", None)
    return owner if inspect.ismethod(program) and isinstance(owner, nn.Module) else None


def copied(module: Copied) -> Copied:
    """A deep copy, in which tensors that were computed from weights, and are no weights, are values alone.

    `copy.deepcopy` refuses those, which `torch.nn.utils.weight_norm` and spectral norms keep until the next call. It
    spends most of its time on the state of modules: on names, numbers and the empty dictionaries of hooks. That of
    modules that say nothing of how they are copied is copied here.
    """
    known: dict[int, Any] = {}
    parts = list(module.modules())
    for part in parts:
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                known[id(value)] = value.detach().clone()
            elif type(value) in _EMPTY and not value:
                known[id(value)] = type(value)()
    kinds = {kind for kind in {type(part) for part in parts} if _is_plain(kind)}
    plain = [part for part in parts if type(part) in kinds]
    known |= {id(part): type(part).__new__(type(part)) for part in plain}
    for part in plain:
        vars(known[id(part)]).update(
            {name: _copied(value, known) for name, value in vars(part).items() if name != "_compiled_call_impl"}
        )
    return copy.deepcopy(module, known)


def _copied(value: Any, known: dict[int, Any]) -> Any:
    """A deep copy of a value, or of the values of a dictionary whose keys are names."""
    if type(value) in _UNCHANGED:
        return value
    if (made := known.get(id(value))) is not None:
        return made
    if type(value) is dict and all(type(name) is str for name in value):
        known[id(value)] = made = {}
        made.update({name: _copied(part, known) for name, part in value.items()})
        return made
    return copy.deepcopy(value, known)


def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether `copy.deepcopy` copies the attributes of such a module, and does nothing else."""
    return (
        kind.__new__ is object.__new__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__getstate__ is nn.Module.__getstate__
        and kind.__setstate__ in (nn.Module.__setstate__, nn.Conv2d.__setstate__)
        and not hasattr(kind, "__deepcopy__")
        and not any(vars(base).get("__slots__") for base in kind.__mro__)
    )


def with_prior(vae: VAE, prior: nn.Module) -> VAE:
    """The same model and guide, sharing their weights, with another prior in the model.

    With an auxiliary prior `evaluate` gives the tighter bound D + E_q[log q − log p_aux] [1]: from the same seed
    come the same z, so the distortion is the same, the rate is sampled, and no δ is committed.

    Args:
        vae: a `DeltaVAE` and its guide; they stay as they are.
        prior: of the same event shape and `starts` as the model's own.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """
    model = copy.copy(vae.model)
    model._modules = {**vae.model._modules, "prior": prior}
    return VAE(model, vae.guide).train(vae.training)


def local_parameters() -> Any:
    """The context in which programs that are `PyroModule`s are built: their parameters live in them, not in the store.

    Ordinary modules do not need it, and are not changed by it.
    """
    return pyro.settings.context(module_local_params=True)


def localise(vae: nn.Module) -> None:
    """Makes every `PyroModule` one whose parameters live in it, wherever it was built; it then trains as a module."""
    for part in _pyro_modules(vae):
        if not hasattr(part._pyro_context, "param_state"):
            part._pyro_context.param_state = {"params": {}, "constraints": {}}


def parameters_of(vae: nn.Module) -> AbstractContextManager[Any]:
    """The context that a model and guide run in: `local_parameters` if their `PyroModule`s were built so, or localised.

    Others, of a user's own, have parameters in Pyro's store, where `SVI` has trained them.
    """
    parts = _pyro_modules(vae)
    local = parts and all(hasattr(part._pyro_context, "param_state") for part in parts)
    return local_parameters() if local else nullcontext()


def _pyro_modules(vae: nn.Module) -> list[PyroModule]:
    return [part for part in vae.modules() if isinstance(part, PyroModule)]
