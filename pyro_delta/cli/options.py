"""Options that several commands share. Cheap to import."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

    from pyro_delta.data import ImageData, Split
    from pyro_delta.inference.run import Loaded

run_argument = click.argument("run", type=click.Path(path_type=Path))
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA if there is a device."
)
root_option = click.option("--data-root", metavar="DIR", help="Where data sets live (default: as in training).")
split_option = click.option(
    "--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def choose_device(name: str) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`.

    Raises:
        UserError: if CUDA is asked for and absent.
    """
    import torch

    from pyro_delta.errors import UserError

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def load_data(loaded: Loaded, root: str | None) -> ImageData:
    """The images that a run was trained on.

    Raises:
        UserError: if they are not of the kind that the run was made for.
    """
    from pyro_delta.data import load
    from pyro_delta.errors import UserError

    settings = loaded.config.data
    data = load(settings.name, root=root or settings.root, validation=settings.validation, seed=settings.seed)
    if data.spec != loaded.spec:
        raise UserError(f"{settings.name} now holds {data.spec}, but the run was made for {loaded.spec}; restore them.")
    return data


def print_json(numbers: dict[str, Any]) -> None:
    """Prints numbers on a line; one that is not finite becomes null, which every reader of JSON knows."""
    finite = {k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in numbers.items()}
    click.echo(json.dumps(finite, ensure_ascii=False))


def split_of(data: ImageData, name: str) -> Split:
    """The split of a name."""
    return {"train": data.train, "validation": data.validation, "test": data.test}[name]
