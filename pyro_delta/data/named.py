"""Data by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_delta.data.splits import SPLITS
from pyro_delta.data.values import checked
from pyro_delta.errors import UserError
from pyro_delta.programs import blamed, checked_options, data_name, find
from pyro_delta.protocol import Data, Spec


def load(name: str, **options: Any) -> Data:
    """Load data into memory.

    Args:
        name: a name of `pyro-delta list datasets`, such as digits or folder:PATH, `package.module:Object`, or
            `path/to/file.py:Object`.
        options: of the program: root, the folder where its files live; validation, the number of validation data; seed,
            of their choice (the test data are the same for every seed); and others that it has.

    Raises:
        UserError: if the name or an option is unknown, files are missing, damaged or of mixed kinds, or `validation`
            does not leave at least one datum on either side.
    """
    program, root = data_name(name)
    given = {key: value for key, value in options.items() if value is not None}
    if "root" in given:
        given["root"] = str(given["root"])
    if root is not None and given.setdefault("root", root) != root:
        raise UserError(f"the root {given['root']} and {name} contradict each other; give one.")
    return build_data(program, checked_options("data", program, given))


def build_data(program: str, options: dict[str, Any], folder: Path | None = None) -> Data:
    """The data that a program makes.

    Args:
        program: by name.
        options: all of them, checked.
        folder: of a run's own programs.

    Raises:
        UserError: if the program fails, or what it makes is no data, or others than its spec says.
    """
    with blamed(program):
        data = find("data", program, folder)(**options)
    if not isinstance(getattr(data, "spec", None), Spec):
        raise UserError(
            f"the data {program!r} have spec {getattr(data, 'spec', None)!r}; see pyro_delta.protocol.Spec."
        )
    for name in SPLITS:
        x: Any = getattr(getattr(data, name, None), "x", None)
        shape = tuple(getattr(x, "shape", ()))
        if not shape or shape[1:] != tuple(data.spec.shape):
            raise UserError(
                f"the data {program!r} have a {name} split of shape {shape}; it must be a pyro_delta.data.Split of "
                f"shape (N, {', '.join(map(str, data.spec.shape))})."
            )
        if not shape[0]:
            raise UserError(f"the data {program!r} have an empty {name} split; each needs one datum at least.")
        if data.spec.levels is not None:
            checked(data.spec, x, f"the {name} split of {program!r}")
    return data


def spec_before_data(program: str, folder: Path | None = None) -> Spec | None:
    """The spec of a program's data where its class says it, before any file is read."""
    spec = getattr(find("data", program, folder), "spec", None)
    return spec if isinstance(spec, Spec) else None


def split_of_data(data: Data, name: str) -> Any:
    """The split called `train`, `validation` or `test`."""
    return getattr(data, name)
