"""Plain `pyro.infer.SVI`: it trains what Pyro's parameter store holds, so a program offers its parameters there.

The library itself never uses the store: parameters live in the modules, and its ELBO is a torch module. A program's
own parameters are offered under a name of their own, so that a second model of a process is not mistaken for the first.
"""

from __future__ import annotations

from itertools import count
from weakref import WeakKeyDictionary

import pyro
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import nn

from pyro_delta.errors import UserError

_NAMES: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_NUMBERS = count()


def offer_parameters(program: nn.Module) -> None:
    """Puts a program's parameters into Pyro's store, if it runs under `SVI`; costs next to nothing otherwise.

    Raises:
        UserError: if the store holds other tensors in their place, which `SVI` would train instead of them.
    """
    if not any(isinstance(messenger, TraceMessenger) and messenger.param_only for messenger in _PYRO_STACK):
        return
    if program not in _NAMES:
        _NAMES[program] = f"{type(program).__name__}-{next(_NUMBERS)}"
    for name, parameter in program.named_parameters():
        if parameter.requires_grad and pyro.param(f"{_NAMES[program]}.{name}", parameter) is not parameter:
            raise UserError(
                f"SVI would not train {name!r} of {type(program).__name__}: Pyro's store holds another tensor under "
                "its name, or it is not contiguous; call pyro.clear_param_store() first, and load weights with "
                "load_state_dict()."
            )
