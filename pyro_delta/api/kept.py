"""What `check` and `evaluate` leave in the folder of their run, for its page, its card and `pyro-delta compare`."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_delta.data.splits import SPLITS
from pyro_delta.diagnostics.diagnose import Diagnosis, failure
from pyro_delta.errors import UserError
from pyro_delta.files import UNREADABLE, finite
from pyro_delta.hub import on_hub
from pyro_delta.inference import manifest as manifests
from pyro_delta.inference.run import CHECK, EVALUATIONS, TERMS, Run, config_digest
from pyro_delta.lock import leads_out, writing


@dataclass(frozen=True)
class Kept:
    """A check that was kept.

    Attributes:
        numbers: as `pyro-delta check --json` prints them.
        rate_b: (N,) KL of each datum in nats.
        distortion_b: (N,) −log p(x | z) of each datum in nats.
    """

    numbers: dict[str, Any]
    rate_b: np.ndarray
    distortion_b: np.ndarray


def keepable(run: Run, named: Path | str, numbers: Mapping[str, Any]) -> bool:
    """Whether numbers may stay with a run unasked: it is finished, of its own data, and here, to be written.

    Args:
        run: that they are of.
        named: the run, as it was given: its folder or its place on the hub.
        numbers: of a check or an evaluation.
    """
    if not run.finished or numbers["data_as_trained"] is False or run.folder is None or on_hub(named):
        return False
    return os.access(run.folder, os.W_OK) and leads_out(run.folder) is None


@contextmanager
def unasked(run: Run, say: Callable[[str], None] = lambda words: None) -> Iterator[None]:
    """What is kept with a run unasked may fail, as where another writes there: the numbers are there all the same.

    Args:
        run: that they are of.
        say: called with a sentence if it fails.
    """
    try:
        yield
    except (UserError, OSError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        say(f"what was found is not kept with {run.folder} ({reason.rstrip('.')}).")


def of_check(found: Diagnosis) -> Kept:
    """A check as it would be kept."""
    return Kept(finite(found.asdict()), found.terms["rate"].numpy(), found.terms["distortion"].numpy())


def keep(run: Run, found: Diagnosis) -> Kept:
    """Writes a check into the folder of its run.

    Raises:
        UserError: if another process writes there.
    """
    assert run.folder is not None
    kept = of_check(found)
    terms = io.BytesIO()
    np.savez_compressed(terms, rate=kept.rate_b, distortion=kept.distortion_b)
    with writing(run.folder):
        manifests.put(run.folder, {TERMS: terms.getvalue()}, gone=(CHECK,))
        # Last: whoever finds it finds the terms as well.
        text = json.dumps(kept.numbers, indent=2, ensure_ascii=False) + "\n"
        manifests.put(run.folder, {CHECK: text.encode()})
    return kept


def failure_of(numbers: Mapping[str, Any]) -> str | None:
    """Why a check fails, by its numbers as they were kept, where what was not finite is unknown; None if it passes."""
    return failure(
        {key: math.nan if value is None and key.startswith("told_") else value for key, value in numbers.items()}
    )


def is_of(numbers: Mapping[str, Any], run: Run, control: Run | None = None) -> bool:
    """Whether the numbers of a check are of these weights and data, and made with this control, if one is given."""
    if (
        any(numbers.get(key) != run.facts[key] for key in ("weights", "step"))
        or numbers.get("data_as_trained") is False
    ):
        return False
    return control is None or all(
        numbers.get(f"control_{key}") == control.facts[key] for key in ("config_digest", "weights", "step")
    )


def told_asked(numbers: Mapping[str, Any]) -> dict[str, int]:
    """The `told_samples` and `told_images` that a check was asked for, where they are not the default ones."""
    asked = {name: numbers.get(f"asked_{name}") for name in ("told_samples", "told_images")}
    return {name: value for name, value in asked.items() if value is not None}


def otherwise(numbers: Mapping[str, Any]) -> list[str]:
    """What a check was asked for that decides its numbers, as on the command line; all data are no such thing."""
    seed = [f"--seed {numbers['seed']}"] if numbers.get("seed") else []
    return [*seed, *(f"--{name.replace('_', '-')} {value}" for name, value in told_asked(numbers).items())]


SETTINGS = ("split", "n_images", "seed", "particles", "prior", "weights")
"""Of an evaluation: one of the same takes the place of a former one."""


def keep_evaluation(run: Run, numbers: Mapping[str, Any]) -> None:
    """Writes an evaluation into the folder of its run, beside those of other settings.

    Args:
        run: with its folder.
        numbers: as `pyro_delta.evaluate` gives them, and the prior that they are of.

    Raises:
        UserError: if another process writes there.
    """
    assert run.folder is not None
    with writing(run.folder):
        others = [
            found for found in evaluations(run.folder) if any(found.get(key) != numbers.get(key) for key in SETTINGS)
        ]
        text = json.dumps(finite([*others, dict(numbers)]), indent=2, ensure_ascii=False) + "\n"
        manifests.put(run.folder, {EVALUATIONS: text.encode()})


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The evaluations that were kept with a run and are of what it is now.

    Raises:
        UserError: if they are damaged.
    """
    if not (folder / EVALUATIONS).exists():
        return []
    found = manifests.parsed(manifests.verified(folder, EVALUATIONS), folder / EVALUATIONS)
    if not isinstance(found, list) or not all(map(_is_evaluation, found)):
        raise UserError(
            f"the evaluations kept in {folder} are damaged; delete {folder / EVALUATIONS}, and evaluate again."
        )
    return [numbers for numbers in found if numbers["finished"] and numbers["config_digest"] == config_digest(folder)]


def _is_evaluation(numbers: Any) -> bool:
    if not isinstance(numbers, dict) or not {*SETTINGS[:3], "finished", "config_digest", "step"} <= numbers.keys():
        return False
    return numbers["split"] in SPLITS and all(
        _is_number(value) for key, value in numbers.items() if key.rpartition("_")[2] in MEASURED
    )


def kept(folder: Path) -> Kept | None:
    """The check that was kept with a run and is of what it is now; None if there is none.

    One of a training that had not come to its end, or that has been made longer since, is of the past; one of a version
    that had fewer options is not. No program of the run is imported.

    Args:
        folder: of the run.

    Raises:
        UserError: if it is damaged.
    """
    if not (folder / CHECK).exists():
        return None
    try:
        numbers = manifests.parsed(manifests.verified(folder, CHECK), folder / CHECK)
        if not isinstance(numbers, dict):
            raise TypeError
        if numbers.get("finished") is not True or numbers.get("config_digest") != config_digest(folder):
            return None
        with np.load(io.BytesIO(manifests.verified(folder, TERMS)), allow_pickle=False) as terms:
            return _checked(numbers, terms["rate"], terms["distortion"])
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the check kept in {folder} is damaged; make it again: pyro-delta check --keep {folder}"
        ) from None


TEXTS = ("split", "unit", "judged_digest", "verdict", "advice")
"""What is read of a kept check beside numbers: each there, and a text."""
FLAGS = ("floor_holds", "latents_used")
"""Each there, and true, false or unknown."""
NEEDED = ("rate_nats_min", "delta_known_by", "delta_guarantee", "split_images", "seed", "step")
"""Others that are always there."""
MEASURED = {"nats", "bpd", "se", "min", "mean", "accuracy", "tau", "images", "samples", "particles", "seed", "step"}
"""Last words of the names of numbers."""


def _is_number(value: Any) -> bool:
    """Whether it is a number, or unknown."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _checked(numbers: dict[str, Any], rate_b: np.ndarray, distortion_b: np.ndarray) -> Kept:
    """A check whose values have the types and shapes that they must; what is measured is a number or unknown.

    Terms are finite unless their mean is unknown: of a training that has diverged they are not.
    """
    if not all(isinstance(numbers[key], str) for key in TEXTS) or numbers["split"] not in SPLITS:
        raise TypeError
    if not {*FLAGS, *NEEDED} <= numbers.keys() or not all(type(numbers[key]) in (bool, type(None)) for key in FLAGS):
        raise TypeError
    if not all(_is_number(value) for key, value in numbers.items() if key.rpartition("_")[2] in MEASURED):
        raise TypeError
    for values, mean in ((rate_b, numbers["rate_nats_mean"]), (distortion_b, numbers["distortion_bpd"])):
        if values.shape != (numbers["n_images"],) or values.dtype.kind != "f":
            raise ValueError
        if np.isfinite(values).all() == (mean is None):
            raise ValueError
    return Kept(numbers, rate_b, distortion_b)
