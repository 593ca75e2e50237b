"""The runs of a sweep: each a process of `pyro-delta train`, then one of `pyro-delta check`, here or by submitit.

A run is held by a lock on its log for as long as its process lives, even if the sweep that began it was killed: who
comes later waits, and finds it done. What is done is not repeated; a training that was cut short goes on by `--resume`.
NOTE: process groups are those of POSIX systems.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from pyro_delta.api.kept import kept, otherwise
from pyro_delta.cores import Cores, set_threads
from pyro_delta.errors import UserError, in_a_line
from pyro_delta.inference.run import config_digest, has_checkpoint, is_finished, read_config, read_state
from pyro_delta.lock import locked
from pyro_delta.signals import ended_by, without_interrupts
from pyro_delta.sweep import require
from pyro_delta.sweep.file import JOBS, ROOT, SEED, Arm, Sweep, run_folder

POLL = 0.2
"""Seconds between two looks at a process or a lock."""
LONGEST = 3 * 24 * 60
"""Minutes that a job of submitit may take unless something else is said: its own default is five."""

Say = Callable[[str], None]
Stop = Callable[[], bool]


class Work(Protocol):
    """Something to be done to a run by a command, in a process of its own."""

    @property
    def folder(self) -> Path:
        """Of the run."""

    def done(self) -> bool:
        """Whether it is done already."""

    def command(self) -> list[str]:
        """Arguments of `pyro-delta`."""


@dataclass(frozen=True)
class Training:
    """A run to be trained.

    Attributes:
        folder: of the run.
        settings: all that differ from the preset.
        preset: by name, or None for the one that the data ask for.
        trust: whether its programs may run where it was not made here.
    """

    folder: Path
    settings: Mapping[str, Any]
    preset: str | None
    trust: bool = False

    def done(self) -> bool:
        """Whether it has come to its end."""
        if not has_checkpoint(self.folder):
            return False
        config, (state, _, _) = read_config(self.folder, self.trust), read_state(self.folder)
        return is_finished(config, state)

    def command(self) -> list[str]:
        """From the beginning, or from the checkpoint; pages are made by `pyro-delta report`, of what one wants."""
        train = ["train", "--out", str(self.folder), "--no-report"]
        if has_checkpoint(self.folder):
            root = _root(self.settings.get(ROOT))
            return [*train, "--resume", *root, *_trusting(self.trust)]
        preset = [] if self.preset is None else ["--preset", self.preset]
        pairs = [f"{key}={json.dumps(value)}" for key, value in self.settings.items()]
        return [*train, *preset, *(part for pair in pairs for part in ("--set", pair))]


@dataclass(frozen=True)
class Judgement:
    """A finished run to be checked.

    Attributes:
        folder: of the run.
        control: folder of the control of its seed.
        trust: as of its training.
        root: where its data live now; None for where they were in training.
    """

    folder: Path
    control: Path | None
    trust: bool = False
    root: str | None = None

    def done(self) -> bool:
        """Whether such a check has been kept."""
        if (found := kept(self.folder)) is None:
            return False
        numbers = found.numbers
        whole = numbers["split"] == "test" and numbers["n_images"] == numbers["split_images"] and not otherwise(numbers)
        if self.control is None:
            return whole and "control_config_digest" not in numbers
        # One that had not come to its end has the same settings afterwards.
        of_it = numbers.get("control_config_digest") == config_digest(self.control)
        return whole and of_it and numbers.get("control_finished") is not False

    def command(self) -> list[str]:
        """Of all test data."""
        against = [] if self.control is None else ["--control", str(self.control)]
        return ["check", str(self.folder), "--keep", *against, *_root(self.root), *_trusting(self.trust)]


def _root(root: str | None) -> list[str]:
    return [] if root is None else ["--data-root", str(root)]


def _trusting(trust: bool) -> list[str]:
    return ["--trust"] if trust else []


def log_of(folder: Path) -> Path:
    """What a run's processes have said, and its lock: beside its folder, which `train` wants empty."""
    return folder.with_name(f"{folder.name}.log")


def never() -> bool:
    """Goes on."""
    return False


def carry_out(work: Work, threads: int | None, stop: Stop = never) -> str | None:
    """Does what is to be done to a run, unless it is done, in a process of its own.

    Args:
        work: on a run.
        threads: of the process, if the user has not set it; None to leave that to the machine.
        stop: looked at again and again; once it is true, the process is asked to end, and ends as by an interrupt.

    Returns:
        None if it is done now; else the signal that has ended the process, or the last line that it has said.
    """
    log_of(work.folder).parent.mkdir(parents=True, exist_ok=True)
    if log_of(work.folder).is_symlink():
        raise UserError(f"{log_of(work.folder)} is a link, through which a sweep is not written; take it away.")
    with log_of(work.folder).open("a", encoding="utf-8") as log:
        while not locked(log.fileno(), log_of(work.folder)):
            if stop():
                return "stopped"
            time.sleep(POLL)
        if work.done():
            return None
        environment = dict(os.environ)
        if threads is not None and set_threads() is None:
            environment["OMP_NUM_THREADS"] = str(threads)
        command = [sys.executable, "-m", "pyro_delta", *work.command()]
        begun = os.fstat(log.fileno()).st_size  # what former processes have said stands before
        # In a session of its own: an interrupt of the terminal reaches it once, by way of the sweep. Its output is the
        # locked file, so that the lock lives as long as the process.
        with subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True) as process:
            try:
                while process.poll() is None:
                    if stop():
                        process.terminate()
                        process.wait()
                    else:
                        time.sleep(POLL)
            except BaseException:
                process.terminate()
                raise
        if work.done():
            return None
        if process.returncode < 0:  # as by a machine that is out of memory; its last line says nothing of that
            return f"killed by {signal.Signals(-process.returncode).name}"
        return _last_line(log_of(work.folder), begun) or f"exit code {process.returncode}"


def _last_line(log: Path, begun: int) -> str:
    """Of what has been written since the log had so many bytes."""
    lines = log.read_bytes()[begun:].decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def threads_for(jobs: int) -> int | None:
    """Threads of each of so many processes on the cores that are free; None for one alone, which looks for itself."""
    if jobs == 1:
        return None
    cores = Cores()
    return max(1, cores.threads(cores.look()) // jobs)


class Launcher(Protocol):
    """Where processes run."""

    def __call__(self, work: Work, stop: Stop) -> str | None:
        """As `carry_out`."""


class Local:
    """Processes on this machine.

    Args:
        jobs: at a time, which share the cores.
    """

    def __init__(self, jobs: int) -> None:
        self.threads = threads_for(jobs)

    def __call__(self, work: Work, stop: Stop) -> str | None:
        """See `Launcher`."""
        return carry_out(work, self.threads, stop)


@dataclass(frozen=True)
class Requeued:
    """`carry_out` for submitit, which begins it again where a cluster takes its node away: the run then goes on.

    Attributes:
        work: to be done.
        threads: of its process.
        here: whether it is a process of this machine, which SIGTERM ends in order; a cluster sends that to the run
            itself as well, and before it begins a job again.
    """

    work: Work
    threads: int | None
    here: bool

    def __call__(self) -> str | None:
        """See `carry_out`."""
        if not self.here:
            return carry_out(self.work, self.threads)
        with interrupted_in_order() as ending:
            return carry_out(self.work, self.threads, ending.is_set)

    def checkpoint(self) -> Any:
        """What submitit is to begin in its place."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Submitit:
    """Jobs of submitit: of Slurm where it is there, else processes of this machine.

    Args:
        out: of the sweep; submitit's own files go into its folder `submitit`.
        jobs: at a time.
        parameters: of submitit's `update_parameters`, and `cluster` (slurm or local), where not the one that it finds.

    Raises:
        UserError: if submitit is missing, or does not know a parameter.
    """

    def __init__(self, out: Path, jobs: int, parameters: Mapping[str, Any]) -> None:
        submitit = require("submitit")
        chosen = {"timeout_min": LONGEST, **parameters}
        cluster = chosen.pop("cluster", None)
        try:
            self.executor = submitit.AutoExecutor(out / JOBS, cluster=cluster)
            self.executor.update_parameters(**chosen)
        except (NameError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(f"submitit refuses {dict(parameters)}: {' '.join(str(error).split())}") from None
        self.here = self.executor.cluster == "local"
        self.threads = threads_for(jobs) if self.here else None
        self.submitting = threading.Lock()

    def __call__(self, work: Work, stop: Stop) -> str | None:
        """See `Launcher`."""
        if work.done():  # a job costs a place in the queue
            return None
        with self.submitting, without_interrupts():
            job = self.executor.submit(Requeued(work, self.threads, self.here))
        asked = False
        while not job.done():
            if stop() and not asked:
                if not self.here:
                    job.cancel()
                    return "stopped"
                # By submitit itself a local job is interrupted, which kills it, with a traceback, and leaves the run.
                os.kill(int(job.job_id), signal.SIGTERM)
                asked = True
            time.sleep(POLL)
        if (error := job.exception()) is not None:
            told = str(error).partition("You can check full logs")[0].splitlines()
            return next(line.strip() for line in reversed(told) if line.strip(" -"))
        return job.result()


def run_all(launch: Launcher, works: Sequence[Work], jobs: int, finished: Callable[[Work, str | None], None]) -> None:
    """Has all works done, so many at a time; on an interrupt all are asked to end, in order, before it is passed on.

    Args:
        launch: where.
        works: what.
        jobs: at a time.
        finished: called with each work and why it is not done, or None, as they come.
    """
    with interrupted_in_order() as ending, ThreadPoolExecutor(jobs) as pool:

        def one(work: Work) -> str | None:
            try:
                return "stopped" if ending.is_set() else launch(work, ending.is_set)
            except UserError as error:  # a run that was damaged meanwhile does not end the others
                return str(error)
            except OSError as error:
                return in_a_line(error)

        waiting = {pool.submit(one, work): work for work in works}
        for done in as_completed(waiting):
            if not ending.is_set():
                finished(waiting[done], done.result())
    if ending.is_set():
        raise KeyboardInterrupt


@contextmanager
def interrupted_in_order() -> Iterator[threading.Event]:
    """Lets the first interrupt or termination signal set an event, which processes are looked after by."""
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if ending.is_set():  # asked twice: at once
            raise KeyboardInterrupt
        ending.set()

    with ended_by(end):
        yield ending


def run_sweep(sweep: Sweep, out: Path, launch: Launcher, jobs: int, say: Say, trust: bool = False) -> dict[str, str]:
    """Trains and checks all runs of a sweep that are not done yet.

    Args:
        sweep: to run.
        out: its folder, which `keep` has made; it may hold a part of the runs already.
        launch: where processes run.
        jobs: at a time.
        say: called with a line of progress.
        trust: whether programs of runs that are there already, and were not made here, may run.

    Returns:
        For each run that failed, by its place below `out`, the last line that it has said.
    """
    failed: dict[str, str] = {}
    pairs = [(arm, seed) for seed in sweep.seeds for arm in _control_first(sweep)]
    trainings = {(arm.name, seed): training_of(sweep, out, arm, seed, trust) for arm, seed in pairs}

    def told(what: str, count: int) -> Callable[[Work, str | None], None]:
        made = 0

        def finished(work: Work, reason: str | None) -> None:
            nonlocal made
            made += 1
            name = str(work.folder.relative_to(out))
            if reason is not None:
                failed[name] = reason
            say(f"[{made}/{count}] {name}: {what if reason is None else reason}")

        return finished

    run_all(launch, list(trainings.values()), jobs, told("trained", len(trainings)))
    trained = {key: training for key, training in trainings.items() if _name(training, out) not in failed}
    controls = {seed: trained.get((sweep.control, seed)) for seed in sweep.seeds} if sweep.control else {}
    for key, training in list(trained.items()):
        if controls.get(key[1], training) is None:
            failed[_name(training, out)] = "its control failed, so that it was not checked"
            del trained[key]
    checked = told("checked", len(trained))
    first = [training for training in trained.values() if training in controls.values()]
    run_all(launch, [judgement_of(training) for training in first], jobs, checked)
    others = []
    for (_, seed), training in trained.items():
        if training not in first:
            control = controls.get(seed)
            # Against one that has diverged there is nothing to measure, and it would not help to try again.
            against = None if control is None or has_diverged(control.folder) else control.folder
            others.append(judgement_of(training, against))
    run_all(launch, others, jobs, checked)
    return failed


def _name(training: Training, out: Path) -> str:
    return str(training.folder.relative_to(out))


def judgement_of(training: Training, control: Path | None = None) -> Judgement:
    """The check of a run of a sweep."""
    return Judgement(training.folder, control, training.trust, training.settings.get(ROOT))


def has_diverged(folder: Path) -> bool:
    """Whether the kept check of a run says that it diverged."""
    return (found := kept(folder)) is not None and found.numbers["neg_elbo_bpd"] is None


def training_of(sweep: Sweep, out: Path, arm: Arm, seed: int, trust: bool = False) -> Training:
    """A run of a sweep."""
    return Training(run_folder(out, arm, seed), {**arm.settings, SEED: seed}, sweep.preset, trust)


def _control_first(sweep: Sweep) -> list[Arm]:
    return sorted(sweep.arms, key=lambda arm: arm.name != sweep.control)
