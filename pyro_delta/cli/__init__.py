"""The command `pyro-delta`. Commands are imported when they run, so that help needs no torch."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from pyro_delta import __version__
from pyro_delta.cli.streams import lost_output, plain, steady, telling
from pyro_delta.errors import (
    CheckFailed,
    NothingCertified,
    RankLost,
    UserError,
    is_out_of_memory,
    is_plain,
    unknown_name,
)

COMMANDS = {
    "train": "Train a δ-VAE; its folder holds all that the other commands need.",
    "train-prior": "Train an auxiliary prior for a run: a tighter bound, better samples.",
    "verify": "What a prior, a likelihood and a guide commit, and whether they are causal.",
    "evaluate": "Bounds on the likelihood, rate and distortion of a run.",
    "check": "Does the KL stay above δ, and do the latents carry information?",
    "sweep": "Train and check many runs: a grid, a list or a search.",
    "report": "A run as one page: numbers, curves, pictures, settings.",
    "export": "A run as a folder that others read, with a model card; to the hub, too.",
    "compare": "Runs, or the arms of a sweep, side by side.",
    "doctor": "What is wrong, or right, with a VAE of your own?",
    "crosscheck": "Does NumPyro find the same numbers for a run?",
    "sample": "Draw data from a run.",
    "encode": "Latents of data, for ArviZ.",
    "reconstruct": "Data and what the decoder makes of their latents.",
    "interpolate": "Decodings between the latents of data.",
    "inpaint": "Images completed from the pixels that are kept.",
    "impute": "Series completed from the numbers that are known.",
    "forecast": "How series go on.",
    "delta": "The rate that an AR(1) prior commits, or the α that commits a rate.",
    "list": "Data sets, presets, priors, likelihoods, guides, objectives, sweeps.",
}
"""Name → its line of help. The command `train` is `pyro_delta.cli.train.train`, and so on."""
BY_RANKS = ("train", "evaluate")
"""Commands that several processes of torchrun share."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota or a file that is full."""


class LazyGroup(click.Group):
    """A group that imports a command only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command, imported now.

        Raises:
            UserError: if there is none of the name; the nearest one is given.
        """
        if cmd_name not in COMMANDS:
            raise unknown_name("command", cmd_name, COMMANDS)
        attribute = cmd_name.replace("-", "_")
        module = import_module(f"{__name__}.{attribute}")
        return getattr(module, "list_" if cmd_name == "list" else attribute)  # `list` would hide the built-in

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The section of commands, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pyro-delta")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """δ-VAEs in Pyro: variational autoencoders whose posterior cannot collapse.

    \b
    pyro-delta train --dataset digits --out runs/first
    pyro-delta check runs/first
    """  # noqa: D301 (click wants the backspace itself)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line and exits: 0 done, 1 a check failed, 2 a mistake, 3 nothing certified, 130 stopped."""
    steady()
    try:
        check_plain(sys.argv[1:] if args is None else args)
        check_alone(sys.argv[1:] if args is None else args)
        with telling():
            code = cli.main(args, prog_name="pyro-delta", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        code = _complain(error.format_message(), 2)
    except UserError as error:
        code = 2 if error.said else _complain(str(error), 2)
    except (CheckFailed, RankLost) as error:
        code = 1 if error.said else _complain(str(error), 1)
    except NothingCertified as error:
        code = _complain(str(error), 3)
    except (click.Abort, KeyboardInterrupt):
        code = _complain("stopped.", 130)
    except OSError as error:
        if error.filename is None:
            raise
        mend = "make room there" if error.errno in FULL else "give another path"
        code = _complain(f"cannot use {os.fspath(error.filename)}: {error.strerror}; {mend}.", 2)
    except Exception as error:
        if is_out_of_memory(error):
            message = "this does not fit into memory; ask for smaller programs, smaller batches or less at once."
        else:
            from pyro_delta.programs import blame

            if (mistake := blame(error)) is None:
                raise
            message = str(mistake)
        code = _complain(message, 2)
    code = code if isinstance(code, int) else 0
    if code == 0 and (lost := lost_output()) is not None and lost.errno in FULL:
        code = _complain(f"the output could not be written: {lost.strerror}; make room there.", 2)
    sys.exit(code)


def check_plain(args: Sequence[str]) -> None:
    """Refuses arguments by which a terminal that shows them would be steered, and empty ones.

    Empty ones are mostly variables of a shell that are not set, and as a path they would mean the current folder.

    Raises:
        UserError: naming the first.
    """
    for before, argument in zip(["pyro-delta", *args], args):
        if not argument:
            raise UserError(f"the argument after {before!r} is empty; give it a value, or leave it out.")
        if not is_plain(argument):
            raise UserError(f"{argument!r} holds control characters; give the folder or file another name.")


def check_alone(args: Sequence[str]) -> None:
    """Refuses what several processes of torchrun would each do, and each print; the first of them says so.

    Raises:
        UserError: naming the command.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ and count != "1" and args and args[0] not in BY_RANKS:
        error = UserError(f"{args[0]} runs in one process, not in {count}; start it without torchrun.")
        error.said = os.environ.get("RANK", "0") != "0"
        raise error


def _complain(message: str, code: int) -> int:
    click.echo(f"pyro-delta: {plain(message)}", err=True)
    return code
