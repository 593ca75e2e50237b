"""Data of one's own: tensors, arrays and torch data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyro_delta.data.condition import KEY, check_names, condition_of, conditioned
from pyro_delta.data.spec import ArraySpec, check_answers
from pyro_delta.data.splits import TEST_SEED, Split, Splits, hold_out, size_of
from pyro_delta.data.values import checked
from pyro_delta.errors import UserError
from pyro_delta.protocol import Spec

Array = Tensor | np.ndarray
Given = Array | Mapping[str, Array] | Dataset | Split
"""What a split is made of: x itself; x and what goes with it (labels, lengths, masks, covariates) by name; a torch
data set whose items are x, (x, label) or such a dict; or a split."""


def from_tensors(
    train: Given,
    *,
    validation: Given | int | None = None,
    test: Given | None = None,
    spec: Spec | None = None,
    levels: int | None = None,
    resolution: float | None = None,
    ordered: bool = True,
    classes: tuple[str, ...] | None = None,
    seed: int = 0,
) -> Splits:
    """Data of one's own, held in memory.

    Args:
        train: (N, *shape), or one of the other kinds of `Given`; the key `x` of a dict names the data, `labels` the
            labels, `condition` what they are conditioned on: classes 0, 1, … (N,), or real numbers (N, C).
        validation: the same, or the number of data to hold out of `train` (a tenth if None).
        test: the same; a tenth of `train` if None.
        spec: of a datum; without it an `ArraySpec` is made of the shape and the three following arguments.
        levels: integers 0 … levels − 1; None for real numbers, or if data are integers for 1 + the largest in `train`.
        resolution: of real numbers, see `ArraySpec`.
        ordered: whether the first axis is an order, see `ArraySpec`.
        classes: the name of each label.
        seed: of what is held out of `train`.

    Raises:
        UserError: if shapes or values do not fit, too few data are given, or two classes have one name.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative; give a whole number, 0 or more.")
    check_names(classes or (), "the data have")
    first = as_split(train)
    if spec is None:
        if levels is None and first.x.numel() and not first.x.is_floating_point():
            levels = max(2, int(first.x.max()) + 1)
        spec = ArraySpec(tuple(first.x.shape[1:]), levels, resolution, ordered)
    elif (levels, resolution) != (None, None):
        raise UserError("a spec says levels and resolution itself; leave them out.")
    else:
        check_answers(spec, "the data")
    first = _checked(spec, first, "train")
    if test is None:
        first, last = hold_out(first, max(1, len(first) // 10), TEST_SEED)
    else:
        last = _checked(spec, as_split(test), "test")
    if validation is None or isinstance(validation, int):
        first, held_out = hold_out(first, max(1, len(first) // 10) if validation is None else validation, seed)
    else:
        held_out = _checked(spec, as_split(validation), "validation")
    for name, split in (("train", first), ("validation", held_out), ("test", last)):
        if split.extras.keys() != first.extras.keys():
            raise UserError(
                f"beside x, {name} has {_listed(split.extras)} and train {_listed(first.extras)}; give both the same."
            )
        if classes is not None and split.labels is not None and int(split.labels.max()) >= len(classes):
            raise UserError(
                f"labels of {name} go up to {int(split.labels.max())}, but there are names for {len(classes)} classes; "
                "name all."
            )
    made = Splits(spec, first, held_out, last, classes)
    return conditioned(made, KEY) if KEY in first.extras and condition_of(spec) is None else made


def from_dataset(train: Dataset, **options: Any) -> Splits:
    """A torch data set, read once into memory; arguments as for `from_tensors`."""
    return from_tensors(train, **options)


def as_split(given: Given, *, named: bool = False) -> Split:
    """Whatever holds data as a split in memory.

    Args:
        given: data.
        named: whether a dict may lack the key `x`: its keys are then names that programs take, and the first is x.

    Raises:
        UserError: if it is none of the kinds of `Given`, or what is in it has different lengths.
    """
    if isinstance(given, Split):
        return given
    if isinstance(given, Dataset):
        given = _read(given)
    if isinstance(given, Mapping):
        parts = {name: _named(name, v) for name, v in given.items()}
        labels = parts.pop("labels", None)
        key = next(iter(parts), "x") if named and "x" not in parts else "x"
        if key not in parts:
            raise UserError(f"a dict of data has the keys {sorted(given)}; name the data themselves 'x'.")
        split = Split(parts.pop(key), None if labels is None else labels_of(labels), parts, key)
    else:
        split = Split(tensor_of(given))
    if split.x.dim() < 1:
        raise UserError(f"{split.x!r} is not data; give a tensor (N, *shape).")
    for name, values in {"labels": split.labels, **split.extras}.items():
        if values is not None and (count := len(values) if values.dim() else 1) != len(split.x):
            raise UserError(f"{name!r} has {count} entries for {len(split.x)} data; give one for each.")
    return split


def _named(name: str, values: Any) -> Tensor:
    """As a tensor; a condition keeps its digits, for it is standardised later; what is text is said to be."""
    if getattr(getattr(values, "dtype", None), "kind", None) in ("O", "S", "U"):
        raise UserError(
            f"{name!r} holds text or objects; give whole numbers, as numpy.unique(values, return_inverse=True) makes "
            "them."
        )
    found = tensor_of(values)
    wide = name == KEY and getattr(values, "dtype", None) == np.float64 and not isinstance(values, Tensor)
    return torch.from_numpy(np.array(values)) if wide else found


def tensor_of(values: Any) -> Tensor:
    """As a tensor, which shares the values' memory, unless that must not be written to, as that of JAX's arrays.

    Real numbers of an array, which are of double precision unless somebody cares, come in torch's default type.

    Raises:
        UserError: if they are no numbers, or complex ones.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise UserError(
            "data are a masked array, whose mask would be lost; give what is known of them as a key beside x."
        )
    if isinstance(values, Tensor) and values.layout != torch.strided:
        raise UserError(f"data are a tensor of layout {values.layout}; give a dense one, by to_dense().")
    if isinstance(values, np.ndarray) and values.dtype.byteorder not in ("=", "|"):
        values = values.astype(values.dtype.newbyteorder("="))
    try:
        # A copy where the memory must not be written to, or runs backwards.
        made = values if isinstance(values, Tensor) else torch.from_numpy(np.require(values, requirements=["C", "W"]))
    except (TypeError, ValueError):
        raise UserError(
            f"{type(values).__name__} is not data; give a tensor or an array (N, …), a dict of them, or a torch data "
            "set."
        ) from None
    if made.is_complex():
        raise UserError("data are complex numbers; give real ones, such as their real and imaginary parts.")
    if made.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return made.to(torch.int64)  # torch computes little with these
    return made.to(torch.get_default_dtype()) if made.dtype == torch.float64 and made is not values else made


def labels_of(values: Any) -> Tensor:
    """Labels as int64 (N,).

    Raises:
        UserError: if they are anything but one whole number for each datum.
    """
    labels = tensor_of(values)
    if labels.dim() != 1:
        raise UserError(f"labels have shape {tuple(labels.shape)}; give one whole number for each datum.")
    if labels.is_floating_point() and not labels.isfinite().all():
        raise UserError(f"labels hold {labels[~labels.isfinite()][0].item():g}; give one whole number for each datum.")
    if labels.is_floating_point() and (wrong := labels[labels != labels.floor()]).numel():
        raise UserError(f"labels hold {wrong[0].item():g}; give one whole number for each datum.")
    return labels.long()


def _read(items: Dataset) -> dict[str, Tensor]:
    """Every item of a torch data set, stacked."""
    if not isinstance(items, Sized):
        raise UserError(f"the data set {type(items).__name__} has no length; give one that has.")
    found = [_as_dict(items[index]) for index in range(len(items))]
    if not found:
        raise UserError(f"the data set {type(items).__name__} is empty; give one with data.")
    title = f"items of the data set {type(items).__name__}"
    for item in found:
        if item.keys() != found[0].keys():
            raise UserError(
                f"{title} have different names, {_listed(found[0])} and {_listed(item)}; give all the same."
            )
    try:
        return {name: torch.stack([tensor_of(item[name]) for item in found]) for name in found[0]}
    except RuntimeError as error:
        raise UserError(
            f"{title} differ in shape ({error}); bring them to one, with a mask or lengths beside them."
        ) from None


def _as_dict(item: Any) -> Mapping[str, Any]:
    if isinstance(item, Mapping):
        return item
    if isinstance(item, Iterable) and not isinstance(item, Tensor | np.ndarray):
        parts = tuple(item)
        if len(parts) in (1, 2):
            return dict(zip(("x", "labels"), parts, strict=False))
        raise UserError(f"an item of the data set has {len(parts)} parts; give x, (x, label) or a dict.")
    return {"x": item}


def _checked(spec: Spec, split: Split, name: str) -> Split:
    if size_of(split.x) == 0:
        raise UserError(f"{name} holds no data; give some.")
    return replace(split, x=checked(spec, split.x, name))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "nothing"
