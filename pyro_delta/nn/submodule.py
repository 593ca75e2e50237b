"""Reaching a network inside a program."""

from __future__ import annotations

from typing import Any

import pyro
from pyro.nn import PyroModule


def network_of(program: PyroModule, name: str) -> Any:
    """The submodule `name` of a program.

    Reading it as an attribute sends Pyro a message for every parameter, at every step: needed where parameters live in
    Pyro's store (plain `pyro.infer.SVI`), a tenth of a small network's step where they live in the modules.
    """
    if pyro.settings.get("module_local_params"):
        return program._modules[name]
    return getattr(program, name)
