"""What a check leaves in the folder of its run, for `pyro-delta compare`: its numbers, and two datum by datum."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_delta import config as configuration
from pyro_delta.diagnostics.diagnose import Diagnosis
from pyro_delta.errors import UserError
from pyro_delta.files import finite, written_whole
from pyro_delta.inference.run import CHECK, TERMS, Run, read_config


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
    """Writes a check into the folder of its run."""
    assert run.folder is not None
    kept = Kept(finite(found.asdict()), found.terms["rate"].numpy(), found.terms["distortion"].numpy())
    with written_whole(run.folder / TERMS) as file:
        np.savez_compressed(file, rate=kept.rate_b, distortion=kept.distortion_b)
    # Last: whoever finds it finds the terms as well.
    with written_whole(run.folder / CHECK) as file:
        file.write((json.dumps(kept.numbers, indent=2, ensure_ascii=False) + "\n").encode())
    return kept


def kept(folder: Path) -> Kept | None:
    """The check that was kept with a run and is of what it is now; None if there is none.

    One of a training that had not come to its end, or that has been made longer since, is of the past.

    Raises:
        UserError: if it is damaged.
    """
    if not (folder / CHECK).exists():
        return None
    try:
        numbers = json.loads((folder / CHECK).read_text(encoding="utf-8"))
        with np.load(folder / TERMS) as terms:
            found = Kept(dict(numbers), terms["rate"], terms["distortion"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"the check kept in {folder} is damaged; make it again: pyro-delta check --keep {folder}"
        ) from None
    now = configuration.digest(read_config(folder))
    return found if found.numbers.get("finished") and found.numbers.get("config_digest") == now else None
