"""Options that several commands share. Cheap to import."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_delta.files import finite
from pyro_delta.limits import LARGEST_SEED

if TYPE_CHECKING:
    import torch

    from pyro_delta.config import Config
    from pyro_delta.data import ImageData
    from pyro_delta.inference.run import Loaded

Settings = list[tuple[str, Any]]

run_argument = click.argument("run", type=click.Path(path_type=Path))
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA if there is a device."
)
root_option = click.option(
    "--data-root", metavar="DIR", help="Where data sets live, or the folder of folder:PATH (default: as in training)."
)
split_option = click.option(
    "--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True
)
seed_option = click.option("--seed", type=click.IntRange(0, LARGEST_SEED), default=0, show_default=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


with_prior_option = click.option(
    "--with-prior",
    type=click.Choice(["model", "auxiliary"]),
    default="model",
    show_default=True,
    help="auxiliary: the prior of train-prior, or one trained beside the model.",
)
backend_option = click.option("--backend", type=click.Choice(["pyro", "numpyro"]), default="pyro", show_default=True)
dataset_option = click.option(
    "--dataset", metavar="NAME", help="digits, photos, cifar10, mnist or folder:PATH (default: digits)."
)
preset_option = click.option("--preset", metavar="NAME", help="Default: the data set's own; see `pyro-delta list`.")
set_option = click.option(
    "--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Any other setting, such as prior.dims=4."
)


def program_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--prior`, `--likelihood` and `--guide`."""
    helps = {
        "--guide": "The same; options of programs by --set, such as --set prior.alpha=0.9.",
        "--likelihood": "The same.",
        "--prior": "A name of `pyro-delta list`, package.module:Object or file.py:Object.",
    }
    for name, text in helps.items():
        command = click.option(name, metavar="PROGRAM", help=text)(command)
    return command


def settings_of(pairs: tuple[str, ...], options: dict[str, Any]) -> Settings:
    """Options that are given and --set pairs as one list, in which no setting may stand twice.

    Raises:
        UserError: if one does.
    """
    from pyro_delta.config import parse_settings
    from pyro_delta.errors import UserError

    settings = [(key, value) for key, value in options.items() if value is not None] + parse_settings(pairs)
    keys = [key for key, _ in settings]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{key} is set twice; give it once, as an option or with --set.")
    return settings


def chosen_config(preset: str | None, settings: Settings) -> tuple[Config, str]:
    """A preset with settings laid over it, and its name; without one, the default preset of the data set."""
    from pyro_delta.config import load_preset
    from pyro_delta.data.spec import dataset_info

    if preset is None:
        dataset = str(dict(settings).get("data.name", "digits"))
        preset = dataset_info(dataset).preset
        settings = [("data.name", dataset), *(pair for pair in settings if pair[0] != "data.name")]
    return load_preset(preset, settings), preset


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


def load_data(config: Config, root: str | None = None) -> ImageData:
    """The images of a configuration, from another root if one is given; that of `folder:PATH` is PATH itself."""
    from pyro_delta.data import load

    name, place = config.data.name, root or config.data.root
    if root is not None and name.startswith("folder:"):
        name = f"folder:{root}"
    return load(name, root=place, validation=config.data.validation, seed=config.data.seed)


def load_data_of(loaded: Loaded, root: str | None) -> ImageData:
    """The images that a run was trained on.

    Raises:
        UserError: if they are not of the kind that the run was made for.
    """
    from pyro_delta.errors import UserError

    data = load_data(loaded.config, root)
    if data.spec != loaded.spec:
        name = loaded.config.data.name
        raise UserError(f"{name} now holds {data.spec}, but the run was made for {loaded.spec}; restore them.")
    return data


images_argument = click.argument("images", metavar="IMAGES")


def read_images(loaded: Loaded, images: str, count: int | None, root: str | None) -> tuple[torch.Tensor, list[str]]:
    """Images for a run and their names, uint8 (N, C, H, W).

    Args:
        loaded: the run.
        images: train, validation or test for images of its data set, or a picture, or a folder of pictures.
        count: the first so many (all if None).
        root: where data sets live.

    Raises:
        UserError: if there are none, or they are not of the run's size and kind.
    """
    from pyro_delta.data.folder import read_pictures
    from pyro_delta.errors import UserError

    if images in ("train", "validation", "test"):
        found = load_data_of(loaded, root).split(images).images[:count]
        return found, [f"{images}/{i}" for i in range(len(found))]
    pictures, names = read_pictures(Path(images), count)
    if pictures.shape[1:] != loaded.spec.shape or loaded.spec.levels != 256:
        shape, spec = tuple(pictures.shape[1:]), loaded.spec
        raise UserError(
            f"the pictures of {images} are {shape} with 256 levels, the run's images {spec.shape} with {spec.levels}; "
            "bring them to its size, or name a split: test."
        )
    return pictures, names


def print_json(numbers: dict[str, Any]) -> None:
    """Prints numbers on a line; one that is not finite becomes null, which every reader of JSON knows."""
    click.echo(json.dumps(finite(numbers), ensure_ascii=False))
