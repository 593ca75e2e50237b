"""Data by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from pyro_delta.data.condition import KEY, check_names, condition_of, conditioned
from pyro_delta.data.spec import check_answers, in_words, is_spec
from pyro_delta.data.splits import SPLITS, Split, Splits
from pyro_delta.data.stored import Stored
from pyro_delta.data.tensors import Given, as_split, from_tensors, labels_of
from pyro_delta.data.values import checked, finite
from pyro_delta.errors import UserError
from pyro_delta.limits import LARGEST_LEVELS
from pyro_delta.programs import blamed, checked_options, data_name, find, has_option
from pyro_delta.protocol import Data, Spec


def load(name: str | Path, **options: Any) -> Data:
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
    program, root = data_name(str(name))
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
        UserError: if the program fails, or as `checked_data`.
    """
    made = find("data", program, folder)
    on = None if has_option(made, KEY) else options.get(KEY)
    with blamed(program):
        data = made(**{name: value for name, value in options.items() if on is None or name != KEY})
    checked = checked_data(data, program)
    return checked if on is None else conditioned(checked, on)


ARRAYS = ("pyro_delta.data.images.arrays:images_of", "pyro_delta.data.sequences.arrays:sequences_of")
"""Functions of a split that give spec, data and preset of what they know of, in the order that they are asked."""


def data_of(
    given: str | Path | Data | Given, root: str | None = None, *, levels: int | None = None, like: Spec | None = None
) -> Data:
    """Data themselves, in Python: loaded if they are given by name, told by their shape if they are arrays, checked.

    Args:
        given: data, or their name.
        root: of data by name.
        levels: of arrays, as for `of_arrays`.
        like: as for `of_arrays`.

    Raises:
        UserError: as `load`, `of_arrays` and `checked_data`, or if levels are said of data that say them themselves.
    """
    if isinstance(given, str | Path):
        return load(str(given), root=root)
    if hasattr(given, "__array__") and hasattr(given, "dtype") and not isinstance(given, Tensor | np.ndarray):
        given = np.asarray(given)  # JAX's, say
    plain = isinstance(given, Tensor | np.ndarray | Mapping | Split | Dataset) and not hasattr(given, "spec")
    if levels is not None and not plain:
        raise UserError(f"data.levels={levels} is of arrays; these data have a spec, which says their levels itself.")
    return checked_data(of_arrays(given, levels, like) if plain else given, "given")  # type: ignore[arg-type]


def of_arrays(given: Given, levels: int | None = None, like: Spec | None = None) -> Data:
    """Data of arrays, of a kind that their shape tells: images (bytes), or sequences of tokens.

    A tenth of them is held out for validation, and a tenth to test; `from_tensors` takes splits, and data of any kind.

    Args:
        given: an array or tensor (N, …); one with labels or whatever else goes with it, by name; or a torch data set.
        levels: that integers have, 0 … levels − 1; found out where None.
        like: spec of a run that they are for, by which they are read in the place of what they show themselves.

    Raises:
        UserError: if they are neither, too few, or do not fit the levels.
    """
    if levels is not None and not (type(levels) is int and 2 <= levels <= LARGEST_LEVELS):
        raise UserError(f"data.levels={levels!r} is not a whole number from 2 to {LARGEST_LEVELS}; give one.")
    split = as_split(given)
    for place in ARRAYS:
        module, _, name = place.partition(":")
        if found := getattr(import_module(module), name)(split, levels if like is None else like.levels):
            spec, known, preset = found
            if like is not None and (type(like), like.shape, like.levels) == (type(spec), spec.shape, spec.levels):
                spec = _unconditioned(like)
            made = from_tensors(known, spec=spec)
            return type("OfArrays", (Splits,), {"preset": preset})(
                made.spec, made.train, made.validation, made.test, made.classes
            )
    kind, shape = str(split.x.dtype).removeprefix("torch."), tuple(split.x.shape)
    if like is not None and shape[1:] == tuple(like.shape):
        return from_tensors(split, spec=_unconditioned(like))
    if like is not None:
        raise UserError(
            f"an array of {kind} of shape {shape} is not what the run was made for, {in_words(like)}; give such data."
        )
    raise UserError(
        f"an array of {kind} of shape {shape} is neither images, bytes (N, H, W), (N, C, H, W) or (N, H, W, C), nor "
        "tokens, whole numbers (N, T); say of what kind it is by pyro_delta.data.from_tensors(…, spec=…)."
    )


def as_those_of(given: Any, like: Spec) -> Any:
    """What a program of a run is called with: arrays in the form and on the levels of its data, others as they are."""
    if not isinstance(given, Tensor | np.ndarray) and not (isinstance(given, Mapping) and "x" in given):
        return given
    split = as_split(given)
    for place in ARRAYS:
        module, _, name = place.partition(":")
        if (found := getattr(import_module(module), name)(split, like.levels)) and type(found[0]) is type(like):
            return found[1]
    return given


def _unconditioned(spec: Spec) -> Spec:
    """The spec of data that whoever asks for them conditions afterwards."""
    return spec if condition_of(spec) is None else replace(spec, condition=None)  # type: ignore[type-var]


def checked_data(data: Any, name: str) -> Data:
    """Data, which hold what their spec says.

    Args:
        data: whatever was made or given.
        name: of it.

    Raises:
        UserError: if it is no data, has a malformed spec, or has a split of another shape, without data, with numbers
            that are not finite or that the spec does not admit, or with another number of labels (or of what else goes
            with x), or if two of its classes have one name.
    """
    if isinstance(data, type) or not hasattr(data, "spec"):
        found = f"the class {data.__name__}" if isinstance(data, type) else f"of type {type(data).__name__}"
        raise UserError(
            f"the data {name!r} are {found}; they must be an object with a spec and splits, such as "
            "pyro_delta.data.from_tensors makes of tensors and arrays."
        )
    check_answers(data.spec, f"the data {name!r}")
    check_names(getattr(data, "classes", None) or (), f"the data {name!r} have")
    for part in SPLITS:
        split = getattr(data, part, None)
        x: Any = getattr(split, "x", None)
        shape = tuple(getattr(x, "shape", ()))
        if not shape or shape[1:] != tuple(data.spec.shape):
            raise UserError(
                f"the data {name!r} have a {part} split of shape {shape}; it must be a pyro_delta.data.Split of "
                f"shape (N, {', '.join(map(str, data.spec.shape))})."
            )
        if not shape[0]:
            raise UserError(f"the data {name!r} have an empty {part} split; each needs one datum at least.")
        if not isinstance(x, Stored):  # of which every byte is admitted
            checked(data.spec, x, f"the {part} split of {name!r}")
        labels = getattr(split, "labels", None)
        beside = {"labels": None if labels is None else labels_of(labels), **(getattr(split, "extras", None) or {})}
        for key, values in beside.items():
            if isinstance(values, Tensor):
                finite(values, f"{key!r} in the {part} split of {name!r}")
            if values is not None and (count := (*getattr(values, "shape", ()), 1)[0]) != shape[0]:
                raise UserError(
                    f"the {part} split of {name!r} has {count} entries of {key!r} for {shape[0]} data; give one for "
                    "each."
                )
    return data


def spec_before_data(program: str, folder: Path | None = None) -> Spec | None:
    """The spec of a program's data where its class says it, before any file is read."""
    spec = getattr(find("data", program, folder), "spec", None)
    if not is_spec(spec):
        return None
    check_answers(spec, f"the data {program!r}")
    return spec


def split_of_data(data: Data, name: str) -> Any:
    """The split called `train`, `validation` or `test`."""
    return getattr(data, name)
