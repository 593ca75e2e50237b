"""Lines of a training as metrics of an experiment tracker: wandb, trackio or MLflow, which need not be installed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pyro_delta.config import Config
from pyro_delta.describe import flat
from pyro_delta.errors import UserError, in_a_line

Line = dict[str, Any]
Log = Callable[[Line], None]

PACKAGES = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow-skinny"}
"""Tracker → what is to be installed for it."""
PROJECT = "pyro-delta"
"""What runs are filed under, unless the tracker's own environment variables say something else."""


def check_tracker(name: str) -> None:
    """Refuses, before any work is done, a tracker that is not installed.

    Raises:
        UserError: with what to install.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # a folder of that name, as trackers leave them, is no package
        raise UserError(f"--tracker {name} needs a package that is not installed; pip install {PACKAGES[name]}.")


@contextmanager
def tracking(
    name: str | None, folder: Path, config: Config, *, resumed: bool, warn: Callable[[str], None]
) -> Iterator[Log]:
    """Sends lines of metrics to a tracker while the context lasts: `split/number` at each step, and all settings.

    A run is called like its folder; one that goes on does so there, too. Whatever a tracker fails at is said, once, and
    ends its part alone: training goes on.

    Args:
        name: wandb, trackio or mlflow; None for none.
        folder: of the run.
        config: of the run.
        resumed: whether the run goes on.
        warn: called with what failed, in a sentence.
    """
    if name is None:
        yield lambda line: None
        return
    failed: list[str] = []

    def attempt(what: str, call: Callable[[], Any]) -> Any:
        try:
            with redirect_stdout(sys.stderr):  # what a tracker prints is no output of ours
                return None if failed else call()
        except Exception as error:  # a tracker has a server, and a mind, of its own
            failed.append(what)
            warn(f"{name} fails {what} ({in_a_line(error)}); the training goes on without it.")

    settings = {key: value if isinstance(value, int | float) else str(value) for key, value in flat(config)}
    parts: list[Parts] = []

    def begin() -> None:
        made = (_of_mlflow if name == "mlflow" else _of_wandb)(import_module(name), name, folder, settings, resumed)
        made[0]()
        parts.append(made)

    attempt("to start", begin)

    def note(line: Line) -> None:
        numbers = {
            f"{line['split']}/{key}": value
            for key, value in line.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and key != "step"
        }
        attempt("to log", lambda: parts[0][1](numbers, line["step"]))

    try:
        yield note
    finally:
        attempt("to finish", lambda: parts[0][2]())


Parts = tuple[Callable[[], Any], Callable[[dict[str, float], int], Any], Callable[[], Any]]
"""Start, log, finish."""


def _of_wandb(module: Any, name: str, folder: Path, settings: dict[str, Any], resumed: bool) -> Parts:
    """Of wandb, and of trackio, which speaks as it does."""
    import os

    given: dict[str, Any] = {"name": folder.name, "config": settings, "resume": "allow" if resumed else "never"}
    if name == "trackio":
        given["project"] = os.environ.get("TRACKIO_PROJECT", PROJECT)
    else:
        given["project"] = os.environ.get("WANDB_PROJECT", PROJECT)
        given["id"] = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
        given["resume"] = "allow"  # a folder that was deleted and made anew has the same id
    return lambda: module.init(**given), lambda numbers, step: module.log(numbers, step=step), module.finish


def _of_mlflow(module: Any, name: str, folder: Path, settings: dict[str, Any], resumed: bool) -> Parts:
    import os

    def start() -> None:
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            module.set_experiment(PROJECT)
        before = _run_of_mlflow(module, folder) if resumed else None
        module.start_run(run_id=before) if before else module.start_run(run_name=folder.name)
        module.set_tag("pyro_delta.folder", str(folder.absolute()))
        if not before:
            module.log_params(settings)

    return start, lambda numbers, step: module.log_metrics(numbers, step=step), module.end_run


def _run_of_mlflow(module: Any, folder: Path) -> str | None:
    """The run of a folder that MLflow knows already."""
    known = module.search_runs(
        filter_string=f"tags.`pyro_delta.folder` = '{folder.absolute()}'", output_format="list", max_results=1
    )
    return known[0].info.run_id if known else None
