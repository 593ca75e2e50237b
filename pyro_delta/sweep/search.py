"""Search over settings by Optuna: TPE [1], pruned by the validation bound [2], kept in an SQLite file of the sweep.

Each trial is an ordinary run, in a folder that is named by its configuration: a trial that was cut short goes on where
it was, and one of settings that were drawn before costs nothing. Searches may share a folder, on hosts whose file
system has locks, too: they take turns in drawing, and make so many trials together.

References:
    1. J. Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NIPS 2011.
    2. D. Golovin et al., "Google Vizier: A Service for Black-Box Optimization", KDD 2017, §3.2 (the median rule).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from pyro_delta import config as configuration
from pyro_delta.errors import CheckFailed, UserError
from pyro_delta.inference.run import read_metrics
from pyro_delta.lock import awaited, locked
from pyro_delta.sweep import require
from pyro_delta.sweep.file import SEED, STORAGE, Arm, Range, Sweep, keep, merged
from pyro_delta.sweep.runs import Launcher, Local, Say, Training, interrupted_in_order

PATIENCE = 120.0
"""Seconds that a search waits for another program that writes into its file."""
FOLDER = "folder"
WORKER = "worker"
"""What a trial says of itself to Optuna: the name of its run, and of the search that has it done."""


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
        UserError: if there is nothing to search, a range is refused, Optuna is missing, or what it has kept is damaged
            or of another seed.
        CheckFailed: if no trial came to its end.
    """
    optuna = require("optuna")
    if not sweep.search:
        raise UserError(f"the sweep {sweep.name!r} has no [search]; give the ranges of some settings there.")
    if len(sweep.arms) > 1:
        raise UserError(f"a search is over one arm, and the sweep {sweep.name!r} has {len(sweep.arms)}; leave one.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _try_ranges(sweep)
    keep(sweep, out)
    with _readable(out / STORAGE):
        return _search(optuna, sweep, out, trials, jobs, say)


def _search(optuna: Any, sweep: Sweep, out: Path, trials: int, jobs: int, say: Say) -> Found:
    states = optuna.trial.TrialState
    with awaited(out):
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{(out / STORAGE).absolute()}", engine_kwargs={"connect_args": {"timeout": PATIENCE}}
        )
        study = optuna.create_study(storage=storage, study_name=sweep.name, load_if_exists=True, direction="minimize")
        if (before := study.user_attrs.get(SEED, seed := sweep.seeds[0])) != seed:
            raise UserError(
                f"{out} holds a search with seed {before}, and this is one with {seed}; give another --out."
            )
        study.set_user_attr(SEED, seed)
        for trial in study.get_trials(states=(states.RUNNING,)):
            if not _lives(out, trial):  # its search was killed
                study.tell(trial.number, state=states.FAIL)
                study.enqueue_trial(trial.params)
    with interrupted_in_order() as ending, _worker(out) as worker, ThreadPoolExecutor(jobs) as pool:
        searcher = Searcher(optuna, study, sweep, out, trials, worker, ending, Local(jobs), say)
        for done in [pool.submit(searcher.work) for _ in range(jobs)]:
            done.result()
    if ending.is_set():
        raise KeyboardInterrupt
    counts = _counts(study, states)
    if not counts["complete"]:
        if study.get_trials(states=(states.RUNNING,)):
            raise CheckFailed(f"no trial of {out} has come to its end yet; wait for the search that is at work there.")
        raise CheckFailed(f"no trial of {out} came to its end; see the logs there.")
    best = study.best_trial
    params = {key: _value(sweep.search[key], value) for key, value in best.params.items()}
    return Found(params, best.value, out / best.user_attrs[FOLDER], counts)


@dataclass(frozen=True)
class Searcher:
    """A process that has trials done, in several threads.

    Attributes:
        optuna: the package.
        study: what it has kept.
        sweep: with the ranges.
        out: folder of the sweep.
        trials: that all searchers of the folder make together.
        worker: name of its locked file.
        ending: set when it is to end.
        launch: where runs are trained.
        say: called with a line of progress.
        failed: numbers of its trials that failed.
    """

    optuna: Any
    study: Any
    sweep: Sweep
    out: Path
    trials: int
    worker: str
    ending: threading.Event
    launch: Launcher
    say: Say
    failed: list[int] = field(default_factory=list)

    def work(self) -> None:
        """Has one trial after another done, until there are enough."""
        states = self.optuna.trial.TrialState
        while not self.ending.is_set() and (found := self.draw()) is not None:
            trial, drawn = found
            name = f"[{trial.number + 1}] {trial.params}"
            try:
                training = _training(self.sweep, self.out, drawn)
                trial.set_user_attr(FOLDER, training.folder.name)
                name = f"[{trial.number + 1}] {training.folder.name}, {trial.params}"
                bound = _judged(self.optuna, trial, training, self.launch, self.ending)
            except UserError as error:
                self.study.tell(trial, state=states.FAIL)
                self.failed.append(trial.number)
                self.say(f"{name}: {error}")
            except self.optuna.TrialPruned:
                self.study.tell(trial, state=states.PRUNED)
                self.say(f"{name}: pruned")
            except KeyboardInterrupt:
                self.study.tell(trial, state=states.FAIL)
                self.study.enqueue_trial(trial.params)  # goes on, in the same folder, when the search does
            except BaseException:
                self.ending.set()  # for the other threads, too
                raise
            else:
                self.study.tell(trial, bound)
                self.say(f"{name}: {bound:.4f}")

    def draw(self) -> tuple[Any, dict[str, Any]] | None:
        """The next trial and its settings, or None if there are enough; searchers take turns, or two draw the same."""
        states = self.optuna.trial.TrialState
        with awaited(self.out):
            before = self.study.get_trials(deepcopy=False)
            counted = [trial for trial in before if trial.state in (states.COMPLETE, states.PRUNED, states.RUNNING)]
            if max(len(counted), len(self.failed)) >= self.trials:  # what always fails is not tried for ever
                return None
            # The seed moves on with the trials, or else a search that goes on would draw its first ones again.
            self.study.sampler = self.optuna.samplers.TPESampler(seed=self.sweep.seeds[0] + len(before))
            trial = self.study.ask()
            trial.set_user_attr(WORKER, self.worker)
            return trial, {key: _draw(trial, key, axis) for key, axis in self.sweep.search.items()}


@contextmanager
def _worker(out: Path) -> Iterator[str]:
    """The name of a file of this search, which is locked as long as its process lives."""
    path = out / f".search-{uuid4().hex}"
    with path.open("x") as file:
        locked(file.fileno(), path)
        try:
            yield path.name
        finally:
            path.unlink(missing_ok=True)


def _lives(out: Path, trial: Any) -> bool:
    """Whether the search that has a trial done is at work, here or on another host."""
    try:
        with (out / trial.user_attrs[WORKER]).open() as file:
            return not locked(file.fileno(), out)
    except (KeyError, FileNotFoundError):
        return False


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
        why = str(error.__cause__ or error).partition("\n")[0]
        if "locked" in why:
            raise UserError(f"{path} is locked by another program; end that, and go on by the same command.") from None
        raise UserError(
            f"{path} cannot be read: {why}; restore it, or move it away to begin the search anew."
        ) from None


def _judged(optuna: Any, trial: Any, training: Training, launch: Launcher, ending: threading.Event) -> float:
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
        raise UserError(reason or "it diverged: no validation has a bound that is a number")
    return min(bound for _, bound in bounds)


def _try_ranges(sweep: Sweep) -> None:
    """Refuses ranges of which some values are no settings, before any work is done.

    Raises:
        UserError: naming the first, or if there is no validation to judge by.
    """
    examples = {key: _examples(axis) for key, axis in sweep.search.items()}
    least = {key: values[0] for key, values in examples.items()}
    most = {key: values[-1] for key, values in examples.items()}
    others = ({**least, key: value} for key, values in examples.items() for value in values)
    for drawn in (least, most, *others):
        if not sweep.config(_arm(sweep, drawn), sweep.seeds[0]).training.validations:
            raise UserError("training.validations=0 leaves a search nothing to judge by; give 1 or more.")


def _training(sweep: Sweep, out: Path, drawn: dict[str, Any]) -> Training:
    """The run of a trial.

    Raises:
        UserError: if its configuration is refused.
    """
    seed, arm = sweep.seeds[0], _arm(sweep, drawn)
    name = f"trial-{configuration.digest(sweep.config(arm, seed))}"
    return Training(out / name, {**arm.settings, SEED: seed}, sweep.preset)


def _arm(sweep: Sweep, drawn: dict[str, Any]) -> Arm:
    """The arm with what was drawn."""
    (base,) = sweep.arms
    return base.model_copy(update={"settings": merged(base.settings, drawn)})


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


def _examples(axis: Range) -> list[Any]:
    """All choices; of a range both ends, and of real numbers one between, refused where whole ones are meant."""
    if axis.choices is not None:
        return list(axis.choices)
    assert axis.low is not None
    assert axis.high is not None
    if axis.whole:
        return [int(axis.low), int(axis.high)]
    return [axis.low, axis.low + 0.381966 * (axis.high - axis.low), axis.high]


def _bounds(folder: Path) -> list[tuple[int, float]]:
    """Step and −ELBO of each validation of a run so far; one that is not finite is left out."""
    lines = read_metrics(folder)
    found = [(line["step"], line["neg_elbo_bpd"]) for line in lines if line["split"] == "validation"]
    return [(step, bound) for step, bound in found if bound is not None]
