"""Runs on the Hugging Face hub: `hf:USER/NAME`, or `hf:USER/NAME@REVISION`, in the place of a folder.

The package huggingface-hub (the extra `pyro-delta[hub]`) fetches them into its cache, and knows who the user is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_delta.errors import UserError, in_a_line

PREFIX = "hf:"
PLACE = re.compile(r"hf:([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w][\w./-]*))?", re.ASCII)


def on_hub(run: Path | str) -> bool:
    """Whether this names a run on the hub rather than a folder."""
    return str(run).startswith(PREFIX)


def check_no_place(path: Path | str, option: str | None = None) -> None:
    """Refuses a place on the hub as a path to write to.

    Args:
        path: that is to be written.
        option: that takes such a place, if there is one.

    Raises:
        UserError: with what to give.
    """
    if on_hub(path):
        mend = "give a path here, and upload a run by export --to" if option is None else f"give it as {option}"
        raise UserError(f"{path} is a place on the hub, not a path to write to; {mend}.")


def check_here(run: Path | str, command: str) -> None:
    """Refuses a run on the hub for a command that writes into its run.

    Raises:
        UserError: with how to have it here.
    """
    if on_hub(run):
        repository, _ = parts(run)
        raise UserError(
            f"{command} would write into {run}, which is on the hub; have it here first: hf download {repository} "
            f"--local-dir {repository.rpartition('/')[2]}."
        )


def parts(place: Path | str) -> tuple[str, str | None]:
    """USER/NAME of a place on the hub, and its revision, a branch, tag or commit, if it says one.

    Raises:
        UserError: if it is none.
    """
    found = PLACE.fullmatch(str(place))
    if found is None:
        raise UserError(f"{str(place)!r} is no place on the hub; write hf:USER/NAME, or hf:USER/NAME@REVISION.")
    return found[1], found[2]


def here(run: Path | str) -> Path:
    """The folder of a run: of one on the hub where it was fetched to, in the cache of huggingface-hub.

    Raises:
        UserError: if it is not there, cannot be reached, or the package is missing.
    """
    if not on_hub(run):
        return Path(run)
    repository, revision = parts(run)
    with _told(f"{run} cannot be fetched", "look at its name and at the network, or give a folder"):
        return Path(_package().snapshot_download(repository, revision=revision))


def upload(folder: Path, place: str, *, private: bool = False) -> str:
    """Puts the files of a folder into a model repository of the hub, which is made if it is not there.

    Args:
        folder: an exported run.
        place: hf:USER/NAME.
        private: whether a new repository is shown to its owner alone.

    Returns:
        The address of the repository.

    Raises:
        UserError: if that fails, the place says a revision, or the package is missing.
    """
    repository, revision = parts(place)
    if revision is not None:
        raise UserError(f"{place} says a revision, which the hub gives itself; write hf:{repository}.")
    api = _package().HfApi()
    with _told(f"{place} cannot be written", "log in (hf auth login), and look at the name and at the network"):
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="pyro-delta export")
    return str(address)


def check_installed() -> None:
    """Refuses, before any work is done, to go on without the package.

    Raises:
        UserError: with what to install.
    """
    _package()


def _package() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("the hub needs huggingface-hub; install the extra: pip install 'pyro-delta[hub]'.") from None
    return huggingface_hub


@contextmanager
def _told(what: str, mend: str) -> Iterator[None]:
    """Whatever the hub, the network or the package fails at, in a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [in_a_line(each) for each in (error, error.__cause__) if isinstance(each, Exception)]
        raise UserError(f"{what} ({': '.join(lines)}); {mend}.") from error
