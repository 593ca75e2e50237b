"""What a check leaves in the folder of its run, for `pyro-delta compare`: its numbers, and two datum by datum."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_delta.diagnostics.diagnose import Diagnosis
from pyro_delta.errors import UserError
from pyro_delta.files import finite
from pyro_delta.inference import manifest as manifests
from pyro_delta.inference.run import CHECK, TERMS, Run, config_digest
from pyro_delta.lock import writing


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


def keep(run: Run, found: Diagnosis) -> Kept:
    """Writes a check into the folder of its run.

    Raises:
        UserError: if another process writes there.
    """
    assert run.folder is not None
    kept = Kept(finite(found.asdict()), found.terms["rate"].numpy(), found.terms["distortion"].numpy())
    terms = io.BytesIO()
    np.savez_compressed(terms, rate=kept.rate_b, distortion=kept.distortion_b)
    with writing(run.folder):
        manifests.put(run.folder, {TERMS: terms.getvalue()}, gone=(CHECK,))
        # Last: whoever finds it finds the terms as well.
        text = json.dumps(kept.numbers, indent=2, ensure_ascii=False) + "\n"
        manifests.put(run.folder, {CHECK: text.encode()})
    return kept


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
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the check kept in {folder} is damaged; make it again: pyro-delta check --keep {folder}"
        ) from None


TEXTS = ("split", "unit", "judged_digest")
"""What is read of a kept check beside numbers: each there, and a text."""


def _checked(numbers: dict[str, Any], rate_b: np.ndarray, distortion_b: np.ndarray) -> Kept:
    """A check whose values have the types and shapes that they must; what is measured is a number or unknown."""
    if not all(isinstance(numbers[key], str) for key in TEXTS):
        raise TypeError
    measured = [value for key, value in numbers.items() if key.rpartition("_")[2] in ("nats", "bpd", "se", "min")]
    if any(isinstance(value, bool) or not isinstance(value, int | float | None) for value in measured):
        raise TypeError
    for values in (rate_b, distortion_b):
        if values.shape != (numbers["n_images"],) or values.dtype.kind != "f" or not np.isfinite(values).all():
            raise ValueError
    return Kept(numbers, rate_b, distortion_b)
