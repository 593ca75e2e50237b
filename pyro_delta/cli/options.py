"""Options that several commands share. Cheap to import."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pyro_delta.files import finite
from pyro_delta.limits import LARGEST_SEED

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_delta.data import Split
    from pyro_delta.inference.run import Run
    from pyro_delta.protocol import Spec

Settings = list[tuple[str, Any]]

run_argument = click.argument("run", type=click.Path(path_type=Path))


def _device(ctx: click.Context, parameter: click.Parameter, device: str) -> str:
    """What computes does so on the cores that are free."""
    if ctx.resilient_parsing:  # a shell asks for completions
        return device
    from pyro_delta.cores import leave_busy_cores

    if (notice := leave_busy_cores()) is not None:
        click.echo(f"pyro-delta: {notice}", err=True)
    return device


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    callback=_device,
    help="auto: CUDA if there is a device.",
)


def _completed(choices: Callable[[click.Context, str], Iterable[str]]) -> Callable[..., list[str]]:
    """What a shell offers for what was typed so far; nothing where that is wrong already."""

    def offered(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
        from pyro_delta.errors import UserError

        try:
            return [choice for choice in choices(ctx, typed) if choice.startswith(typed)]
        except UserError:
            return []

    return offered


def _programs(kind: str) -> Callable[..., list[str]]:
    def choices(ctx: click.Context, typed: str) -> Iterable[str]:
        from pyro_delta.programs import names

        return (name for name in names(kind) if name != "given")

    return _completed(choices)


def _presets(ctx: click.Context, typed: str) -> Iterable[str]:
    from pyro_delta.config import preset_names

    return preset_names()


def _settings(ctx: click.Context, typed: str) -> Iterable[str]:
    """Sections; then the settings of one, those of a program as what stands before says which it is."""
    from pyro_delta.config import DEFAULT_PROGRAMS, Config
    from pyro_delta.programs import option_names

    section, dot, _ = typed.partition(".")
    if not dot:
        return (f"{name}." for name in Config.model_fields)
    names: Iterable[str] = ()
    if section in DEFAULT_PROGRAMS:
        names = ("program", *option_names(section, _program_before(ctx, section)))
    elif section in Config.model_fields:
        names = Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    return (f"{section}.{name}=" for name in names)


def _program_before(ctx: click.Context, kind: str) -> str:
    """The program of a kind by what was typed: by its option or setting, or else the preset, or that of the data."""
    from pyro_delta.config import DEFAULT_PROGRAMS, preset_of_data, program_in_preset
    from pyro_delta.programs import data_name

    typed = dict(pair.partition("=")[::2] for pair in ctx.params.get("pairs") or ())
    data = ctx.params.get("dataset") or typed.get("data.program")
    named = data if kind == "data" else ctx.params.get(kind) or typed.get(f"{kind}.program")
    preset = ctx.params.get("preset") or preset_of_data(data or DEFAULT_PROGRAMS["data"])
    return data_name(named or program_in_preset(kind, preset))[0]


new_root_option = click.option("--data-root", metavar="DIR", help="Where data sets live (default: data).")
root_option = click.option(
    "--data-root",
    metavar="DIR",
    help="Where data live, or the folder of folder:PATH (default: where they were in training).",
)
other_data_option = click.option(
    "--other-data", is_flag=True, help="Take data that are not those of the training, and say so."
)
trust_option = click.option(
    "--trust", is_flag=True, help="Let programs run that came with a run that you did not make here."
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
weights_option = click.option(
    "--weights",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="best: of the validation with the least −ELBO; the last ones where there was none.",
)
images_option = click.option(
    "--images", type=click.IntRange(min=1), metavar="N", help="So many random data of the split, for all numbers."
)
backend_option = click.option("--backend", type=click.Choice(["pyro", "numpyro"]), default="pyro", show_default=True)
dataset_option = click.option(
    "--dataset",
    metavar="NAME",
    shell_complete=_programs("data"),
    help="A name of `pyro-delta list`, folder:PATH, package.module:Object or file.py:Object (default: digits).",
)
preset_option = click.option(
    "--preset",
    metavar="NAME",
    shell_complete=_completed(_presets),
    help="Default: the data set's own; see `pyro-delta list`.",
)
objective_option = click.option(
    "--objective",
    metavar="PROGRAM",
    shell_complete=_programs("objective"),
    help="What is minimised (default: elbo); the others are baselines.",
)
config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings in TOML, or the config.json of a run; those of the command line take their place.",
)
set_option = click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=_completed(_settings),
    help="Any other setting, such as prior.dims=4; see `pyro-delta list settings`.",
)


def program_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--prior`, `--likelihood` and `--guide`."""
    helps = {
        "--guide": "The same; options of programs by --set, such as --set prior.alpha=0.9.",
        "--likelihood": "The same.",
        "--prior": "A name of `pyro-delta list`, package.module:Object or file.py:Object.",
    }
    for name, text in helps.items():
        complete = _programs(name.removeprefix("--"))
        command = click.option(name, metavar="PROGRAM", shell_complete=complete, help=text)(command)
    return command


def open_run(
    folder: Path, device: str, with_prior: str = "model", weights: str = "best", *, trust: bool = False
) -> Run:
    """Reads a run, and says what is to be said of how it was read.

    Raises:
        UserError: as `pyro_delta.load`.
    """
    from pyro_delta.inference.run import load

    run = load(folder, device, with_prior, weights, trust=trust)
    for note in run.notes:
        click.echo(f"pyro-delta: {note}", err=True)
    return run


def warn(words: str) -> None:
    """Says on stderr what does not end a command."""
    click.echo(f"pyro-delta: {words}", err=True)


def next_command(*words: str | Path) -> None:
    """Says on stderr what may be typed next."""
    click.echo(f"next: pyro-delta {shlex.join(map(str, words))}", err=True)


def title_of_numbers(run: Path, numbers: Mapping[str, Any]) -> str:
    """What a table of numbers was measured on: run, weights, and which data of which split."""
    data = f"{numbers['n_images']} data" if numbers["n_images"] < numbers["split_images"] else "all data"
    seed = f", seed {numbers['seed']}"
    return (
        f"{run}, {numbers['weights']} weights, of step {numbers['step']}: {data} of the {numbers['split']} split{seed}"
    )


def settings_of(
    pairs: tuple[str, ...], options: dict[str, Any], file: Path | None = None, *, trust: bool = False
) -> Settings:
    """Options that are given and --set pairs as one list, in which no setting may stand twice; a file's come first.

    Args:
        pairs: as they are typed.
        options: by their settings.
        file: TOML, or the config.json of a run.
        trust: whether programs may run whose copies lie beside that, see `pyro_delta.trust`.

    Raises:
        UserError: if one does, the file cannot be read, or programs are not trusted.
    """
    from pyro_delta.config import parse_settings, settings_of_file
    from pyro_delta.errors import UserError

    settings = [(key, value) for key, value in options.items() if value is not None] + parse_settings(pairs)
    keys = [key for key, _ in settings]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{key} is set twice; give it once, as an option or with --set.")
    if file is None:
        return settings
    found = settings_of_file(file, settings)
    if any(key.endswith(".program") and ":" in str(value) for key, value in found):
        from pyro_delta.inference.run import with_copies

        found = with_copies(found, file, trust)
    return found + settings


data_argument = click.argument("given", metavar="DATA")
condition_option = click.option(
    "--condition",
    metavar="C",
    help="What the data are conditioned on: the name or number of a class, or numbers with commas.",
)


class Given(NamedTuple):
    """Data for a run, the names of each, of its file if there is one, and of their labels, if they have any."""

    split: Split
    names: list[str]
    classes: tuple[str, ...] | None


def condition_given(run: Run, typed: str, count: int) -> Tensor:
    """A condition as it is typed, for so many data of a run.

    Raises:
        UserError: if the run's data are conditioned on nothing, or not on that.
    """
    from pyro_delta.data.condition import condition_of
    from pyro_delta.errors import UserError

    condition = condition_of(run.spec)
    if condition is None:
        raise UserError(f"the run is conditioned on nothing, so --condition {typed} has no meaning; leave it out.")
    one = condition.parsed(typed)
    return one.expand(count, *one.shape[1:])


def read_given(
    run: Run, given: str, count: int | None, root: str | None, other_data: bool, condition: str | None = None
) -> Given:
    """Data for a run, and what they are called.

    Args:
        run: trained on data of the same kind.
        given: train, validation or test for its own data, or a file or folder that its kind of data opens.
        count: the first so many (all if None).
        root: where data sets live.
        other_data: whether its own data may have become others.
        condition: of the data of a file or folder, as it is typed.

    Raises:
        UserError: if there are none, they are not of the run's kind, or it takes more than a file holds.
    """
    import torch

    from pyro_delta.call import required
    from pyro_delta.data.condition import KEY, LABELS, condition_of, in_words
    from pyro_delta.data.splits import SPLITS, Split
    from pyro_delta.errors import UserError

    if given in SPLITS:
        if condition is not None:
            raise UserError(f"data of the split {given} have their own conditions; leave out --condition {condition}.")
        data = run.data(root, other=other_data)
        split = getattr(data, given).take(slice(count))
        known = getattr(split, "names", None)
        return Given(split, [f"{given}/{i}" for i in range(len(split))] if known is None else [*known], data.classes)
    beside = getattr(run.spec, "beside", None)
    if beside is None and (more := required(run.vae.guide, 1) + required(run.vae.model.likelihood, 1)):
        raise UserError(f"the run's programs take {more[0]!r} beside x, which no file holds; name a split: test.")
    x, names = run.spec.open(Path(given), count)
    extras, labels = {} if beside is None else beside(x), _labels(run, names)
    conditioned = condition_of(run.spec)
    if condition is not None:
        extras = {**extras, KEY: condition_given(run, condition, len(x))}
    elif conditioned is not None:
        if labels is None or run.config.data.options.get(KEY) != LABELS:
            raise UserError(
                f"the run is conditioned on {in_words(conditioned)}, and {given} is read without them; give "
                "--condition."
            )
        place = torch.tensor([conditioned.classes.index(name) for name in run.classes or ()])
        extras = {**extras, KEY: place[labels]}
    return Given(Split(x, labels, extras), names, None if labels is None else run.classes)


def _labels(run: Run, names: list[str]) -> Tensor | None:
    """Classes (N,) of files, where each is in a folder that is called as one of the run's classes."""
    import torch

    from pyro_delta.data.folders import labels_in

    labels = labels_in(names, run.classes or ())
    if (without := labels.count(None)) == 0:
        return torch.tensor(labels)
    if without < len(labels):
        click.echo(
            f"pyro-delta: no labels, for {without} of {len(labels)} files, such as {names[labels.index(None)]}, are in "
            "no folder of the name of a class of the run.",
            err=True,
        )
    return None


def check_out(out: Path, spec: Spec, *read: str | Path | None) -> None:
    """Refuses, before any work is done, a path that what is drawn cannot be written to.

    Args:
        out: the path.
        spec: of the data.
        read: what the data come from, and other files.

    Raises:
        UserError: if it does not end as files of the run's kind of data do, or as `check_writable` and `check_apart`.
    """
    from pyro_delta.errors import UserError

    if out.suffix.lower() != spec.suffix:
        raise UserError(f"{str(out)!r} is not a {spec.suffix} file; give a name that ends in {spec.suffix}.")
    check_writable(out)
    check_apart(out, *read)


def check_writable(out: Path) -> None:
    """Refuses, before any work is done, a path that no file can be written to.

    Raises:
        UserError: if it is a folder or a place on the hub, or cannot be written.
    """
    from pyro_delta.errors import UserError
    from pyro_delta.hub import check_no_place

    check_no_place(out)
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent} for {out.name}; make it or give another.")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"cannot write {out}; give a path that can be written.")


def check_apart(out: Path, *read: str | Path | None) -> None:
    """Refuses, before any work is done, a path at which a file of the data would be lost.

    Raises:
        UserError: if it is what is read, or a file in a folder that is.
    """
    from pyro_delta.errors import UserError

    target = out.resolve()
    for place in (Path(path).resolve() for path in read if path is not None):
        if target.exists() and (target == place or place in target.parents):
            raise UserError(f"{out} is read, and would be lost; give another --out.")


WRITTEN = (".txt", ".md", ".csv", ".tex", ".png", ".pdf", ".svg", ".html")
"""Endings of tables, figures and pages: no file that a run or a sweep is read from has one, but a README of it."""


def check_spares(out: Path, folders: Iterable[Path]) -> None:
    """Refuses, before any work is done, a path at which a file of runs or sweeps that are read could be lost.

    Raises:
        UserError: if it lies in one of the folders, also by a link, and does not end as what is written for people.
    """
    from pyro_delta.errors import UserError

    target = out.resolve()
    if target.suffix.lower() in WRITTEN and target.stem.lower() != "readme":
        return
    for folder in folders:
        if folder.resolve() in target.parents:
            raise UserError(
                f"{out} could take the place of a file of {folder}, which is read; give a path elsewhere, or another "
                "ending."
            )


def print_shown(out: Path, caption: str | None) -> None:
    """Says which file was written and, if it is a picture, what it shows."""
    click.echo(str(out))
    if caption is not None:
        click.echo(caption)


def print_json(numbers: dict[str, Any]) -> None:
    """Prints numbers on a line; one that is not finite becomes null, which every reader of JSON knows."""
    click.echo(json.dumps(finite(numbers), ensure_ascii=False))
