"""Search over settings by Optuna: TPE [1], pruned by the validation bound [2], kept in an SQLite file of the sweep.

Each trial is an ordinary run, in a folder that is named by its configuration: a trial that was cut short goes on where
it was, and one of settings that were drawn before costs nothing.

References:
    1. J. Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NIPS 2011.
    2. D. Golovin et al., "Google Vizier: A Service for Black-Box Optimization", KDD 2017, §3.2 (the median rule).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_delta import config as configuration
from pyro_delta.errors import UserError
from pyro_delta.inference.run import read_metrics
from pyro_delta.sweep import require
from pyro_delta.sweep.file import SEED, STORAGE, Range, Sweep, keep, merged
from pyro_delta.sweep.runs import Local, Say, Training, interrupted_in_order, is_held

FOLDER = "folder"
"""What a trial says of itself to Optuna: the name of its run."""


@dataclass(frozen=True)
class Found:
    """What a search has found so far.

    Attributes:
        best: settings of the best trial.
        neg_elbo_bpd: its best validation bound, in the unit of the data's bounds.
        folder: of its run.
        trials: how many came to their end, were pruned, and failed, by Optuna's words.
    """

    best: dict[str, Any]
    neg_elbo_bpd: float
    folder: Path
    trials: dict[str, int]


def search(sweep: Sweep, out: Path, trials: int, jobs: int, say: Say) -> Found:
    """Draws settings until so many trials came to their end or were pruned, those of earlier calls included.

    Args:
        sweep: with a [search], and one arm at most, over which it is laid.
        out: folder of the sweep.
        trials: in all.
        jobs: at a time.
        say: called with a line of progress.

    Raises:
        UserError: if there is nothing to search, Optuna is missing, what it has kept is damaged, or no trial came to
            its end.
    """
    optuna = require("optuna")
    if not sweep.search:
        raise UserError(f"the sweep {sweep.name!r} has no [search]; give the ranges of some settings there.")
    if len(sweep.arms) > 1:
        raise UserError(f"a search is over one arm, and the sweep {sweep.name!r} has {len(sweep.arms)}; leave one.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    states = optuna.trial.TrialState
    for end in ("low", "high"):  # refused before any work is done
        _training(sweep, out, {key: _example(axis, end) for key, axis in sweep.search.items()})
    keep(sweep, out)
    storage = f"sqlite:///{(out / STORAGE).absolute()}"
    with _readable(out / STORAGE):
        # The seed moves on with the trials, or else a search that goes on would draw its first ones again.
        study = optuna.create_study(storage=storage, study_name=sweep.name, load_if_exists=True, direction="minimize")
        study.sampler = optuna.samplers.TPESampler(seed=sweep.seeds[0] + len(study.trials))
        for trial in study.get_trials(states=(states.RUNNING,)):
            if not is_held(out / trial.user_attrs.get(FOLDER, "")):  # its search was killed
                study.tell(trial.number, state=states.FAIL)
                study.enqueue_trial(trial.params)
        done = len(study.get_trials(states=(states.COMPLETE, states.PRUNED)))
    launch = Local(jobs)
    with interrupted_in_order() as ending:

        def objective(trial: Any) -> float:
            name = f"[{trial.number + 1}] {trial.params}"
            try:
                training = _training(sweep, out, {key: _draw(trial, key, axis) for key, axis in sweep.search.items()})
                trial.set_user_attr(FOLDER, training.folder.name)
                name = f"[{trial.number + 1}] {training.folder.name}, {trial.params}"
                bound = _judged(optuna, trial, training, launch, ending)
            except UserError as error:
                say(f"{name}: {error}")
                raise
            except optuna.TrialPruned:
                say(f"{name}: pruned")
                raise
            except KeyboardInterrupt:
                study.enqueue_trial(trial.params)  # goes on, in the same folder, when the search does
                raise
            say(f"{name}: {bound:.4f}")
            return bound

        if done < trials:
            study.optimize(objective, n_trials=trials - done, n_jobs=jobs, catch=(UserError,))
    counts = _counts(study, states)
    if not counts["complete"]:
        raise UserError(f"no trial of {out} came to its end; see the logs there.")
    best = study.best_trial
    params = {key: _value(sweep.search[key], value) for key, value in best.params.items()}
    return Found(params, best.value, out / best.user_attrs[FOLDER], counts)


def _counts(study: Any, states: Any) -> dict[str, int]:
    """How many trials ended in each way; one that was cut short and begun again, in the same folder, did not fail."""
    last = {trial.user_attrs.get(FOLDER, trial.number): trial.number for trial in study.trials}
    again = [
        trial.state is states.FAIL and trial.number < last[trial.user_attrs.get(FOLDER, trial.number)]
        for trial in study.trials
    ]
    ended = [trial.state for trial, went_on in zip(study.trials, again, strict=True) if not went_on]
    return {state.name.lower(): ended.count(state) for state in states if state.is_finished()}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Names Optuna's file where it is damaged, or none of Optuna's."""
    errors = (require("sqlalchemy").exc.SQLAlchemyError, require("optuna").exceptions.StorageInternalError)
    try:
        yield
    except errors as error:
        why = str(error).partition("\n")[0]
        raise UserError(
            f"{path} cannot be read: {why}; restore it, or move it away to begin the search anew."
        ) from None


def _judged(optuna: Any, trial: Any, training: Training, launch: Local, ending: threading.Event) -> float:
    """The best validation bound of a trial, which is trained.

    Raises:
        UserError: if its run dies or has none.
        TrialPruned: by Optuna, if the bounds so far are worse than the median of other trials.
        KeyboardInterrupt: if the search is to end.
    """
    if ending.is_set():
        raise KeyboardInterrupt
    reported: set[int] = set()
    pruned = False

    def hopeless() -> bool:
        nonlocal pruned
        for step, bound in _bounds(training.folder):
            if step not in reported:
                reported.add(step)
                trial.report(bound, step)
                pruned = pruned or trial.should_prune()
        return ending.is_set() or pruned

    reason = launch(training, hopeless)
    if ending.is_set():
        raise KeyboardInterrupt
    if reason is not None and pruned:
        raise optuna.TrialPruned
    bounds = _bounds(training.folder)
    if reason is not None or not bounds:
        raise UserError(reason or "it has no validation, by which a search judges; give training.validations")
    return min(bound for _, bound in bounds)


def _training(sweep: Sweep, out: Path, drawn: dict[str, Any]) -> Training:
    """The run of a trial.

    Raises:
        UserError: if its configuration is refused.
    """
    seed, base = sweep.seeds[0], sweep.arms[0]
    arm = base.model_copy(update={"settings": merged(base.settings, drawn)})
    name = f"trial-{configuration.digest(sweep.config(arm, seed))}"
    return Training(out / name, {**arm.settings, SEED: seed}, sweep.preset)


def _draw(trial: Any, key: str, axis: Any) -> Any:
    if axis.choices is not None:
        return _value(axis, trial.suggest_categorical(key, _choices(axis)))
    if axis.whole:
        return trial.suggest_int(key, int(axis.low), int(axis.high), log=axis.log)
    return trial.suggest_float(key, axis.low, axis.high, log=axis.log)


def _choices(axis: Range) -> list[Any]:
    """The choices as Optuna can keep them: JSON, if some are lists."""
    choices = list(axis.choices or ())
    return [json.dumps(choice) for choice in choices] if _has_lists(axis) else choices


def _value(axis: Range, kept: Any) -> Any:
    """A value that Optuna has kept as the setting takes it."""
    return json.loads(kept) if _has_lists(axis) else kept


def _has_lists(axis: Range) -> bool:
    return any(isinstance(choice, list | tuple | dict) for choice in axis.choices or ())


def _example(axis: Any, end: str) -> Any:
    """A value of a range, by which its setting is tried before any work is done."""
    if axis.choices is not None:
        return axis.choices[0 if end == "low" else -1]
    value = getattr(axis, end)
    return int(value) if axis.whole else value


def _bounds(folder: Path) -> list[tuple[int, float]]:
    """Step and −ELBO of each validation of a run so far; one that is not finite is left out."""
    lines = read_metrics(folder)
    found = [(line["step"], line["neg_elbo_bpd"]) for line in lines if line["split"] == "validation"]
    return [(step, bound) for step, bound in found if bound is not None]
